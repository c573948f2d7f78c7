"""Writing at a machine's pace: what a layer does with a single token, from its norm to its sum, as one kernel
(attention's as two, since its cache grows).

Matrices are read row after row, each once; of a mixture's experts those rows alone that were chosen. Weights are
arguments, so that layers of one shape share a kernel. Needs a C++ compiler; the first token of a shape costs some
seconds, later runs find the kernels in torch's cache on disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omni import ops
from omni.attention import Attention
from omni.backbone import Block
from omni.mamba import Mamba, MambaConfig
from omni.moe import MLP, MLPConfig, MoE, MoEConfig
from omni.packed import BLOCK, HALVES, STACKS, Eight, Four, PackedExperts, PackedLinear, Rows, Stack
from omni.products import INTEGERS, Kernel, Matrix, compiled, kept, times
from omni.state import KVState, LayerState, MambaState
from omni.strips import Strips, strips

COMPILERS = ("c++", "g++", "clang++")
Step = Callable[[Tensor, LayerState], Tensor]


def compile_steps(model: nn.Module) -> int:
    """Let a packed model's single tokens run through compiled kernels; returns the number of layers that do.

    Left as they are, which is logged: layers with biases in experts or router, or packed without `rows`. Raises
    ValueError off the CPU, and where no C++ compiler is installed.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"compile: a model on {device} came; these kernels are the CPU's")
    if not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"compile: none of {', '.join(COMPILERS)} is installed; apt install g++, or load without it")
    _lay_in_strips(model)
    count = left = 0
    for block in model.modules():
        if isinstance(block, Block) and isinstance(block.mixer, Mamba | Attention | MoE | MLP):
            block.step = _step(block)
            count += block.step is not None
            left += block.step is None
    if left:
        logging.getLogger("omni").warning(f"omni: compile: {left} layers stay as they are, in form or biases")
    return count


def _lay_in_strips(model: nn.Module) -> None:
    """Put four bits in the layout that kernels read, one matrix or stack of experts after the other, in place."""
    if not INTEGERS:
        return
    for module in model.modules():
        if isinstance(module, PackedLinear) and isinstance(module.packed, Four):
            four = module.packed
            module.packed = Strips(*strips(four.packed, four.scales, BLOCK, HALVES), four.rows, HALVES)
        elif isinstance(module, PackedExperts):
            for name, stack in module.stacks.items():
                first = stack.weights[0]
                if isinstance(first, Four) and stack.whole is not None and stack.scales is not None:
                    whole, scales = strips(stack.whole, stack.scales, BLOCK, HALVES)
                    weights = [Strips(*each, first.rows, HALVES) for each in zip(whole, scales, strict=True)]
                    module.lay(name, Stack(weights, stack.origin, whole, scales))


def _step(block: Block) -> Step | None:
    assert block.norm is not None
    norm, eps = block.norm.weight.detach().float(), block.norm.eps
    match block.mixer:
        case Mamba() as mixer:
            return _scan(mixer, norm, eps)
        case Attention() as mixer:
            return _attention(mixer, norm, eps)
        case MoE() as mixer:
            return _mixture(mixer, norm, eps)
        case MLP() as mixer:
            return _feed_forward(mixer, norm, eps)
        case _:
            return None


def _matrix(linear: nn.Module | None) -> Matrix | None:
    """A packed linear's matrix; None for those that do not lie row after row, and where there is none."""
    if not isinstance(linear, PackedLinear):
        return None
    match linear.packed:
        case Rows(weight=weight, rows=rows):
            return Matrix(weight, None, linear.bias, rows)
        case Eight(codes=codes, scale=scale, rows=rows):
            return Matrix(codes, scale, linear.bias, rows)
        case Strips(matrix=matrix):
            return matrix._replace(bias=linear.bias)
        case _:
            return None


def _stacked(stack: Stack | None) -> Matrix | None:
    """All experts' matrices as one stack."""
    if stack is None or stack.whole is None:
        return None
    first = stack.weights[0]
    return Matrix(stack.whole, stack.scales, None, first.rows, first.halves if isinstance(first, Strips) else None)


def _normed(x: Float[Tensor, "1 width"], weight: Float[Tensor, " width"], eps: float) -> Float[Tensor, " width"]:
    row = x[0].float()
    return kept(row * torch.rsqrt(row.square().mean() + eps) * weight)


def _added(x: Float[Tensor, "1 width"], out: Float[Tensor, " width"]) -> Float[Tensor, "1 width"]:
    return (x[0].float() + out).to(x.dtype)[None]


# Feed-forward


def _feed_forward(mlp: MLP, norm: Tensor, eps: float) -> Step | None:
    matrices = _matrices(mlp)
    if matrices is None:
        return None
    kernel = Kernel(_feed_forward_kernel(mlp.config, eps), norm, *matrices)
    return lambda x, state: kernel(x)


def _matrices(mlp: MLP) -> tuple[Matrix, Matrix | None, Matrix] | None:
    """Up, gate where there is one, and down."""
    up, gate, down = _matrix(mlp.up_proj), _matrix(mlp.gate_proj), _matrix(mlp.down_proj)
    return None if up is None or down is None or (mlp.config.gated and gate is None) else (up, gate, down)


@lru_cache(maxsize=16)
def _feed_forward_kernel(config: MLPConfig, eps: float) -> Callable[..., Tensor]:
    def kernel(x: Tensor, norm: Tensor, up: Matrix, gate: Matrix | None, down: Matrix) -> Tensor:
        return _added(x, _fed(_normed(x, norm, eps), up, gate, down))

    return compiled(kernel)


def _fed(
    row: Float[Tensor, " width"], up: Matrix, gate: Matrix | None, down: Matrix, clamp: float | None = None
) -> Float[Tensor, "*experts width"]:
    hidden = times(up, row)
    if gate is None:
        hidden = ops.relu2(hidden)
    elif clamp is None:
        hidden = F.silu(times(gate, row)) * hidden
    else:
        hidden = ops.clamped_swiglu(times(gate, row), hidden, clamp)
    return times(down, kept(hidden))


# Mixture of experts


def _mixture(moe: MoE, norm: Tensor, eps: float) -> Step | None:
    c, packed = moe.config, moe.experts
    if not isinstance(packed, PackedExperts) or packed.up_bias is not None or c.router_bias:
        return None
    up, gate, down = (_stacked(packed.stacks.get(name)) for name in STACKS)
    if up is None or down is None or (c.gated and gate is None):
        return None
    latent = _matrix(moe.fc1_latent_proj), _matrix(moe.fc2_latent_proj)
    shared = None if moe.shared_experts is None else _matrices(moe.shared_experts)
    if (c.latent and None in latent) or (c.shared and shared is None):
        return None
    router = moe.gate.weight.detach().float()
    bias = moe.gate.e_score_correction_bias.float() if c.selection_bias else None
    kernel = Kernel(_mixture_kernel(c, eps), norm, router, bias, up, gate, down, *latent, shared)
    return lambda x, state: kernel(x)


@lru_cache(maxsize=16)
def _mixture_kernel(c: MoEConfig, eps: float) -> Callable[..., Tensor]:
    """Router, the chosen experts weighted and added up, and the shared one; sums are float32."""

    def kernel(
        x: Float[Tensor, "1 width"],
        norm: Float[Tensor, " width"],
        router: Float[Tensor, "experts width"],
        bias: Float[Tensor, " experts"] | None,
        up: Matrix,
        gate: Matrix | None,
        down: Matrix,
        to_latent: Matrix | None,
        from_latent: Matrix | None,
        shared: tuple[Matrix, Matrix | None, Matrix] | None,
    ) -> Float[Tensor, "1 width"]:
        row = _normed(x, norm, eps)
        logits = (router * row).sum(-1)
        scores = logits.sigmoid() if c.router == "sigmoid" else logits.softmax(-1)
        ranks = scores if bias is None else scores + bias
        chosen = ops.choose_experts(ranks[None], c.top_k, c.groups, c.top_groups)[0]
        weights = scores[chosen]
        if c.normalize:
            weights = weights / (weights.sum() + 1e-20)
        weights = weights * c.scale
        inner = row if to_latent is None else times(to_latent, row)
        parts = _fed(inner, up.of(chosen), None if gate is None else gate.of(chosen), down.of(chosen), c.clamp)
        out = (parts * weights[:, None]).sum(0)
        out = out if from_latent is None else times(from_latent, out)
        return _added(x, out if shared is None else out + _fed(row, *shared))

    return compiled(kernel)


# Mamba


def _scan(mamba: Mamba, norm: Tensor, eps: float) -> Step | None:
    into, out = _matrix(mamba.in_proj), _matrix(mamba.out_proj)
    if into is None or out is None:
        return None
    a, skip = mamba._rates()
    bias = mamba.conv1d.bias
    kernel = Kernel(
        _scan_kernel(mamba.config, eps, mamba.eps),
        norm,
        into,
        mamba.conv1d.weight.detach().float().squeeze(1).t().contiguous(),
        None if bias is None else bias.detach().float(),
        mamba.dt_bias.detach().float(),
        a.detach(),
        skip.detach(),
        mamba.norm.weight.detach().float(),
        out,
    )

    def step(x: Tensor, state: LayerState) -> Tensor:
        before = state if isinstance(state, MambaState) else mamba.new_state(1, x.device, x.dtype)
        made, history, ssm = kernel(x, before.history[0], before.ssm[0])  # a batch of one has any stride
        before.replace(MambaState(history[None], ssm[None]))
        return made

    return step


@lru_cache(maxsize=16)
def _scan_kernel(config: MambaConfig, eps: float, inner_eps: float) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """One token, and the state after it."""
    heads, dim, groups, size = config.heads, config.head_dim, config.groups, config.state

    def kernel(
        token: Float[Tensor, "1 width"],
        history: Float[Tensor, "past channels"],
        state: Float[Tensor, "heads dim state"],
        outer_norm: Float[Tensor, " width"],
        into: Matrix,
        weight: Float[Tensor, "taps channels"],
        bias: Float[Tensor, " channels"] | None,
        dt_bias: Float[Tensor, " heads"],
        a: Float[Tensor, " heads"],
        skip: Float[Tensor, " inner"],
        norm: Float[Tensor, " inner"],
        out: Matrix,
    ) -> tuple[Tensor, Tensor, Tensor]:
        projected = times(into, _normed(token, outer_norm, eps))
        z, xbc, dt = projected.split([config.inner, config.channels, heads])
        window = torch.cat((history, xbc[None]))
        mixed = F.silu((window * weight).sum(0) if bias is None else (window * weight).sum(0) + bias)
        x, b, c = mixed.split([config.inner, groups * size, groups * size])
        dt = F.softplus(dt + dt_bias)
        b = b.view(groups, size).repeat_interleave(heads // groups, 0)
        c = c.view(groups, size).repeat_interleave(heads // groups, 0)
        added = (x.view(heads, dim) * dt[:, None])[..., None] * b[:, None]
        after = state * (dt * a).exp()[:, None, None] + added
        y = (after * c[:, None]).sum(-1).flatten() + x * skip
        gated = (y * F.silu(z)).view(groups, -1)
        scaled = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + inner_eps)
        return _added(token, times(out, kept(scaled.flatten() * norm))), window[1:], after

    return compiled(kernel)


# Attention: its cache grows, so a kernel before it and one behind


def _attention(attention: Attention, norm: Tensor, eps: float) -> Step | None:
    linears = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    matrices = [matrix for linear in linears if (matrix := _matrix(linear))]
    if len(matrices) < len(linears):
        return None
    *into, out = matrices
    before, behind = (
        Kernel(_before_kernel(attention.config.head_dim, eps), norm, *into),
        Kernel(_behind_kernel(), out),
    )

    def step(x: Tensor, state: LayerState) -> Tensor:
        memory = state if isinstance(state, KVState) else None
        q, k, v = before(x)
        return behind(x, attention.attend(q, k, v, (1,), memory))

    return step


@lru_cache(maxsize=16)
def _before_kernel(size: int, eps: float) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of one token."""

    def kernel(
        x: Float[Tensor, "1 width"], norm: Float[Tensor, " width"], q: Matrix, k: Matrix, v: Matrix
    ) -> tuple[Tensor, Tensor, Tensor]:
        row = _normed(x, norm, eps)
        made = [times(matrix, row).to(x.dtype).view(1, -1, size) for matrix in (q, k, v)]
        return made[0], made[1], made[2]

    return compiled(kernel)


@lru_cache(maxsize=1)
def _behind_kernel() -> Callable[..., Tensor]:
    """The mean of values through the last projection, added."""

    def kernel(
        x: Float[Tensor, "1 width"], mixed: Float[Tensor, "1 heads dim"], out: Matrix
    ) -> Float[Tensor, "1 width"]:
        return _added(x, times(out, mixed.flatten().float()))

    return compiled(kernel)
