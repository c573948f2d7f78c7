"""Mamba-2 mixer: a gated state-space layer whose memory is constant, over packed sequences.

Source: Mamba-2 (arXiv 2405.21060), as Nemotron Nano 2 (arXiv 2508.14444, section 2.1) uses it: z, x, B, C and dt from
one projection, a causal convolution over x, B and C, one decay a head, and a grouped gated RMSNorm before the output
projection. dt is limited to (0, inf) alike in prefill and in decode, and the state is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omni.kernels import (
    add_skip,
    at_once,
    causal_conv,
    gated_group_rms_norm,
    selective_scan,
    selective_step,
    selective_steps,
    short_conv,
    step_conv,
)
from omni.ops import Lengths
from omni.state import MambaState, Trail

SHORT = 8  # up to so many tokens a sequence go step by step, and can be taken back one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaConfig:
    """heads of head_dim channels; B and C of `state` values shared within `groups`; `taps` of the convolution."""

    heads: int
    head_dim: int
    state: int = 128
    groups: int = 8
    taps: int = 4
    chunk: int = 128
    conv_bias: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        sizes = (self.heads, self.head_dim, self.state, self.groups, self.chunk)
        if min(sizes) < 1 or self.taps < 2 or self.heads % self.groups:
            raise ValueError(
                f"MambaConfig: {self.heads} heads of {self.head_dim}, state {self.state}, {self.groups} groups, "
                f"{self.taps} "
                f"taps, chunk {self.chunk}; heads must be a multiple of groups, taps at least 2, all positive"
            )

    @property
    def inner(self) -> int:
        """Channels of x: heads times head_dim."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """What passes the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def state_size(self) -> int:
        """Elements kept a sequence, whatever its length."""
        return self.heads * self.head_dim * self.state + (self.taps - 1) * self.channels


class Conv(nn.Module):
    """The depthwise convolution's weights, under the released names."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-1, 1) / taps**0.5)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None


class Scale(nn.Module):
    """A norm's weight, under the released name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Mamba(nn.Module):
    """One Mamba-2 mixer over packed sequences."""

    def __init__(self, config: MambaConfig, width: int, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        self.in_proj = nn.Linear(width, config.inner + config.channels + config.heads, bias=config.bias)
        self.conv1d = Conv(config.channels, config.taps, config.conv_bias)
        self.A_log = nn.Parameter(torch.arange(1, config.heads + 1, dtype=torch.float32).log())
        self.D = nn.Parameter(torch.ones(config.heads))
        step = torch.empty(config.heads).uniform_(-6.9, -2.3).exp()  # 0.001 to 0.1, log-uniform
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.norm = Scale(config.inner)
        self.out_proj = nn.Linear(config.inner, width, bias=config.bias)

    def _rates(self) -> tuple[Float[Tensor, " heads"], Float[Tensor, " inner"]]:
        """A, and D for every channel."""
        return -self.A_log.float().exp(), self.D.float().repeat_interleave(self.config.head_dim)

    def new_state(self, sequences: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """Zeros; always float32, whatever the model's dtype."""
        c = self.config
        return MambaState(
            torch.zeros(sequences, c.taps - 1, c.channels, device=device),
            torch.zeros(sequences, c.heads, c.head_dim, c.state, device=device),
        )

    def forward(
        self, u: Float[Tensor, "tokens width"], lengths: Lengths, state: MambaState | None
    ) -> Float[Tensor, "tokens width"]:
        """Scan each sequence from its state (zeros when None), and leave the new state in it."""
        c = self.config
        before = state or self.new_state(len(lengths), u.device, u.dtype)
        projected = self.in_proj(u)
        z, xbc, dt = projected.split([c.inner, c.channels, c.heads], -1)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        one = at_once(u) and max(lengths) == 1
        short = max(lengths) <= SHORT
        if one:
            xbc, history = step_conv(xbc, weight, bias, before.history)
        elif short:
            xbc, inputs = short_conv(xbc, weight, bias, lengths, before.history)
        else:
            xbc, history = causal_conv(xbc, weight, bias, lengths, before.history)
        x, b, cc = xbc.split([c.inner, c.groups * c.state, c.groups * c.state], -1)
        x = x.unflatten(-1, (c.heads, c.head_dim))
        b, cc = b.unflatten(-1, (c.groups, c.state)), cc.unflatten(-1, (c.groups, c.state))
        dt = F.softplus(dt.float() + self.dt_bias.float())
        a, skip = self._rates()
        if one:
            y, ssm = selective_step(x, dt, a, b, cc, before.ssm)
            after = MambaState(history, ssm)
        elif short:
            y, states = selective_steps(x, dt, a, b, cc, before.ssm, lengths)
            after = MambaState.at_end(Trail(inputs, states, lengths))
        else:
            y, ssm = selective_scan(x, dt, a, b, cc, before.ssm, lengths, c.chunk)
            after = MambaState(history, ssm)
        if state is not None:
            state.replace(after)
        y = add_skip(y.flatten(1), x.flatten(1), skip)  # (tokens, inner)
        return self.out_proj(gated_group_rms_norm(y, z, self.norm.weight, c.groups, self.eps))
