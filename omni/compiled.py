"""Writing at a machine's pace: what a single token does between two large products, compiled into one kernel.

Router and chosen experts of a layer become one kernel that reads exactly the experts' rows that it needs; a Mamba
layer's convolution, step and gated norm another. Both take the weights as arguments, so that layers of one shape share
a kernel. Needs a C++ compiler; the first token of a shape costs some seconds, later runs find the kernels in
torch's cache on disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omni import ops
from omni.mamba import Mamba, MambaConfig
from omni.moe import MoE, MoEConfig
from omni.packed import PackedExperts, Stack

COMPILERS = ("c++", "g++", "clang++")


def compile_steps(model: nn.Module) -> int:
    """Let a packed model's single tokens run through compiled kernels; returns the number of layers that do.

    Left as they are, which is logged: experts with biases or in int4, and those that were packed without `rows`.
    Raises ValueError off the CPU, and where no C++ compiler is installed.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"compile: a model on {device} came; these kernels are the CPU's")
    if not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"compile: none of {', '.join(COMPILERS)} is installed; apt install g++, or load without it")
    count = left = 0
    for module in model.modules():
        if isinstance(module, MoE):
            module.step = _experts(module)
        elif isinstance(module, Mamba):
            module.step = _scan(module)
        else:
            continue
        count += module.step is not None
        left += module.step is None
    if left:
        logging.getLogger("omni").warning(
            f"omni: compile: experts of {left} layers stay as they are, in form or biases"
        )
    return count


def _run(kernel: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Under one mode and one setting, so that nothing is compiled twice."""
    with torch.inference_mode(), torch._dynamo.config.patch(capture_scalar_outputs=True):
        return kernel(*tensors)


# Experts


def _experts(moe: MoE) -> Callable[[Tensor, Tensor], Tensor] | None:
    packed = moe.experts
    if not isinstance(packed, PackedExperts) or packed.up_bias is not None or moe.config.router_bias:
        return None
    stacks: list[Stack | None] = [packed.stacks.get(name) for name in ("up_proj", "gate_proj", "down_proj")]
    if any(stack is not None and stack.whole is None for stack in stacks):
        return None
    kernel = _experts_kernel(moe.config)
    bias = moe.gate.e_score_correction_bias.float() if moe.config.selection_bias else None
    weights = [moe.gate.weight.detach().float(), bias]
    for stack in stacks:
        weights += [None, None] if stack is None else [stack.whole, stack.scales]
    return lambda x, latent: _run(kernel, x, latent, *weights)


@lru_cache(maxsize=16)
def _experts_kernel(config: MoEConfig) -> Callable[..., Tensor]:
    """Router, and the chosen experts weighted and added up, for one token; sums are float32."""

    def kernel(
        x: Float[Tensor, "1 width"],
        latent: Float[Tensor, "1 inner"],
        router: Float[Tensor, "experts width"],
        bias: Float[Tensor, " experts"] | None,
        up: Tensor,
        up_scales: Tensor | None,
        gate: Tensor | None,
        gate_scales: Tensor | None,
        down: Tensor,
        down_scales: Tensor | None,
    ) -> Float[Tensor, "1 inner"]:
        logits = (router * x[0].float()).sum(-1)
        scores = logits.sigmoid() if config.router == "sigmoid" else logits.softmax(-1)
        ranks = scores if bias is None else scores + bias
        chosen = ops.choose_experts(ranks[None], config.top_k, config.groups, config.top_groups)[0]
        weights = scores[chosen]
        if config.normalize:
            weights = weights / (weights.sum() + 1e-20)
        weights = weights * config.scale
        numbers = chosen.tolist()
        for number in numbers:
            torch._check(number >= 0)
            torch._check(number < config.experts)
        row = latent[0].float()
        hidden = []
        for number in numbers:
            made = _times(up, up_scales, number, row)
            if gate is None:
                made = ops.relu2(made)
            elif config.clamp is None:
                made = F.silu(_times(gate, gate_scales, number, row)) * made
            else:
                made = ops.clamped_swiglu(_times(gate, gate_scales, number, row), made, config.clamp)
            hidden.append(made)
        results = [_times(down, down_scales, number, made) for number, made in zip(numbers, hidden, strict=True)]
        return (torch.stack(results) * weights[:, None]).sum(0, keepdim=True).to(latent.dtype)

    return torch.compile(kernel, fullgraph=True, dynamic=False)


def _times(stack: Tensor, scales: Tensor | None, number: int, x: Tensor) -> Tensor:
    """One expert's matrix times a vector, in float32."""
    out = (stack[number].float() * x).sum(-1)
    return out if scales is None else out * scales[number]


# Mamba


def _scan(mamba: Mamba) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    kernel = _scan_kernel(mamba.config, mamba.eps)
    a, skip = mamba._rates()
    bias = mamba.conv1d.bias
    weights = [
        mamba.conv1d.weight.detach().float().squeeze(1).t().contiguous(),
        None if bias is None else bias.detach().float(),
        mamba.dt_bias.detach().float(),
        a.detach(),
        skip.detach(),
        mamba.norm.weight.detach().float(),
    ]
    return lambda projected, history, state: _run(kernel, projected, history, state, *weights)


@lru_cache(maxsize=16)
def _scan_kernel(config: MambaConfig, eps: float) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """From the input projection of one token to what the output projection takes, and the state after it."""
    heads, dim, groups, size = config.heads, config.head_dim, config.groups, config.state

    def kernel(
        projected: Float[Tensor, "1 all"],
        history: Float[Tensor, "1 past channels"],
        state: Float[Tensor, "1 heads dim state"],
        weight: Float[Tensor, "taps channels"],
        bias: Float[Tensor, " channels"] | None,
        dt_bias: Float[Tensor, " heads"],
        a: Float[Tensor, " heads"],
        skip: Float[Tensor, " inner"],
        norm: Float[Tensor, " inner"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, xbc, dt = projected[0].float().split([config.inner, config.channels, heads])
        window = torch.cat((history[0], xbc[None]))
        mixed = F.silu((window * weight).sum(0) if bias is None else (window * weight).sum(0) + bias)
        x, b, c = mixed.split([config.inner, groups * size, groups * size])
        dt = F.softplus(dt + dt_bias)
        b = b.view(groups, size).repeat_interleave(heads // groups, 0)
        c = c.view(groups, size).repeat_interleave(heads // groups, 0)
        added = (x.view(heads, dim) * dt[:, None])[..., None] * b[:, None]
        after = state[0] * (dt * a).exp()[:, None, None] + added
        y = (after * c[:, None]).sum(-1).flatten() + x * skip
        gated = (y * F.silu(z)).view(groups, -1)
        scaled = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
        return (scaled.flatten() * norm).to(projected.dtype)[None], window[1:][None], after[None]

    return torch.compile(kernel, fullgraph=True, dynamic=False)
