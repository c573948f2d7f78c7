"""Feed-forward mixers: MLP (ReLU² or gated), mixture of experts, LatentMoE, and the plain linear of pruned children.

Sources: Nemotron 3 Nano (arXiv 2512.20848: sigmoid router with a bias that only selects, shared expert, scale),
DeepSeek-V3's auxiliary-loss-free balancing behind it; LatentMoE (arXiv 2601.18089: routed experts in a latent of the
width, router and shared expert on the full width), gpt-oss (arXiv 2508.10925: softmax router, biases, clamped gate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni.kernels import mix_experts
from omni.ops import choose_experts, clamped_swiglu, relu2


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPConfig:
    """down(ReLU²(up x)), or Llama's down(SiLU(gate x) * up x) when `gated`."""

    hidden: int
    gated: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"MLPConfig: hidden {self.hidden}; want at least 1, or a no-op block")


class MLP(nn.Module):
    """Two linears with ReLU², or three with a SiLU gate (Llama)."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.up_proj = nn.Linear(width, config.hidden, bias=config.bias)
        self.gate_proj = nn.Linear(width, config.hidden, bias=config.bias) if config.gated else None
        self.down_proj = nn.Linear(config.hidden, width, bias=config.bias)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Each token alone, (tokens, width) → the same shape."""
        hidden = self.up_proj(x)
        hidden = relu2(hidden) if self.gate_proj is None else F.silu(self.gate_proj(x)) * hidden
        return self.down_proj(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """`experts` of `hidden` neurons, `top_k` of them a token, their weights (normalised when `normalize`) times
    `scale`.

    shared: neurons of the expert that every token passes (0: none). latent: width of the routed experts' input and
    output (None: the model's). groups, top_groups: experts are taken from the best groups only. selection_bias: a
    bias that takes part in the choice alone; router_bias: one in the scores themselves. clamp: gpt-oss's gate.
    """

    experts: int
    top_k: int
    hidden: int
    shared: int = 0
    latent: int | None = None
    scale: float = 1.0
    router: Literal["sigmoid", "softmax"] = "sigmoid"
    normalize: bool = True
    groups: int = 1
    top_groups: int = 1
    gated: bool = False
    bias: bool = False
    selection_bias: bool = True
    router_bias: bool = False
    expert_bias: bool = False
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.clamp is not None and (not self.gated or self.clamp <= 0):
            raise ValueError(
                f"MoEConfig: clamp {self.clamp} on gated={self.gated}; want a positive one on gated experts"
            )
        if not 1 <= self.top_k <= self.experts or self.hidden < 1 or self.shared < 0:
            raise ValueError(
                f"MoEConfig: top {self.top_k} of {self.experts} experts of {self.hidden} neurons, shared "
                f"{self.shared}; "
                "want 1 <= top_k <= experts and positive sizes"
            )
        if not 1 <= self.top_groups <= self.groups or self.experts % self.groups:
            raise ValueError(
                f"MoEConfig: {self.experts} experts in {self.groups} groups, {self.top_groups} chosen; "
                "groups must divide experts and hold top_groups"
            )
        if self.top_k > self.experts // self.groups * self.top_groups:
            raise ValueError(
                f"MoEConfig: top {self.top_k} of {self.top_groups} groups of {self.experts // self.groups}; choose "
                "more groups"
            )


class Router(nn.Module):
    """Scores of the experts, in float32.

    The selection bias takes part in the choice only; training moves it to balance the loads.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: MoEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width).normal_(std=width**-0.5))
        self.bias = nn.Parameter(torch.zeros(config.experts)) if config.router_bias else None
        if config.selection_bias:
            self.register_buffer("e_score_correction_bias", torch.zeros(config.experts))

    def forward(
        self, x: Float[Tensor, "tokens width"]
    ) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"], Float[Tensor, "tokens experts"]]:
        """Weights and indices of the chosen experts, and all scores (for balancing)."""
        c = self.config
        bias = self.bias.float() if self.bias is not None else None
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float(), bias)
        scores = logits.sigmoid() if c.router == "sigmoid" else logits.softmax(-1)
        ranks = scores + self.e_score_correction_bias.float() if c.selection_bias else scores
        chosen = choose_experts(ranks, c.top_k, c.groups, c.top_groups)
        weights = scores.gather(-1, chosen)
        if c.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.scale, chosen, scores


class Experts(nn.Module):
    """The routed experts' weights, stacked."""

    def __init__(self, config: MoEConfig, width: int) -> None:
        super().__init__()
        self.clamp = config.clamp
        shape = (config.experts, config.hidden, width)
        self.up_proj = nn.Parameter(torch.empty(shape).normal_(std=width**-0.5))
        self.gate_proj = nn.Parameter(torch.empty(shape).normal_(std=width**-0.5)) if config.gated else None
        self.down_proj = nn.Parameter(
            torch.empty(config.experts, width, config.hidden).normal_(std=config.hidden**-0.5)
        )
        bias = config.expert_bias
        self.up_bias = nn.Parameter(torch.zeros(config.experts, config.hidden)) if bias else None
        self.gate_bias = nn.Parameter(torch.zeros(config.experts, config.hidden)) if bias and config.gated else None
        self.down_bias = nn.Parameter(torch.zeros(config.experts, width)) if bias else None

    def mix(
        self, x: Float[Tensor, "tokens width"], chosen: Int[Tensor, "tokens top_k"], weights: Tensor
    ) -> Float[Tensor, "tokens width"]:
        """Each token's chosen experts, weighted and added up."""
        return mix_experts(x, chosen, weights, self)

    def forward(self, expert: int, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """One expert on the rows that chose it: down(act(up x)), ReLU², or SiLU(gate x) * up x when gated."""
        hidden = F.linear(x, self.up_proj[expert], bias_of(self.up_bias, expert))
        if self.gate_proj is None:
            hidden = relu2(hidden)
        else:
            gate = F.linear(x, self.gate_proj[expert], bias_of(self.gate_bias, expert))
            hidden = F.silu(gate) * hidden if self.clamp is None else clamped_swiglu(gate, hidden, self.clamp)
        return F.linear(hidden, self.down_proj[expert], bias_of(self.down_bias, expert))


def bias_of(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]


class MoE(nn.Module):
    """Routed experts (in a latent, where the config has one) and the shared expert."""

    def __init__(self, config: MoEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.gate = Router(config, width)
        self.experts = Experts(config, config.latent or width)
        self.fc1_latent_proj = nn.Linear(width, config.latent, bias=config.bias) if config.latent else None
        self.fc2_latent_proj = nn.Linear(config.latent, width, bias=config.bias) if config.latent else None
        shared = MLPConfig(hidden=config.shared, gated=config.gated, bias=config.bias) if config.shared else None
        self.shared_experts = MLP(shared, width) if shared else None

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Each token alone, (tokens, width) → the same shape.

        Source: Nemotron 3 Nano, section 2; LatentMoE, section 3.
        """
        latent = self.fc1_latent_proj(x) if self.fc1_latent_proj else x
        weights, chosen, _ = self.gate(x)
        out = self.experts.mix(latent, chosen, weights)
        out = self.fc2_latent_proj(out) if self.fc2_latent_proj else out
        return out + self.shared_experts(x) if self.shared_experts else out


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """A pruned child's block: one linear in place of a mixer."""

    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOpConfig:
    """A pruned child's block that is left out: no norm, no mixer, no weights."""
