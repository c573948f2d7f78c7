"""Llama's and Llama-Nemotron's (DeciLM) config.json ↔ ours: each layer is an attention block and an MLP block.

A pruned child says in `block_configs` what stands in each place: fewer KV heads, a narrower MLP, one linear, nothing.
Source: Llama-Nemotron (arXiv 2505.00949), Puzzle (arXiv 2411.19146).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.fields import TEXT_INERT, Fields
from omni.hf_rope import read_rope, write_rope
from omni.moe import LinearConfig, MLPConfig, NoOpConfig


def read_llama(f: Fields) -> BackboneConfig:
    """Llama and its pruned children: each layer is an attention block and an MLP block.

    Raises ValueError naming a key that is missing, in conflict, or asks for what is not built.
    """
    width, heads, count = f.take("hidden_size"), f.take("num_attention_heads"), f.take("num_hidden_layers")
    f.expect("hidden_act", value="silu", why="Llama's activation")
    attention = AttentionConfig(
        heads=heads,
        kv_heads=f.take("num_key_value_heads", default=heads),
        head_dim=f.take("head_dim", default=0) or width // heads,
        rope=read_rope(f),
        window=f.take("sliding_window", default=None, kind=int),
        bias=f.take("attention_bias", default=False),
    )
    bias = f.take("mlp_bias", default=False)
    hidden = f.take("intermediate_size", default=0)
    children = f.take("block_configs", default=None, kind=list)
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


def _read_child_attention(f: Fields, parent: AttentionConfig) -> BlockConfig:
    none, linear = f.take("no_op", default=False), f.take("replace_with_linear", default=False)
    group, window = f.take("n_heads_in_group", default=0), f.take("window_length", default=None, kind=int)
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
    hidden, multiple = f.take("intermediate_size", default=0), f.take("ffn_mult", default=0.0)
    if f.take("sparsify", default=None):
        raise ValueError(f"{f.where}: sparsify is set, which is not supported; want it unset")
    f.done(frozenset({"hidden_act", "gated", "moe"}))
    if none or linear:
        return NoOpConfig() if none else LinearConfig()
    if not hidden and not multiple:
        raise ValueError(f"{f.where}: ffn_mult is missing; set it, no_op or replace_with_linear")
    hidden = hidden or -(-int(2 * multiple * width / 3) // 256) * 256  # up to a multiple of 256, as DeciLM does
    return MLPConfig(hidden=hidden, gated=True, bias=bias)


def write_llama(b: BackboneConfig) -> dict[str, Any]:
    """Llama's form where all layers are alike, else DeciLM's. Raises ValueError without a layer of attention."""
    pairs = list(zip(b.blocks[::2], b.blocks[1::2], strict=True))
    attention = next((x for x in b.blocks if isinstance(x, AttentionConfig)), None)
    if attention is None or attention.rope is None:
        raise ValueError("to_hf: a Llama config needs at least one attention layer with rotary positions")
    values: dict[str, Any] = {
        "num_hidden_layers": len(pairs),
        "rms_norm_eps": b.eps,
        "hidden_act": "silu",
        "num_attention_heads": attention.heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.bias,
        **write_rope(attention.rope),
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
