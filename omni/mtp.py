"""Multi-token prediction: one small block that predicts the token after next, applied again for those further ahead.

u = W_eh [RMSNorm_e(embedding of the next token); RMSNorm_h(hidden)], hidden' = RMSNorm_f(Block(u)), Block = `*E` in
Super. The embedding and the head are the backbone's. Source: Nemotron 3 Super (arXiv 2604.12374, section 2: shared
weights over the depths), after DeepSeek-V3 (arXiv 2412.19437, section 2.2). The first hidden is the backbone's after
its final norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni.backbone import Block, BlockConfig, RMSNorm
from omni.ops import Lengths
from omni.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class MTPConfig:
    """The block's layers, and how many tokens ahead it was trained for (drafts may go further)."""

    blocks: tuple[BlockConfig, ...]
    depth: int = 1

    def __post_init__(self) -> None:
        if not self.blocks or self.depth < 1:
            raise ValueError(f"MTPConfig: {len(self.blocks)} layers, depth {self.depth}; want at least one of each")


class MTP(nn.Module):
    """The block and its norms; embedding and head are the backbone's and are passed in as tensors."""

    def __init__(self, config: MTPConfig, width: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.enorm = RMSNorm(width, eps)
        self.hnorm = RMSNorm(width, eps)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList(Block(block, width, eps) for block in config.blocks)
        self.final_layernorm = RMSNorm(width, eps)

    def new_state(self, sequences: int = 1, dtype: torch.dtype | None = None) -> State:
        """An empty memory of its own: the block attends over what it has read itself."""
        weight = self.final_layernorm.weight
        return State(
            tuple(block.new_state(sequences, weight.device, dtype or weight.dtype) for block in self._blocks()),
            [0] * sequences,
        )

    def forward(
        self,
        following: Float[Tensor, "tokens width"],
        hidden: Float[Tensor, "tokens width"],
        lengths: Lengths,
        state: State | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """One step ahead: hidden of position t and the embedding of the token that follows it → the next hidden.

        The head reads logits of the token after `following` from the result, and the next step takes it as `hidden`.
        """
        x = self.eh_proj(torch.cat((self.enorm(following), self.hnorm(hidden)), -1))
        for block, memory in zip(self._blocks(), state.layers if state else (None,) * len(self.layers), strict=True):
            x = block(x, lengths, memory)
        if state is not None:
            state.advance(lengths)
        return self.final_layernorm(x)

    def _blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]
