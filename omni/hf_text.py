"""Language configs: upstream's names ↔ ours, for Nemotron-H (Nano 2, Nano 3, Super), Llama and Llama-Nemotron (DeciLM).

Every key of a config.json is either used, known to change nothing, or refused by name; two aliases that disagree are
refused too. A child whose layers differ is written with `omni_blocks` (and `omni_mtp_blocks`), one typed config a
layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.config import OmniConfig
from omni.mamba import MambaConfig
from omni.moe import LinearConfig, MLPConfig, MoEConfig, NoOpConfig
from omni.mtp import MTPConfig


class Fields:
    """A section of a config.json, read key by key so that nothing is dropped in silence."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: {type(values).__name__} came, a section with names and values was wanted")
        self.values, self.where, self.used = dict(values), where, set[str]()

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(name) is not None

    def take(self, *names: str, default: Any = ...) -> Any:
        """The value under any of the names; all that are given must agree.

        A default makes it optional; null is absent.
        """
        self.used |= set(names)
        found = {name: self.values[name] for name in names if self.has(name)}
        if not found:
            if default is ...:
                raise ValueError(f"{self.where}: {' / '.join(names)} is missing; add it to the config")
            return default
        first = next(iter(found.values()))
        if any(value != first for value in found.values()):
            raise ValueError(f"{self.where}: {found} disagree though they mean the same; keep one of them")
        return first

    def expect(self, *names: str, value: Any, why: str) -> None:
        """A setting of which only one value is built."""
        got = self.take(*names, default=value)
        if got != value:
            raise ValueError(f"{self.where}: {' / '.join(names)} is {got!r}, only {value!r} is supported ({why})")

    def section(self, *names: str) -> Fields:
        """A section under any of the names, to be read key by key itself."""
        name = next((name for name in names if self.has(name)), names[0])
        return Fields(self.take(*names), f"{self.where}: {name}")

    def done(self, inert: frozenset[str] = frozenset()) -> None:
        """Refuse what was neither read nor is known to change nothing."""
        left = sorted(set(self.values) - self.used - inert - HOUSEKEEPING)
        if left:
            raise ValueError(
                f"{self.where}: unknown {', '.join(left)}; remove them if they change nothing, or this version "
                "of omni would compute something else than was trained"
            )


# Written by libraries around a model; none changes what it computes.
HOUSEKEEPING = frozenset(
    """architectures auto_map dtype torch_dtype transformers_version _name_or_path model_type
        return_dict use_cache output_attentions output_hidden_states output_router_logits
        use_return_dict chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder
        is_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder pruned_heads
        finetuning_task task_specific_params tokenizer_class prefix sep_token_id
        decoder_start_token_id torchscript use_bfloat16 tf_legacy_loss quantization_config
        _attn_implementation attn_implementation version max_new_tokens name licence license""".split()
)
TEXT_INERT = frozenset(
    """max_position_embeddings initializer_range rescale_prenorm_residual num_logits_to_keep
        use_mamba_kernels mamba_ssm_cache_dtype attention_dropout hidden_dropout rope_theta
        partial_rotary_factor rope_parameters rope_scaling time_step_min time_step_max
        time_step_floor mamba_dt_min mamba_dt_max mamba_dt_init_floor expand mamba_expand
        num_hidden_layers norm_eps moe_shared_expert_overlap n_shared_experts keep_in_fp32
        attn_layer_period layer_types num_attention_heads_mamba calc_logits_entropy""".split()
)
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


def read_text(fields: Fields) -> tuple[BackboneConfig, MTPConfig | None, Literal["nemotron_h", "llama"]]:
    """The language part of a config.json, and the family of its keys."""
    llama = fields.values.get("model_type") in ("llama", "nemotron-nas", "deci", "deci_lm") or (
        fields.has("rms_norm_eps") and not fields.has("layer_norm_epsilon")
    )
    if llama:
        return _read_llama(fields), None, "llama"
    return *_read_nemotron_h(fields), "nemotron_h"


def read_ids(fields: Fields) -> tuple[int | None, tuple[int, ...], int | None]:
    """The ids of the beginning, the ends, and padding."""
    eos = fields.take("eos_token_id", default=2)
    return (
        fields.take("bos_token_id", default=None),
        tuple(eos) if isinstance(eos, list | tuple) else (int(eos),),
        fields.take("pad_token_id", default=None),
    )


def _read_nemotron_h(f: Fields) -> tuple[BackboneConfig, MTPConfig | None]:
    eps = float(f.take("layer_norm_epsilon", "rms_norm_eps", default=1e-5))
    f.expect("residual_in_fp32", value=False, why="the residual stream has the model's dtype")
    f.expect("mamba_hidden_act", value="silu", why="the released activation")
    f.expect("mlp_hidden_act", value="relu2", why="the released activation")
    limit = f.take("time_step_limit", "mamba_dt_limit", default=(0.0, math.inf))
    low, high = (_infinity(edge) for edge in limit)
    if (low, high) != (0.0, math.inf):
        raise ValueError(f"{f.where}: time_step_limit is {limit}, only (0, inf) is supported (as released)")
    own, own_mtp = f.take("omni_blocks", default=None), f.take("omni_mtp_blocks", default=None)
    layers = _read_pattern(f, "layers_block_type", "hybrid_override_pattern") if own is None else ""
    depth = f.take("num_nextn_predict_layers", default=0)
    ahead = _read_pattern(f, "mtp_layers_block_type", "mtp_hybrid_override_pattern", default="*E")
    ahead = ahead if depth and own_mtp is None else ""
    kinds: dict[str, BlockConfig] = {}
    used = set(layers) | set(ahead)
    make = {MAMBA: _read_mamba, ATTENTION: _read_attention, MOE: _read_moe, MLPS: _read_mlp}
    for kind, read in make.items():
        if kind in used:
            kinds[kind] = read(f)
        else:
            _skip(f, kind)
    made = tuple(_block_from_dict(block, f.where) for block in own or ()) or tuple(kinds[kind] for kind in layers)
    made_mtp = tuple(_block_from_dict(block, f.where) for block in own_mtp or ()) or tuple(kinds[k] for k in ahead)
    count = f.take("num_hidden_layers", default=len(made))
    if count != len(made):
        raise ValueError(f"{f.where}: num_hidden_layers is {count}, the pattern has {len(made)}; make them agree")
    backbone = BackboneConfig(
        width=f.take("hidden_size"),
        vocabulary=f.take("vocab_size"),
        blocks=made,
        eps=eps,
        tied=f.take("tie_word_embeddings", default=False),
    )
    f.used |= TEXT_INERT
    return backbone, MTPConfig(blocks=made_mtp, depth=depth) if depth else None


def _infinity(edge: Any) -> float:
    return float(edge["__float__"]) if isinstance(edge, Mapping) else float(edge)


def _read_pattern(f: Fields, list_name: str, pattern_name: str, default: str | None = None) -> str:
    """Layers as a list of kinds or as a pattern string; both may be given and must agree."""
    patterns: list[str] = []
    if (names := f.take(list_name, default=None)) is not None:
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise ValueError(f"{f.where}: {list_name} holds {unknown}; known are {sorted(KINDS)}")
        patterns.append("".join(KINDS[name] for name in names))
    if (pattern := f.take(pattern_name, default=None)) is not None:
        pattern = pattern.replace("|", "")
        unknown = sorted(set(pattern) - set(KINDS.values()))
        if unknown:
            raise ValueError(f"{f.where}: {pattern_name} {pattern!r} holds {unknown}; known are M * E -")
        patterns.append(pattern)
    if not patterns and default is not None:
        return default
    if not patterns:
        raise ValueError(f"{f.where}: {list_name} / {pattern_name} is missing; add the kinds of the layers")
    if len(set(patterns)) > 1:
        raise ValueError(f"{f.where}: {list_name} and {pattern_name} disagree ({patterns}); keep one of them")
    return patterns[0]


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
        head_dim=f.take("head_dim", "attention_head_dim", default=0) or f.values["hidden_size"] // heads,
        window=f.take("sliding_window", default=None),
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
        latent=f.take("moe_latent_size", default=None),
        scale=float(f.take("routed_scaling_factor", default=1.0)),
        router=f.take("omni_router", default="sigmoid"),
        normalize=f.take("norm_topk_prob", default=True),
        groups=f.take("n_group", default=1),
        top_groups=f.take("topk_group", default=1),
        bias=f.take("mlp_bias", default=False),
    )


def _skip(f: Fields, kind: str) -> None:
    """Settings of a kind of layer that the model has none of: read and unused."""
    names = {
        MAMBA: ("mamba_head_dim", "mamba_proj_bias", "use_bias", *(n for k in list(ALIASES)[:6] for n in ALIASES[k])),
        ATTENTION: (
            *("num_attention_heads", "num_key_value_heads", "head_dim", "attention_head_dim"),
            *("sliding_window", "attention_bias"),
        ),
        MOE: (
            *ALIASES["experts"],
            *("num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
            *("moe_latent_size", "routed_scaling_factor", "norm_topk_prob", "n_group", "topk_group", "omni_router"),
        ),
        MLPS: ("intermediate_size", "mlp_bias"),
    }
    f.used |= set(names[kind])


def _block_from_dict(values: Any, where: str) -> BlockConfig:
    """One layer of a child whose layers differ; the form that `to_hf` writes."""
    kinds = {
        kind.__name__: kind for kind in (MambaConfig, AttentionConfig, MLPConfig, MoEConfig, LinearConfig, NoOpConfig)
    }
    settings = dict(values)
    name = settings.pop("kind", None)
    if name not in kinds:
        raise ValueError(f"{where}: omni_blocks holds a layer of kind {name!r}; known are {sorted(kinds)}")
    if settings.get("rope"):
        settings["rope"] = RopeConfig(**settings["rope"])
    try:
        return kinds[name](**settings)
    except TypeError as error:
        raise ValueError(f"{where}: omni_blocks: {name}: {error}") from None


def _read_llama(f: Fields) -> BackboneConfig:
    """Llama and its pruned children: each layer is an attention block and an MLP block."""
    width, heads, count = f.take("hidden_size"), f.take("num_attention_heads"), f.take("num_hidden_layers")
    f.expect("hidden_act", value="silu", why="Llama's activation")
    attention = AttentionConfig(
        heads=heads,
        kv_heads=f.take("num_key_value_heads", default=heads),
        head_dim=f.take("head_dim", default=0) or width // heads,
        rope=_read_rope(f),
        window=f.take("sliding_window", default=None),
        bias=f.take("attention_bias", default=False),
    )
    bias = f.take("mlp_bias", default=False)
    hidden = f.take("intermediate_size", default=0)
    children = f.take("block_configs", default=None)
    blocks: list[BlockConfig] = []
    if children is None:
        if not hidden:
            raise ValueError(f"{f.where}: intermediate_size is missing; add it to the config")
        blocks = [attention, MLPConfig(hidden=hidden, gated=True, bias=bias)] * count
    else:
        if len(children) != count:
            raise ValueError(f"{f.where}: num_hidden_layers is {count}, block_configs has {len(children)}")
        for layer, child in enumerate(children):
            section = Fields(child, f"{f.where}: block_configs[{layer}]")
            blocks.append(_read_child_attention(section.section("attention"), attention))
            blocks.append(_read_child_mlp(section.section("ffn", "mlp"), width, bias))
            section.done(frozenset({"parallel_blocks"}))
    f.used |= TEXT_INERT | {"pretraining_tp", "num_key_value_heads_per_layer"}
    return BackboneConfig(
        width=width,
        vocabulary=f.take("vocab_size"),
        blocks=tuple(blocks),
        eps=float(f.take("rms_norm_eps", default=1e-6)),
        tied=f.take("tie_word_embeddings", default=False),
    )


def _read_rope(f: Fields) -> RopeConfig:
    scaling = dict(f.take("rope_scaling", default=None) or {})
    scaling |= dict(f.take("rope_parameters", default=None) or {})
    theta = f.take("rope_theta", default=None) or scaling.pop("rope_theta", 10000.0)
    scaling.pop("rope_theta", None)
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind == "default":
        return RopeConfig(theta=float(theta))
    if kind != "llama3":
        raise ValueError(f"{f.where}: rope type {kind!r}; known are 'default' and 'llama3'")
    rope = Fields(scaling, f"{f.where}: rope_scaling")
    made = RopeConfig(
        theta=float(theta),
        factor=float(rope.take("factor")),
        low=float(rope.take("low_freq_factor")),
        high=float(rope.take("high_freq_factor")),
        original=int(rope.take("original_max_position_embeddings")),
    )
    rope.done()
    return made


def _read_child_attention(f: Fields, parent: AttentionConfig) -> BlockConfig:
    none, linear = f.take("no_op", default=False), f.take("replace_with_linear", default=False)
    group, window = f.take("n_heads_in_group", default=None), f.take("window_length", default=None)
    for name in ("sparsify", "num_sink_tokens", "unshifted_sink", "use_prefill_window_in_sink_attention"):
        if f.take(name, default=None):
            raise ValueError(f"{f.where}: {name} is set, which is not supported; want it unset")
    f.done(frozenset({"num_key_value_heads", "llama4", "mamba", "moe"}))
    if none or linear:
        return NoOpConfig() if none else LinearConfig()
    if not group:
        raise ValueError(f"{f.where}: n_heads_in_group is missing; set it, no_op or replace_with_linear")
    return replace(parent, kv_heads=parent.heads // group, window=window)


def _read_child_mlp(f: Fields, width: int, bias: bool) -> BlockConfig:
    none, linear = f.take("no_op", default=False), f.take("replace_with_linear", default=False)
    hidden, multiple = f.take("intermediate_size", default=None), f.take("ffn_mult", default=None)
    if f.take("sparsify", default=None):
        raise ValueError(f"{f.where}: sparsify is set, which is not supported; want it unset")
    f.done(frozenset({"hidden_act", "gated", "moe"}))
    if none or linear:
        return NoOpConfig() if none else LinearConfig()
    if not hidden and not multiple:
        raise ValueError(f"{f.where}: ffn_mult is missing; set it, no_op or replace_with_linear")
    hidden = hidden or -(-int(2 * multiple * width / 3) // 256) * 256  # up to a multiple of 256, as DeciLM does
    return MLPConfig(hidden=hidden, gated=True, bias=bias)


def write_text(c: OmniConfig) -> dict[str, Any]:
    """The language part of a config.json, in upstream's names."""
    b = c.backbone
    head: dict[str, Any] = {
        "hidden_size": b.width,
        "vocab_size": b.vocabulary,
        "tie_word_embeddings": b.tied,
        "bos_token_id": c.bos,
        "eos_token_id": list(c.eos),
        "pad_token_id": c.pad,
    }
    return head | (_write_llama(b) if c.keys == "llama" else _write_nemotron_h(b, c.mtp))


def _write_nemotron_h(b: BackboneConfig, mtp: MTPConfig | None) -> dict[str, Any]:
    blocks = [*b.blocks, *(mtp.blocks if mtp else ())]
    letters: dict[type, str] = {MambaConfig: MAMBA, AttentionConfig: ATTENTION, MoEConfig: MOE, MLPConfig: MLPS}
    one = {kind: next((block for block in blocks if type(block) is kind), None) for kind in letters}
    values: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": len(b.blocks),
        "layer_norm_epsilon": b.eps,
        "time_step_min": 1e-9,  # transformers clamps dt from below with it, in prefill only; 0 < it changes nothing
        "residual_in_fp32": False,
    }
    m, a, e, f = (one[kind] for kind in letters)
    if isinstance(m, MambaConfig):
        values |= {"mamba_num_heads": m.heads, "mamba_head_dim": m.head_dim, "ssm_state_size": m.state}
        values |= {"n_groups": m.groups, "conv_kernel": m.taps, "chunk_size": m.chunk, "use_conv_bias": m.conv_bias}
        values |= {"mamba_proj_bias": m.bias, "use_bias": m.bias}
    if isinstance(a, AttentionConfig):
        values |= {"num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim}
        values |= {"sliding_window": a.window, "attention_bias": a.bias}
    if isinstance(e, MoEConfig):
        values |= {"n_routed_experts": e.experts, "num_experts_per_tok": e.top_k, "moe_intermediate_size": e.hidden}
        values |= {"moe_shared_expert_intermediate_size": e.shared, "n_shared_experts": 1, "moe_latent_size": e.latent}
        values |= {"routed_scaling_factor": e.scale, "norm_topk_prob": e.normalize, "n_group": e.groups}
        values |= {"topk_group": e.top_groups, "mlp_bias": e.bias}
        values |= {} if e.router == "sigmoid" else {"omni_router": e.router}
    if isinstance(f, MLPConfig):
        values |= {"intermediate_size": f.hidden, "mlp_bias": f.bias}
    if mtp:
        values["num_nextn_predict_layers"] = mtp.depth
    uniform = all(one.get(type(block)) == block for block in blocks) and not any(
        (isinstance(x, AttentionConfig) and x.rope) or (isinstance(x, MLPConfig | MoEConfig) and x.gated)
        for x in blocks
    )
    biases = {block.bias for block in (e, f) if isinstance(block, MLPConfig | MoEConfig)}
    if uniform and len(biases) <= 1:
        values["hybrid_override_pattern"] = "".join(letters[type(block)] for block in b.blocks)
        values |= {"mtp_hybrid_override_pattern": "".join(letters[type(x)] for x in mtp.blocks)} if mtp else {}
    else:
        values["omni_blocks"] = [_block_to_dict(block) for block in b.blocks]
        values |= {"omni_mtp_blocks": [_block_to_dict(block) for block in mtp.blocks]} if mtp else {}
    return values


def _block_to_dict(block: BlockConfig) -> dict[str, Any]:
    return {"kind": type(block).__name__, **asdict(block)}


def _write_llama(b: BackboneConfig) -> dict[str, Any]:
    pairs = list(zip(b.blocks[::2], b.blocks[1::2], strict=True))
    attention = next((x for x in b.blocks if isinstance(x, AttentionConfig)), None)
    if attention is None or attention.rope is None:
        raise ValueError("to_hf: a Llama config needs at least one attention layer with rotary positions")
    rope = attention.rope
    parameters: dict[str, Any] = {"rope_type": "default"}
    if rope.original:
        parameters = {"rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low}
        parameters |= {"high_freq_factor": rope.high, "original_max_position_embeddings": rope.original}
    values: dict[str, Any] = {
        "num_hidden_layers": len(pairs),
        "rms_norm_eps": b.eps,
        "hidden_act": "silu",
        "num_attention_heads": attention.heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.bias,
        "rope_theta": rope.theta,
        "rope_scaling": parameters if rope.original else None,
    }
    mlps = [x for x in b.blocks if isinstance(x, MLPConfig)]
    values["mlp_bias"] = bool(mlps and mlps[0].bias)
    if len(set(pairs)) == 1 and isinstance(pairs[0][0], AttentionConfig) and isinstance(pairs[0][1], MLPConfig):
        plain = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "sliding_window": attention.window}
        return values | plain | {"num_key_value_heads": attention.kv_heads, "intermediate_size": pairs[0][1].hidden}
    children = [{"attention": _write_child_attention(a), "ffn": _write_child_mlp(f)} for a, f in pairs]
    return values | {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "block_configs": children}


def _write_child_attention(block: BlockConfig) -> dict[str, Any]:
    one = isinstance(block, AttentionConfig)
    return {
        "no_op": isinstance(block, NoOpConfig),
        "replace_with_linear": isinstance(block, LinearConfig),
        "n_heads_in_group": block.heads // block.kv_heads if one else None,
        "window_length": block.window if one else None,
    }


def _write_child_mlp(block: BlockConfig) -> dict[str, Any]:
    return {
        "no_op": isinstance(block, NoOpConfig),
        "replace_with_linear": isinstance(block, LinearConfig),
        "intermediate_size": block.hidden if isinstance(block, MLPConfig) else None,
    }
