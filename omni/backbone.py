"""The hybrid language backbone: x = x + mixer(norm(x)), layer by layer, one typed config a layer.

A released pattern, a pruned child with another width in each layer and a searched one with layers left out are all
just tuples of block configs. Sources: Nemotron-H (arXiv 2504.03624), Nemotron Nano 2 (arXiv 2508.14444), Puzzle
(arXiv 2411.19146).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omni.attention import Attention, AttentionConfig
from omni.kernels import fast, rms_norm
from omni.mamba import Mamba, MambaConfig
from omni.moe import MLP, LinearConfig, MLPConfig, MoE, MoEConfig, NoOpConfig
from omni.ops import Lengths
from omni.state import KVState, LayerState, MambaState, State

BlockConfig = MambaConfig | AttentionConfig | MLPConfig | MoEConfig | LinearConfig | NoOpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """width of the residual stream, entries of the vocabulary, and one block config a layer."""

    width: int
    vocabulary: int
    blocks: tuple[BlockConfig, ...]
    eps: float = 1e-5
    tied: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.vocabulary, len(self.blocks)) < 1:
            raise ValueError(
                f"BackboneConfig: width {self.width}, vocabulary {self.vocabulary}, {len(self.blocks)} blocks; "
                "all must be positive"
            )

    @property
    def kv_size(self) -> int:
        """Elements of the cache a token."""
        return sum(block.state_size for block in self.blocks if isinstance(block, AttentionConfig))

    @property
    def constant_size(self) -> int:
        """Elements of the state a sequence, whatever its length."""
        return sum(block.state_size for block in self.blocks if isinstance(block, MambaConfig))


class RMSNorm(nn.Module):
    """RMSNorm in float32, its weight included."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalise each row; shape and dtype stay."""
        return rms_norm(x, self.weight, self.eps)


def new_mixer(config: BlockConfig, width: int, eps: float) -> nn.Module | None:
    """The module that a block config describes; None for a no-op."""
    match config:
        case MambaConfig():
            return Mamba(config, width, eps)
        case AttentionConfig():
            return Attention(config, width)
        case MLPConfig():
            return MLP(config, width)
        case MoEConfig():
            return MoE(config, width)
        case LinearConfig():
            return nn.Linear(width, width, bias=config.bias)
        case NoOpConfig():
            return None


class Block(nn.Module):
    """One layer: x + mixer(norm(x)); a no-op block hands x on.

    step: a compiled kernel for one token, of (x, the layer's state), where there is one.
    """

    step: Callable[[Tensor, LayerState], Tensor] | None = None

    def __init__(self, config: BlockConfig, width: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.mixer = new_mixer(config, width, eps)
        self.norm = RMSNorm(width, eps) if self.mixer is not None else None

    def new_state(self, sequences: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """An empty memory of this layer; None where it keeps nothing."""
        if isinstance(self.mixer, Attention | Mamba):
            return self.mixer.new_state(sequences, device, dtype)
        return None

    def holds(self, state: LayerState) -> bool:
        """Whether a memory is of this layer's kind and sizes."""
        match self.mixer:
            case Attention(config=c):
                return isinstance(state, KVState) and state.keys[0].shape[::2] == (c.kv_heads, c.head_dim)
            case Mamba(config=c):
                wanted = (c.taps - 1, c.channels, c.heads, c.head_dim, c.state)
                return isinstance(state, MambaState) and (*state.history.shape[1:], *state.ssm.shape[1:]) == wanted
            case _:
                return state is None

    def forward(
        self, x: Float[Tensor, "tokens width"], lengths: Lengths, state: LayerState = None
    ) -> Float[Tensor, "tokens width"]:
        """Packed sequences of these lengths, going on from the layer's state, which is updated."""
        if self.mixer is None or self.norm is None:
            return x
        if self.step is not None and len(x) == 1 and fast(x):
            return self.step(x, state)
        if isinstance(self.mixer, Attention):
            assert state is None or isinstance(state, KVState)
            return x + self.mixer(self.norm(x), lengths, state)
        if isinstance(self.mixer, Mamba):
            assert state is None or isinstance(state, MambaState)
            return x + self.mixer(self.norm(x), lengths, state)
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    """All layers and the final norm.

    Set `checkpoint` to save memory in training: blocks are computed again going back. steps: compiled kernels that
    take one token through all layers and the final norm, where there are some.
    """

    checkpoint = False
    steps: Callable[[Tensor, Sequence[LayerState]], Tensor] | None = None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(block, config.width, config.eps) for block in config.blocks)
        self.norm_f = RMSNorm(config.width, config.eps)

    def new_state(self, sequences: int = 1, dtype: torch.dtype | None = None) -> State:
        """An empty memory for a number of sequences; keys and values in `dtype` (default: the model's)."""
        if sequences < 1:
            raise ValueError(f"Backbone.new_state: {sequences} sequences; want at least one")
        weight = self.norm_f.weight
        dtype = dtype or weight.dtype
        layers = tuple(block.new_state(sequences, weight.device, dtype) for block in self._blocks())
        return State(layers, [0] * sequences)

    def forward(
        self, x: Float[Tensor, "tokens width"], lengths: Lengths, state: State | None = None
    ) -> Float[Tensor, "tokens width"]:
        """Read packed sequences, going on from `state` and leaving the new state in it; None starts afresh.

        Returns the residual stream after the last layer, before the final norm. Raises ValueError when lengths,
        tokens and state do not fit one another.
        """
        self._check(x, lengths, state)
        for block, memory in zip(self._blocks(), state.layers if state else (None,) * len(self.layers), strict=True):
            if self.checkpoint and state is None and torch.is_grad_enabled():
                x = checkpoint(block, x, lengths, use_reentrant=False)  # pyright: ignore[reportAssignmentType]  (untyped in torch)
            else:
                x = block(x, lengths, memory)
        if state is not None:
            state.advance(lengths)
        return x

    def read(
        self, x: Float[Tensor, "tokens width"], lengths: Lengths, state: State | None = None
    ) -> Float[Tensor, "tokens width"]:
        """As `forward`, behind the final norm."""
        if self.steps is None or state is None or len(x) > 1 or not fast(x):
            return self.norm_f(self(x, lengths, state))
        self._check(x, lengths, state)
        x = self.steps(x, state.layers)
        state.advance(lengths)
        return x

    def _check(self, x: Tensor, lengths: Lengths, state: State | None) -> None:
        """Raise ValueError where lengths, tokens and state do not fit one another."""
        if sum(lengths) != len(x) or min(lengths, default=0) < 1:
            raise ValueError(
                f"Backbone: {len(x)} tokens came for sequences of {list(lengths)}; want positive lengths that add up"
            )
        if state is not None and (len(state) != len(lengths) or len(state.layers) != len(self.layers)):
            raise ValueError(
                f"Backbone: a state of {len(state)} sequences and {len(state.layers)} layers came for {len(lengths)} "
                f"sequences and {len(self.layers)} layers; make one with new_state({len(lengths)})"
            )
        if state is not None and not all(map(Block.holds, self._blocks(), state.layers)):
            raise ValueError(f"Backbone: a state of another model came; make one with new_state({len(lengths)})")

    def _blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]
