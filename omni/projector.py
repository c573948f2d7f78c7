"""Projectors: features of a tower to the backbone's width.

RMSNorm -> Linear -> ReLU² -> Linear, no biases; the norm in float32, its weight included. Sources: Nemotron Nano V2
VL (arXiv 2511.03929, section 2), Nemotron 3 Nano Omni (arXiv 2604.24954, section 2); the same shape serves vision and
sound.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from omni.backbone import RMSNorm
from omni.ops import relu2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    """`width` features come in and pass `hidden` neurons; the backbone's width goes out."""

    width: int
    hidden: int
    eps: float = 1e-5
    bias: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.hidden) < 1:
            raise ValueError(f"ProjectorConfig: width {self.width}, hidden {self.hidden}; both must be positive")


class Projector(nn.Module):
    """RMSNorm, linear, ReLU², linear."""

    def __init__(self, config: ProjectorConfig, out: int) -> None:
        super().__init__()
        self.config = config
        self.norm = RMSNorm(config.width, config.eps)
        self.linear1 = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.linear2 = nn.Linear(config.hidden, out, bias=config.bias)

    def forward(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens width"]:
        """(tokens, features) → (tokens, width of the backbone)."""
        return self.linear2(relu2(self.linear1(self.norm(x))))
