"""What each kind of layer does with one token, from its norm to its sum, for torch's compiler (`omni.compiled`).

A law takes the residual stream and what else it needs, then its weights; it returns the stream and what else it made.
Weights are arguments, so that layers of one shape share a law. Matrices are read row after row, each once; of a
mixture's experts those rows alone that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni import ops
from omni.attention import Attention, AttentionConfig
from omni.backbone import Block, RMSNorm
from omni.mamba import Mamba, MambaConfig
from omni.moe import MLP, MLPConfig, MoE, MoEConfig
from omni.packed import STACKS, Eight, PackedExperts, PackedLinear, Rows
from omni.products import Matrix, kept, times
from omni.strips import Laid

Law = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """A law with a layer's weights.

    needs: beside the stream: "nothing"; a Mamba layer's "memory", which it makes anew; or the "mean" of values that
    attention made. An attention layer is two parts, since its cache grows between them: the first makes queries, keys
    and values. eps: of its norms; config: of a layer's first part.
    """

    law: Law
    weights: tuple[Any, ...]
    eps: tuple[float, ...] = ()
    needs: Literal["nothing", "memory", "mean"] = "nothing"
    config: MambaConfig | AttentionConfig | MLPConfig | MoEConfig | None = None


def parts_of(block: Block) -> tuple[Part, ...]:
    """Of a packed layer; none of one that has biases in experts or router, or does not lie row after row."""
    if block.norm is None:
        return ()
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
            return ()


def ending(norm: RMSNorm) -> Part:
    """A norm that stands alone."""
    return Part(_ending_law(norm.eps), (norm.weight.detach().float(),), (norm.eps,))


@lru_cache(maxsize=16)
def _ending_law(eps: float) -> Law:
    def law(x: Float[Tensor, "1 width"], norm: Float[Tensor, " width"]) -> tuple[Tensor]:
        return (_normed(x, norm, eps).to(x.dtype)[None],)

    return law


def matrix_of(linear: nn.Module | None) -> Matrix | None:
    """A packed linear's matrix; None for those that do not lie row after row, and where there is none."""
    if not isinstance(linear, PackedLinear):
        return None
    match linear.packed:
        case Rows(weight=weight, rows=rows):
            return Matrix(weight, None, linear.bias, rows)
        case Eight(codes=codes, scale=scale, rows=rows):
            return Matrix(codes, scale, linear.bias, rows)
        case Laid(matrix=matrix):
            return matrix._replace(bias=linear.bias)
        case _:
            return None


def _normed(x: Float[Tensor, "1 width"], weight: Float[Tensor, " width"], eps: float) -> Float[Tensor, " width"]:
    row = x[0].float()
    return kept(row * torch.rsqrt(row.square().mean() + eps) * weight)


def _added(x: Float[Tensor, "1 width"], out: Float[Tensor, " width"]) -> Float[Tensor, "1 width"]:
    return (x[0].float() + out).to(x.dtype)[None]


# Feed-forward


def _feed_forward(mlp: MLP, norm: Tensor, eps: float) -> tuple[Part, ...]:
    matrices = _matrices(mlp)
    if matrices is None:
        return ()
    return (Part(_feed_forward_law(mlp.config, eps), (norm, *matrices), (eps,), config=mlp.config),)


def _matrices(mlp: MLP) -> tuple[Matrix, Matrix | None, Matrix] | None:
    """Up, gate where there is one, and down."""
    up, gate, down = matrix_of(mlp.up_proj), matrix_of(mlp.gate_proj), matrix_of(mlp.down_proj)
    return None if up is None or down is None or (mlp.config.gated and gate is None) else (up, gate, down)


@lru_cache(maxsize=16)
def _feed_forward_law(config: MLPConfig, eps: float) -> Law:
    def law(x: Tensor, norm: Tensor, up: Matrix, gate: Matrix | None, down: Matrix) -> tuple[Tensor]:
        return (_added(x, _fed(_normed(x, norm, eps), up, gate, down)),)

    return law


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


def _mixture(moe: MoE, norm: Tensor, eps: float) -> tuple[Part, ...]:
    c, packed = moe.config, moe.experts
    if not isinstance(packed, PackedExperts) or packed.up_bias is not None or c.router_bias:
        return ()
    stacks = [packed.stacks.get(name) for name in STACKS]
    up, gate, down = (None if stack is None else stack.matrix for stack in stacks)
    if up is None or down is None or (c.gated and gate is None):
        return ()
    latent = matrix_of(moe.fc1_latent_proj), matrix_of(moe.fc2_latent_proj)
    shared = None if moe.shared_experts is None else _matrices(moe.shared_experts)
    if (c.latent and None in latent) or (c.shared and shared is None):
        return ()
    router = moe.gate.weight.detach().float()
    bias = moe.gate.e_score_correction_bias.float() if c.selection_bias else None
    weights = norm, router, bias, up, gate, down, *latent, shared
    return (Part(_mixture_law(c, eps), weights, (eps,), config=c),)


def _choose(scores: Float[Tensor, " experts"], top_k: int, groups: int, top_groups: int) -> Int[Tensor, " top_k"]:
    """As `ops.choose_experts`, by comparing each with each: torch sorts in an operator of its own, which would cut the
    kernel in two. Scores that are no numbers give any experts, but none beyond the last.
    """
    if groups > 1:
        by_group = scores.view(groups, -1)
        best = _places(kept(torch.where(_places(by_group) < 2, by_group, 0).sum(-1)))
        scores = kept(by_group.masked_fill(best[:, None] >= top_groups, -torch.inf).flatten())
    experts = torch.arange(len(scores))
    found = torch.where(_places(scores) == torch.arange(top_k)[:, None], experts, 0).sum(-1)
    return found.clamp_max(len(scores) - 1)


def _places(scores: Float[Tensor, "*lists entries"]) -> Int[Tensor, "*lists entries"]:
    """How many of its list go before each: those that are larger, and the earlier ones of its size."""
    each, other, entries = scores[..., :, None], scores[..., None, :], torch.arange(scores.shape[-1])
    return ((other > each) | ((other == each) & (entries < entries[:, None]))).sum(-1)


@lru_cache(maxsize=16)
def _mixture_law(c: MoEConfig, eps: float) -> Law:
    """Router, the chosen experts weighted and added up, and the shared one; sums are float32."""

    def law(
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
    ) -> tuple[Tensor]:
        row = _normed(x, norm, eps)
        logits = (router * row).sum(-1)
        scores = logits.sigmoid() if c.router == "sigmoid" else logits.softmax(-1)
        ranks = scores if bias is None else scores + bias
        chosen = _choose(ranks, c.top_k, c.groups, c.top_groups)
        weights = scores[chosen]
        if c.normalize:
            weights = weights / (weights.sum() + 1e-20)
        weights = weights * c.scale
        inner = row if to_latent is None else times(to_latent, row)
        parts = _fed(inner, up.of(chosen), None if gate is None else gate.of(chosen), down.of(chosen), c.clamp)
        out = (parts * weights[:, None]).sum(0)
        out = out if from_latent is None else times(from_latent, out)
        return (_added(x, out if shared is None else out + _fed(row, *shared)),)

    return law


# Mamba


def _scan(mamba: Mamba, norm: Tensor, eps: float) -> tuple[Part, ...]:
    into, out = matrix_of(mamba.in_proj), matrix_of(mamba.out_proj)
    if into is None or out is None:
        return ()
    a, skip = mamba._rates()
    bias = mamba.conv1d.bias
    weights = (
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
    c = mamba.config
    return (Part(_scan_law(c, eps, mamba.eps), weights, (eps, mamba.eps), "memory", c),)


@lru_cache(maxsize=16)
def _scan_law(config: MambaConfig, eps: float, inner_eps: float) -> Law:
    """One token, and the memory after it."""
    heads, dim, groups, size = config.heads, config.head_dim, config.groups, config.state

    def law(
        token: Float[Tensor, "1 width"],
        history: Float[Tensor, "1 past channels"],
        state: Float[Tensor, "1 heads dim state"],
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
        scaled = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + inner_eps)
        return _added(token, times(out, kept(scaled.flatten() * norm))), window[None, 1:], after[None]

    return law


# Attention


def _attention(attention: Attention, norm: Tensor, eps: float) -> tuple[Part, ...]:
    linears = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    matrices = [matrix for linear in linears if (matrix := matrix_of(linear))]
    if len(matrices) < len(linears):
        return ()
    *into, out = matrices
    before = Part(_before_law(attention.config.head_dim, eps), (norm, *into), (eps,), config=attention.config)
    return before, Part(_behind_law, (out,), needs="mean")


@lru_cache(maxsize=16)
def _before_law(size: int, eps: float) -> Law:
    """The stream as it came; queries, keys and values."""

    def law(
        x: Float[Tensor, "1 width"], norm: Float[Tensor, " width"], q: Matrix, k: Matrix, v: Matrix
    ) -> tuple[Tensor, ...]:
        row = _normed(x, norm, eps)
        return x, *(times(matrix, row).to(x.dtype).view(1, -1, size) for matrix in (q, k, v))

    return law


def _behind_law(x: Float[Tensor, "1 width"], mean: Float[Tensor, "1 heads dim"], out: Matrix) -> tuple[Tensor]:
    """The mean of values through the last projection, added."""
    return (_added(x, times(out, mean.flatten().float())),)
