"""Names of weights: ours → upstream's, per dialect. The first name of each list is dialect A, which is what we write.

Dialect A: every public checkpoint. Dialect B: later exports (`vision_projector.…`, the vision tower in Hugging Face's
ViT naming with split query, key and value). Dialect C: transformers' names in memory. Llama's keys for Llama and
Llama-Nemotron, gpt-oss's for gpt-oss and its Puzzle children.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from encoders.timm_tower import TimmConfig
from omni.config import OmniConfig
from omni.moe import MoEConfig


@dataclass(frozen=True, slots=True)
class Source:
    """Upstream keys of one of our tensors, put together along dim 0 by `join`.

    transposed: upstream has the last two axes the other way round. half: ours is every second row (of axis 1, after
    that) of a tensor shared with another of ours, from row 0 or row 1 on.
    """

    keys: tuple[str, ...]
    join: Literal["one", "stack", "cat"] = "one"
    transposed: bool = False
    half: Literal[0, 1] | None = None


def sources(name: str, config: OmniConfig) -> Iterator[Source]:
    """Where the tensor that we call `name` may come from, dialect A first."""
    root, _, rest = name.partition(".")
    language = "language_model." if config.vision or config.audio else ""
    match root:
        case "embeddings" | "head" | "backbone" if config.keys == "llama":
            for prefix in dict.fromkeys((language, "")):
                yield Source((prefix + _llama(name),))
        case "embeddings" | "head" | "backbone" if config.keys == "gpt_oss":
            yield from _gpt_oss(name)
        case "embeddings":
            for base in ("backbone", "model"):
                yield Source((f"{language}{base}.embeddings.{rest}",))
        case "head":
            yield Source((f"{language}lm_head.{rest}",))
        case "backbone":
            for base in ("backbone", "model"):
                yield from _mixers(f"{language}{base}.{rest}", _block(name, config))
        case "mtp":
            for prefix in dict.fromkeys(("", "language_model.")):
                yield from _mixers(prefix + _mtp(rest, config), _block(name, config))
        case "vision" if isinstance(config.vision, TimmConfig):
            yield Source((f"vision_model.timm_{rest}",))
        case "vision":
            yield Source((f"vision_model.radio_model.model.{rest}",))
            yield from _vit(rest)
        case "vision_norm":
            yield Source((f"vision_final_layernorm.{rest}",))  # in no public checkpoint; as transformers has it
            yield Source((f"vision_projector.vision_final_layernorm.{rest}",))
        case "project_vision":
            part, leaf = rest.split(".")
            yield Source((f"mlp1.{_MLP1[part]}.{leaf}",))
            yield Source((f"vision_projector.mlp1.{rest}",))
            yield Source((f"multi_modal_projector.{_PROJECTOR[part]}.{leaf}",))
        case "audio":
            yield Source((f"sound_encoder.encoder.{rest}",))
            yield Source((f"audio_tower.{rest}",))
        case "project_audio":
            part, leaf = rest.split(".")
            yield Source((f"sound_projection.{rest}",))
            yield Source((f"embed_audio.{_PROJECTOR[part]}.{leaf}",))
        case _:
            raise AssertionError(f"no upstream name for {name}")


_MLP1 = {"norm": 0, "linear1": 1, "linear2": 3}
_PROJECTOR = {"norm": "layer_norm", "linear1": "linear_1", "linear2": "linear_2"}


def _block(name: str, config: OmniConfig) -> object:
    """The config of the layer that a tensor belongs to, None outside the layers."""
    found = re.match(r"(backbone|mtp)\.layers\.(\d+)\.", name)
    if not found:
        return None
    blocks = config.backbone.blocks if found[1] == "backbone" else config.mtp.blocks if config.mtp else ()
    return blocks[int(found[2])]


def _mixers(key: str, block: object) -> Iterator[Source]:
    """Stacked experts are separate keys upstream (or stacked, in dialect C)."""
    found = re.fullmatch(r"(.*\.mixer\.experts)\.(\w+)", key)
    if found and isinstance(block, MoEConfig):
        yield Source(tuple(f"{found[1]}.{e}.{found[2]}.weight" for e in range(block.experts)), "stack")
    yield Source((key,))


def _mtp(rest: str, config: OmniConfig) -> str:
    """The norms and the projection in front are the first layer's upstream, the last norm the last layer's."""
    assert config.mtp
    part = rest.partition(".")[0]
    if part == "layers":
        return f"mtp.{rest}"
    return f"mtp.layers.{len(config.mtp.blocks) - 1 if part == 'final_layernorm' else 0}.{rest}"


_LLAMA = {
    "embeddings.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "backbone.norm_f.weight": "model.norm.weight",
}


def _llama(name: str) -> str:
    """Two of our blocks, attention and MLP, are one layer upstream."""
    if name in _LLAMA:
        return _LLAMA[name]
    found = re.fullmatch(r"backbone\.layers\.(\d+)\.(norm|mixer)\.(.*)", name)
    assert found, name
    layer, second = divmod(int(found[1]), 2)
    if found[2] == "norm":
        return f"model.layers.{layer}.{'post_attention_layernorm' if second else 'input_layernorm'}.{found[3]}"
    linear = found[3] in ("weight", "bias")
    part = (
        ("mlp.linear_mlp." if second else "self_attn.linear_attn.") if linear else ("mlp." if second else "self_attn.")
    )
    return f"model.layers.{layer}.{part}{found[3]}"


def _gpt_oss(name: str) -> Iterator[Source]:
    """Experts are stacked, input first; gate and up alternate in one tensor. Released in MXFP4, or plain."""
    key = _llama(name).replace(".mlp.gate.", ".mlp.router.")
    stem, _, leaf = key.rpartition(".")
    if not stem.endswith(".mlp.experts"):
        yield Source((key,))
        return
    half: Literal[0, 1] | None = {"gate": 0, "up": 1}.get(leaf.split("_")[0])  # pyright: ignore[reportAssignmentType]  (0 or 1)
    shared = f"{stem}.{'down_proj' if half is None else 'gate_up_proj'}"
    if leaf.endswith("_bias"):
        yield Source((f"{shared}_bias",), half=half)
        return
    yield Source((shared,), transposed=True, half=half)
    yield Source((f"{shared}_blocks",), half=half)


def _vit(rest: str) -> Iterator[Source]:
    """Dialects B and C of the vision tower."""
    fixed = {
        "patch_generator.embedder.weight": "embeddings.patch_projection.weight",
        "patch_generator.video_embedder.weight": "embeddings.video_patch_projection.weight",
        "patch_generator.pos_embed": "embeddings.position_embedding",
        "patch_generator.cls_token.token": "embeddings.cls_register_token",
    }
    for prefix in ("vision_model.", "vision_model.model."):
        if rest in fixed:
            yield Source((prefix + fixed[rest],))
            continue
        found = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", rest)
        assert found, rest
        layer, leaf = f"{prefix}encoder.layer.{found[1]}.", found[3]
        if found[2] == "attn.qkv":
            for names in (("query", "key", "value"), ("q_proj", "k_proj", "v_proj")):
                for attention in ("attention.attention.", "attention."):
                    yield Source(tuple(f"{layer}{attention}{name}.{leaf}" for name in names), "cat")
        else:
            for part in _VIT[found[2]]:
                yield Source((f"{layer}{part}.{leaf}",))


_VIT = {
    "norm1": ("layernorm_before", "norm1"),
    "norm2": ("layernorm_after", "norm2"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
