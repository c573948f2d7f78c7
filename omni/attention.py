"""Attention without positions, grouped queries; with rotary positions or a window where a config says so.

Source: Nemotron-H (arXiv 2504.03624, section 2): no positional embedding, since the Mamba layers know the order.
Llama-Nemotron (arXiv 2505.00949) uses RoPE with Llama 3's scaling; gpt-oss (arXiv 2508.10925) and Puzzle's children of
it (arXiv 2602.11937) RoPE with YaRN's, a window in some layers, and sinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni.kernels import causal_attention
from omni.ops import Lengths, rope_frequencies, rotate
from omni.state import KVState


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions; `original` > 0 turns on scaling beyond that many positions: Llama 3's, or YaRN's."""

    theta: float = 10000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 1.0
    original: int = 0
    yarn: bool = False

    def __post_init__(self) -> None:
        if self.theta <= 0 or self.factor <= 0 or (self.original and not 0 < self.low < self.high):
            raise ValueError(f"RopeConfig: {self} does not fit; want theta > 0, factor > 0 and 0 < low < high")

    @property
    def amplitude(self) -> float:
        """What YaRN scales queries and keys by, so that attention over a longer context stays as sharp."""
        return 1 + 0.1 * math.log(self.factor) if self.yarn else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """heads share kv_heads keys and values.

    `window` counts the positions seen, the query's own included (None: all). With `sinks`, each head has a learned
    score that takes attention away from all keys (gpt-oss).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None = None
    window: int | None = None
    bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"AttentionConfig: {self.heads} heads over {self.kv_heads} KV heads of {self.head_dim}; "
                "heads must be a multiple of kv_heads, all positive"
            )
        if self.rope and self.head_dim % 2:
            raise ValueError(f"AttentionConfig: head_dim {self.head_dim} is odd; rotary positions need pairs")
        if self.window is not None and self.window < 1:
            raise ValueError(f"AttentionConfig: window {self.window}; want at least 1, or None for all positions")

    @property
    def state_size(self) -> int:
        """Elements kept a token."""
        return 2 * self.kv_heads * self.head_dim


class Attention(nn.Module):
    """One attention mixer over packed sequences."""

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(width, inner, bias=config.bias)
        self.k_proj = nn.Linear(width, kv, bias=config.bias)
        self.v_proj = nn.Linear(width, kv, bias=config.bias)
        self.o_proj = nn.Linear(inner, width, bias=config.bias)
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None

    def new_state(self, sequences: int, device: torch.device, dtype: torch.dtype) -> KVState:
        """An empty cache for a number of sequences, keys and values in `dtype`."""
        return KVState(sequences, self.config.kv_heads, self.config.head_dim, device, dtype)

    def forward(
        self, x: Float[Tensor, "tokens width"], lengths: Lengths, state: KVState | None
    ) -> Float[Tensor, "tokens width"]:
        """Attend within each sequence; with a state, also to what it read before."""
        size = self.config.head_dim
        q, k, v = (project(x).unflatten(-1, (-1, size)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.attend(q, k, v, lengths, state).flatten(-2))

    def attend(
        self,
        q: Float[Tensor, "tokens heads dim"],
        k: Float[Tensor, "tokens kv_heads dim"],
        v: Float[Tensor, "tokens kv_heads dim"],
        lengths: Lengths,
        state: KVState | None,
    ) -> Float[Tensor, "tokens heads dim"]:
        """What lies between the projections: positions, the cache, and each query's mean of values."""
        if self.config.rope:
            starts = state.lengths if state else [0] * len(lengths)
            spans = [torch.arange(s, s + n, device=q.device) for s, n in zip(starts, lengths, strict=True)]
            positions = torch.cat(spans)
            frequencies = self._frequencies(self.config.rope, q.device)
            amplitude = self.config.rope.amplitude
            q, k = rotate(q, positions, frequencies, amplitude), rotate(k, positions, frequencies, amplitude)
        if len(lengths) == 1:
            return self._attend_one(0, q, k, v, state)
        sequences = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), strict=True)
        return torch.cat([self._attend_one(i, *each, state) for i, each in enumerate(sequences)])

    def _attend_one(self, sequence: int, q: Tensor, k: Tensor, v: Tensor, state: KVState | None) -> Tensor:
        k, v = k.transpose(0, 1), v.transpose(0, 1)  # (kv_heads, tokens, dim)
        if state is not None:
            k, v = (held.to(q.dtype) for held in state.append(sequence, k, v))
        return causal_attention(q, k, v, self.config.window, sinks=self.sinks)

    def _frequencies(self, rope: RopeConfig, device: torch.device) -> Tensor:
        """Computed on use, not stored: a buffer would be rounded by a half-precision model."""
        scaling = (rope.factor, rope.low, rope.high, rope.original, rope.yarn)
        return rope_frequencies(self.config.head_dim, rope.theta, *scaling).to(device)
