"""Nemotron-H's config.json ↔ ours: Nano 2, Nano 3, Super, and Puzzle's children of them.

Layers come as a pattern, as a list of kinds, or as Puzzle's `block_configs`, one section a layer whose settings stand
before the model's. A child that upstream has no words for is written with `omni_blocks` (and `omni_mtp_blocks`), one
typed config a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.fields import TEXT_INERT, Fields
from omni.mamba import MambaConfig
from omni.moe import LinearConfig, MLPConfig, MoEConfig, NoOpConfig
from omni.mtp import MTPConfig

MAMBA, ATTENTION, MOE, MLPS = "M", "*", "E", "-"
KINDS = {
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "linear_attention": MAMBA,
    "attention": ATTENTION,
    "full_attention": ATTENTION,
    "moe": MOE,
    "mlp": MLPS,
}


def read_nemotron_h(f: Fields) -> tuple[BackboneConfig, MTPConfig | None]:
    """Raises ValueError naming a key that is missing, in conflict, or asks for what is not built."""
    eps = float(f.take("layer_norm_epsilon", "rms_norm_eps", "norm_eps", default=1e-5))
    f.expect("residual_in_fp32", value=False, why="the residual stream has the model's dtype")
    f.expect("mamba_hidden_act", value="silu", why="the released activation")
    f.expect("mlp_hidden_act", "hidden_act", value="relu2", why="the released activation")
    limit = f.take("time_step_limit", "mamba_dt_limit", default=(0.0, math.inf))
    if [_infinity(edge) for edge in limit] != [0.0, math.inf]:
        raise ValueError(f"{f.where}: time_step_limit is {limit}, only (0, inf) is supported (as released)")
    depth = f.take("num_nextn_predict_layers", default=0)
    blocks = _read_blocks(f, "")
    ahead = _read_blocks(f, "mtp_", "*E") if depth else ()
    f.used |= {f"mtp_{name}" for name in LAYERS} | {"omni_mtp_blocks"}
    count = f.take("num_hidden_layers", default=len(blocks))
    if count != len(blocks):
        raise ValueError(f"{f.where}: num_hidden_layers is {count}, the pattern has {len(blocks)}; make them agree")
    backbone = BackboneConfig(
        width=f.take("hidden_size"),
        vocabulary=f.take("vocab_size"),
        blocks=blocks,
        eps=eps,
        tied=f.take("tie_word_embeddings", default=False),
    )
    f.used |= TEXT_INERT | SETTINGS
    return backbone, MTPConfig(blocks=ahead, depth=depth) if depth else None


def _infinity(edge: Any) -> Any:
    written = edge.get("__float__") if isinstance(edge, Mapping) else edge
    return math.inf if str(written).lower() in ("inf", "infinity") else written


LAYERS = ("layers_block_type", "hybrid_override_pattern", "block_configs")


def _read_blocks(f: Fields, prefix: str, default: str | None = None) -> tuple[BlockConfig, ...]:
    """One config a layer, of the backbone ("") or of multi-token prediction ("mtp_")."""
    names = [prefix + name for name in LAYERS]
    own, children = (f.take(name, default=[], kind=list) for name in (f"omni_{prefix}blocks", names[2]))
    if own:
        f.used |= set(names)
        return tuple(_block_from_dict(block, f.where) for block in own)
    sections = [Fields(child, f"{f.where}: {names[2]}[{layer}]") for layer, child in enumerate(children)]
    pattern = _read_pattern(f, names, [section.take("block_type", kind=str) for section in sections], default)
    if sections:
        return tuple(_read_child(f, section, kind) for section, kind in zip(sections, pattern, strict=True))
    made = {kind: READERS[kind](f) for kind in dict.fromkeys(pattern)}
    return tuple(made[kind] for kind in pattern)


def _read_pattern(f: Fields, names: list[str], kinds: list[Any], default: str | None) -> str:
    """Layers as a list of kinds, as a pattern, or as Puzzle's sections: all that are given must agree."""
    listed, written = f.take(names[0], default=[], kind=list), f.take(names[1], default="")
    patterns: dict[str, str] = {}
    for name, words in ((names[0], listed), (names[2], kinds)):
        unknown = [word for word in words if not isinstance(word, str) or word not in KINDS]
        if unknown:
            raise ValueError(f"{f.where}: {name} holds {unknown}; known are {sorted(KINDS)}")
        if words:
            patterns[name] = "".join(KINDS[word] for word in words)
    if written:
        patterns[names[1]] = written.replace("|", "")
        unknown = sorted(set(patterns[names[1]]) - set(READERS))
        if unknown:
            raise ValueError(f"{f.where}: {names[1]} {written!r} holds {unknown}; known are M * E -")
    if not patterns and default is None:
        raise ValueError(f"{f.where}: {' / '.join(names)} is missing; add the kinds of the layers")
    if len(set(patterns.values())) > 1:
        raise ValueError(f"{f.where}: {' and '.join(patterns)} disagree ({patterns}); keep one of them")
    return next(iter(patterns.values()), default or "")


def _read_child(f: Fields, section: Fields, kind: str) -> BlockConfig:
    """A layer of Puzzle's: its own settings before the model's."""
    both = Fields(f.values | section.values, section.where)
    block = READERS[kind](both)
    f.used |= both.used
    section.used |= both.used
    section.done()
    return block


ALIASES = {
    "groups": ("n_groups", "mamba_n_groups", "mamba_num_groups"),
    "state": ("ssm_state_size", "mamba_state_dim", "mamba_d_state"),
    "taps": ("conv_kernel", "mamba_d_conv"),
    "chunk": ("chunk_size", "mamba_chunk_size"),
    "mamba_heads": ("mamba_num_heads", "mamba_n_heads"),
    "conv_bias": ("use_conv_bias", "mamba_conv_bias"),
    "experts": ("n_routed_experts", "num_local_experts"),
}


def _read_mamba(f: Fields) -> MambaConfig:
    return MambaConfig(
        heads=f.take(*ALIASES["mamba_heads"]),
        head_dim=f.take("mamba_head_dim"),
        state=f.take(*ALIASES["state"]),
        groups=f.take(*ALIASES["groups"]),
        taps=f.take(*ALIASES["taps"], default=4),
        chunk=f.take(*ALIASES["chunk"], default=128),
        conv_bias=f.take(*ALIASES["conv_bias"], default=True),
        bias=any([f.take("use_bias", default=False), f.take("mamba_proj_bias", default=False)]),
    )


def _read_attention(f: Fields) -> AttentionConfig:
    heads = f.take("num_attention_heads")
    return AttentionConfig(
        heads=heads,
        kv_heads=f.take("num_key_value_heads", default=heads),
        head_dim=f.take("head_dim", "attention_head_dim", default=0) or f.take("hidden_size") // heads,
        window=f.take("sliding_window", default=None, kind=int),
        bias=f.take("attention_bias", default=False),
    )


def _read_mlp(f: Fields) -> MLPConfig:
    return MLPConfig(hidden=f.take("intermediate_size"), bias=f.take("mlp_bias", default=False))


def _read_moe(f: Fields) -> MoEConfig:
    shared = f.take("moe_shared_expert_intermediate_size", default=0) * f.take("n_shared_experts", default=1)
    return MoEConfig(
        experts=f.take(*ALIASES["experts"]),
        top_k=f.take("num_experts_per_tok"),
        hidden=f.take("moe_intermediate_size"),
        shared=shared,
        latent=f.take("moe_latent_size", default=None, kind=int),
        scale=float(f.take("routed_scaling_factor", default=1.0)),
        router=f.take("omni_router", default="sigmoid"),
        normalize=f.take("norm_topk_prob", default=True),
        groups=f.take("n_group", default=1),
        top_groups=f.take("topk_group", default=1),
        bias=f.take("mlp_bias", default=False),
    )


SETTINGS = frozenset(  # of all kinds of layers; those of a kind that a model has none of are left over
    """mamba_head_dim mamba_proj_bias use_bias num_attention_heads num_key_value_heads head_dim attention_head_dim
        sliding_window attention_bias num_experts_per_tok moe_intermediate_size moe_shared_expert_intermediate_size
        moe_latent_size routed_scaling_factor norm_topk_prob n_group topk_group omni_router intermediate_size
        mlp_bias""".split()
).union(*ALIASES.values())
READERS = {MAMBA: _read_mamba, ATTENTION: _read_attention, MOE: _read_moe, MLPS: _read_mlp}


def _block_from_dict(values: Any, where: str) -> BlockConfig:
    """One layer of a child whose layers differ; the form that `to_hf` writes."""
    kinds = {
        kind.__name__: kind for kind in (MambaConfig, AttentionConfig, MLPConfig, MoEConfig, LinearConfig, NoOpConfig)
    }
    settings = dict(Fields(values, f"{where}: omni_blocks").values)
    name = settings.pop("kind", None)
    if name not in kinds:
        raise ValueError(f"{where}: omni_blocks holds a layer of kind {name!r}; known are {sorted(kinds)}")
    if settings.get("rope"):
        settings["rope"] = RopeConfig(**settings["rope"])
    try:
        return kinds[name](**settings)
    except TypeError as error:
        raise ValueError(f"{where}: omni_blocks: {name}: {error}") from None


LETTERS: dict[type, str] = {MambaConfig: MAMBA, AttentionConfig: ATTENTION, MoEConfig: MOE, MLPConfig: MLPS}
TYPES = {MAMBA: "mamba", ATTENTION: "attention", MOE: "moe", MLPS: "mlp"}


def write_nemotron_h(b: BackboneConfig, mtp: MTPConfig | None) -> dict[str, Any]:
    """The settings of each kind of layer, and the layers in the plainest form that holds them."""
    ahead = mtp.blocks if mtp else ()
    blocks = (*b.blocks, *ahead)
    values: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": len(b.blocks),
        "layer_norm_epsilon": b.eps,
        "time_step_min": 1e-9,  # transformers clamps dt from below with it, in prefill only; 0 < it changes nothing
        "residual_in_fp32": False,
    }
    values |= {"num_nextn_predict_layers": mtp.depth} if mtp else {}
    first = {type(block): block for block in reversed(blocks)}  # of each kind
    for block in first.values():
        values |= _write_settings(block)
    feed_forwards = [block.bias for block in blocks if isinstance(block, MLPConfig | MoEConfig)]
    plain = len(set(feed_forwards)) <= 1 and not any(_is_ours_alone(block) for block in blocks)
    if plain and all(block == first[type(block)] for block in blocks):
        values["hybrid_override_pattern"] = "".join(LETTERS[type(block)] for block in b.blocks)
        values |= {"mtp_hybrid_override_pattern": "".join(LETTERS[type(block)] for block in ahead)} if mtp else {}
    elif plain and all(_common(block) == _common(first[type(block)]) for block in blocks):
        values |= {"architectures": ["NemotronHPuzzleForCausalLM"], "model_type": "nemotron_h_puzzle"}
        values["block_configs"] = [_write_child(block) for block in b.blocks]
        values |= {"mtp_block_configs": [_write_child(block) for block in ahead]} if mtp else {}
    else:
        values["omni_blocks"] = [_block_to_dict(block) for block in b.blocks]
        values |= {"omni_mtp_blocks": [_block_to_dict(block) for block in ahead]} if mtp else {}
    return values


def _is_ours_alone(block: BlockConfig) -> bool:
    """Whether upstream has no words for a layer of a hybrid."""
    return (
        type(block) not in LETTERS
        or (isinstance(block, AttentionConfig) and (block.rope is not None or block.sinks))
        or (isinstance(block, MLPConfig | MoEConfig) and block.gated)
        or (isinstance(block, MoEConfig) and (block.router_bias or block.expert_bias or not block.selection_bias))
    )


def _common(block: BlockConfig) -> dict[str, Any]:
    """What Puzzle's layers of a kind have in common; the rest is an expert layer's own."""
    own = ("experts", "top_k", "hidden", "shared", "latent") if isinstance(block, MoEConfig) else ()
    return {name: value for name, value in asdict(block).items() if name not in own}


def _write_settings(block: BlockConfig) -> dict[str, Any]:
    match block:
        case MambaConfig() as m:
            return {
                "mamba_num_heads": m.heads, "mamba_head_dim": m.head_dim, "ssm_state_size": m.state,
                "n_groups": m.groups, "conv_kernel": m.taps, "chunk_size": m.chunk, "use_conv_bias": m.conv_bias,
                "mamba_proj_bias": m.bias, "use_bias": m.bias,
            }  # fmt: skip
        case AttentionConfig() as a:
            return {
                "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
                "sliding_window": a.window, "attention_bias": a.bias,
            }  # fmt: skip
        case MoEConfig() as e:
            router = {} if e.router == "sigmoid" else {"omni_router": e.router}
            return router | _write_experts(e) | {
                "n_shared_experts": 1, "routed_scaling_factor": e.scale, "norm_topk_prob": e.normalize,
                "n_group": e.groups, "topk_group": e.top_groups, "mlp_bias": e.bias,
            }  # fmt: skip
        case MLPConfig() as f:
            return {"intermediate_size": f.hidden, "mlp_bias": f.bias}
        case LinearConfig() | NoOpConfig():
            return {}


def _write_experts(e: MoEConfig) -> dict[str, Any]:
    return {
        "n_routed_experts": e.experts, "num_experts_per_tok": e.top_k, "moe_intermediate_size": e.hidden,
        "moe_shared_expert_intermediate_size": e.shared, "moe_latent_size": e.latent,
    }  # fmt: skip


def _write_child(block: BlockConfig) -> dict[str, Any]:
    kind = {"block_type": TYPES[LETTERS[type(block)]]}
    return kind | (_write_experts(block) if isinstance(block, MoEConfig) else {})


def _block_to_dict(block: BlockConfig) -> dict[str, Any]:
    return {"kind": type(block).__name__, **asdict(block)}
