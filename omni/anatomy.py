"""Anatomy of a model from its config alone: parameters (total and active a token), cache a token, memory by dtype.

Counts come from the modules themselves, built without memory; active means touched for one token: the chosen experts
only, and the head, but one row of the input embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from omni.attention import AttentionConfig
from omni.backbone import Block, BlockConfig
from omni.config import OmniConfig
from omni.mamba import MambaConfig
from omni.model import OmniModel
from omni.moe import LinearConfig, MLPConfig, MoE, MoEConfig, NoOpConfig

LETTERS: dict[type, str] = {
    MambaConfig: "M",
    AttentionConfig: "*",
    MoEConfig: "E",
    MLPConfig: "-",
    LinearConfig: "L",
    NoOpConfig: ".",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """parts: parameters of each part of the model. active: parameters touched a token, without the input embedding.

    kv_elements: cache elements a token. state_elements: constant elements a sequence (float32).
    """

    pattern: str
    parts: dict[str, int]
    active: int
    embedding: int
    kv_elements: int
    state_elements: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parts.values())

    @property
    def language(self) -> int:
        """Parameters of the backbone, its embedding and its head."""
        return sum(self.parts[name] for name in ("embedding", "backbone", "head"))

    def bytes_at(self, bits: int | float) -> int:
        """Memory of all weights at so many bits each."""
        return int(self.total * bits / 8)

    def cache_bytes(self, tokens: int, element_bytes: int = 2) -> int:
        """Memory of one sequence of so many tokens: keys and values, and the constant float32 state."""
        return self.kv_elements * tokens * element_bytes + 4 * self.state_elements


def anatomy(config: OmniConfig) -> Anatomy:
    """Count a model without making it."""
    with torch.device("meta"):
        model = OmniModel(config)
    parts = {
        "embedding": _count(model.embeddings),
        "backbone": _count(model.backbone),
        "head": 0 if config.backbone.tied else _count(model.head),
        "vision": _count(model.vision) + _count(model.vision_norm),
        "vision projector": _count(model.project_vision),
        "audio": _count(model.audio),
        "audio projector": _count(model.project_audio),
        "multi-token prediction": _count(model.mtp),
    }
    active = _count(model.backbone.norm_f) + _count(model.head)
    active += sum(_active(block) for block in model.backbone.layers if isinstance(block, Block))
    return Anatomy(
        pattern=pattern(config.backbone.blocks),
        parts={name: count for name, count in parts.items() if count or name in ("embedding", "backbone", "head")},
        active=active,
        embedding=parts["embedding"],
        kv_elements=config.backbone.kv_size,
        state_elements=config.backbone.constant_size,
    )


def pattern(blocks: tuple[BlockConfig, ...]) -> str:
    """The layers as letters: M Mamba-2, * attention, E experts, - MLP, L linear, . left out."""
    return "".join(LETTERS[type(block)] for block in blocks)


def groups(blocks: tuple[BlockConfig, ...]) -> list[tuple[str, int]]:
    """Each distinct block config in order of appearance, as text, and how many layers have it."""
    texts = [f"{LETTERS[type(block)]} {block}" for block in blocks]
    order = list(dict.fromkeys(texts))
    counts = {text: len(list(run)) for text, run in groupby(sorted(texts))}
    return [(text, counts[text]) for text in order]


def _count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _active(block: Block) -> int:
    total = _count(block)
    if isinstance(block.mixer, MoE):
        c = block.mixer.config
        total -= _count(block.mixer.experts) * (c.experts - c.top_k) // c.experts
    return total
