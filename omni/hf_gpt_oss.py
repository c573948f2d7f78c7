"""gpt-oss's config.json ↔ ours, and its Puzzle children: each layer its own number of experts and its own window.

Sources: gpt-oss (arXiv 2508.10925), gpt-oss-puzzle (arXiv 2602.11937).
"""

from __future__ import annotations

from typing import Any

from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.fields import TEXT_INERT, Fields
from omni.hf_rope import read_rope, write_rope
from omni.moe import MoEConfig

SLIDING, FULL = "sliding_attention", "full_attention"


def read_gpt_oss(f: Fields) -> BackboneConfig:
    """Each layer is an attention block with sinks and a block of experts.

    Raises ValueError naming a key that is missing, in conflict, or asks for what is not built.
    """
    f.expect("hidden_act", value="silu", why="gpt-oss's activation")
    f.expect("attention_bias", value=True, why="as released")
    f.expect("swiglu_alpha", value=1.702, why="as released")
    width, heads, count = f.take("hidden_size"), f.take("num_attention_heads"), f.take("num_hidden_layers")
    if not f.has("rope_scaling") and not f.has("rope_parameters"):
        raise ValueError(f"{f.where}: rope_scaling is missing; say which (plain rotary positions: rope_type default)")
    rope, limit = read_rope(f, 150000.0), float(f.take("swiglu_limit", default=7.0))
    hidden, top_k = f.take("intermediate_size"), f.take("num_experts_per_tok", "experts_per_token")
    blocks: list[BlockConfig] = []
    for window, experts in _read_layers(f, count):
        blocks.append(
            AttentionConfig(
                heads=heads,
                kv_heads=f.take("num_key_value_heads"),
                head_dim=f.take("head_dim", default=0) or width // heads,
                rope=rope,
                window=window,
                bias=True,
                sinks=True,
            )
        )
        blocks.append(
            MoEConfig(
                experts=experts,
                top_k=top_k,
                hidden=hidden,
                router="softmax",
                gated=True,
                selection_bias=False,
                router_bias=True,
                expert_bias=True,
                clamp=limit,
            )
        )
    f.used |= TEXT_INERT | {"initial_context_length", "router_aux_loss_coef"}
    return BackboneConfig(
        width=width,
        vocabulary=f.take("vocab_size"),
        blocks=tuple(blocks),
        eps=float(f.take("rms_norm_eps", default=1e-5)),
        tied=f.take("tie_word_embeddings", default=False),
    )


def _read_layers(f: Fields, count: int) -> list[tuple[int | None, int]]:
    """Window and number of experts of each layer: the parent's windows alternate, a child says its own."""
    children, types = (f.take(name, default=None, kind=list) for name in ("block_configs", "layer_types"))
    window = f.take("sliding_window", default=None, kind=int)
    experts = f.take("num_local_experts", "num_experts", default=None, kind=int)
    if children is None:
        types = types or [FULL if layer % 2 else SLIDING for layer in range(count)]
        children = [{"sliding_window": window if kind == SLIDING else None} for kind in types]
    layers: list[tuple[int | None, int]] = []
    for layer, child in enumerate(children):
        section = Fields(child, f"{f.where}: block_configs[{layer}]")
        own = section.take("num_local_experts", default=experts, kind=int)
        layers.append((section.take("sliding_window", default=None, kind=int), own))
        section.done()
        if own is None:
            raise ValueError(f"{section.where}: num_local_experts is missing; add it to the config")
    said = [FULL if window is None else SLIDING for window, _ in layers]
    if len(layers) != count or (types and types != said):
        raise ValueError(
            f"{f.where}: num_hidden_layers is {count}, layer_types {types}, the layers' windows "
            f"{[window for window, _ in layers]}; make them agree"
        )
    return layers


def write_gpt_oss(b: BackboneConfig) -> dict[str, Any]:
    """The parent's form where all layers allow it, else Puzzle's.

    Raises ValueError for layers that gpt-oss does not have.
    """
    pairs = list(zip(b.blocks[::2], b.blocks[1::2], strict=True))
    windows = [a.window for a, _ in pairs if isinstance(a, AttentionConfig)]
    experts = [e.experts for _, e in pairs if isinstance(e, MoEConfig)]
    a, e = pairs[0]
    if not isinstance(a, AttentionConfig) or not isinstance(e, MoEConfig) or a.rope is None or e.clamp is None:
        raise ValueError(
            "to_hf: a gpt-oss config wants attention with rotary positions and clamped experts in each layer"
        )
    values: dict[str, Any] = {
        "num_hidden_layers": len(pairs),
        "rms_norm_eps": b.eps,
        "hidden_act": "silu",
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "attention_bias": True,
        "intermediate_size": e.hidden,
        "num_experts_per_tok": e.top_k,
        "swiglu_limit": e.clamp,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
        **write_rope(a.rope),
    }
    values["rope_scaling"] = values["rope_scaling"] or {"rope_type": "default"}  # unsaid, transformers takes YaRN's
    lengths = {window for window in windows if window is not None}
    if len(set(experts)) == 1 and len(lengths) <= 1:
        kind = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
        values |= {**kind, "num_local_experts": experts[0], "sliding_window": next(iter(lengths), None)}
    else:
        values |= {"architectures": ["GptOssPuzzleForCausalLM"], "model_type": "gpt_oss_puzzle"}
        values["block_configs"] = [
            {"num_local_experts": own, "sliding_window": window} for window, own in zip(windows, experts, strict=True)
        ]
    if read_gpt_oss(Fields({"hidden_size": b.width, "vocab_size": b.vocabulary} | values, "to_hf")).blocks != b.blocks:
        raise ValueError("to_hf: these layers differ in more than windows and experts; gpt-oss has no words for that")
    return values
