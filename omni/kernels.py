"""Fast twins of `ops`, under the same names and with the same arguments.

Chosen here and nowhere else: on CUDA Mamba layers run mamba-ssm's kernels where it is installed (`kernels_cuda`); on a
CPU, without gradients, what is written here; otherwise the reference. On a CPU products are taken in the dtype of x, b
and c (bfloat16 is four times as fast as float32 where the processor has instructions for it, and where it is slow
float32 takes its place); decays, sums and the state stay float32. A test holds each twin to its reference: 1e-5 in
float32, 1e-2 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omni import kernels_cuda, ops
from omni.ops import Lengths, carry, from_chunks, to_chunks
from omni.precision import fast_bfloat16, multiplied_in


def fast(x: Tensor) -> bool:
    """Whether the CPU's twins take this tensor."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def on_gpu(x: Tensor) -> bool:
    """Whether mamba-ssm's kernels take this tensor; said once where they are missing."""
    return x.device.type == "cuda" and kernels_cuda.ready()


def at_once(x: Tensor) -> bool:
    """Whether `step_conv` and `selective_step` take one token of each sequence, which have no gradients."""
    return fast(x) or (on_gpu(x) and not torch.is_grad_enabled())


def rms_norm(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*rows width"]:
    """See `ops.rms_norm`."""
    if not fast(x):
        return ops.rms_norm(x, weight, eps)
    weight = weight.float()
    if x.numel() <= FEW_NUMBERS:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    x = x.contiguous()
    out = torch.empty_like(x)
    for rows, made in _pieces(x.view(-1, x.shape[-1]), out.view(-1, x.shape[-1])):
        wide = rows.float()
        torch.mul(wide * _steadied(wide, eps), weight, out=made)
    return out


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each at a time, so few that what several passes leave to one another stays in the cache."""
    most = max(1, NUMBERS // tensors[0].shape[-1])
    return zip(*(tensor.split(most) for tensor in tensors), strict=True)


def _steadied(x: Float[Tensor, "*rows width"], eps: float) -> Float[Tensor, "*rows 1"]:
    """One over the root of the mean square and eps, in one pass over x."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def gated_group_rms_norm(
    y: Float[Tensor, "tokens inner"],
    gate: Float[Tensor, "tokens inner"],
    weight: Float[Tensor, " inner"],
    groups: int,
    eps: float,
) -> Float[Tensor, "tokens inner"]:
    """See `ops.gated_group_rms_norm`."""
    if on_gpu(y):
        return kernels_cuda.gated_group_rms_norm(y, gate, weight, groups, eps)
    if not fast(y):
        return ops.gated_group_rms_norm(y, gate, weight, groups, eps)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    for rows, gates, made in _pieces(y, gate, out):
        by_group = F.silu(gates.float()).mul_(rows).unflatten(-1, (groups, -1))
        torch.mul(by_group.mul_(_steadied(by_group, eps)).flatten(-2), weight, out=made)
    return out


def add_skip(
    y: Float[Tensor, "tokens inner"], x: Float[Tensor, "tokens inner"], skip: Float[Tensor, " inner"]
) -> Float[Tensor, "tokens inner"]:
    """y + skip * x, D of Mamba-2, in float32; a prompt's y is overwritten, some tokens at a time."""
    if not fast(y):
        return torch.addcmul(y, x.float(), skip)
    for rows, more in _pieces(y, x):
        rows.addcmul_(more.float(), skip)
    return y


def causal_conv(
    x: Float[Tensor, "tokens channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    lengths: Lengths,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "sequences past channels"]]:
    """See `ops.causal_conv`: one depthwise convolution, channels last, over all sequences behind their histories."""
    if on_gpu(x) and kernels_cuda.convolves(weight.shape[1]):
        return kernels_cuda.causal_conv(x, weight, bias, lengths, history)
    if not fast(x):
        return ops.causal_conv(x, weight, bias, lengths, history)
    past, kind = weight.shape[1] - 1, multiplied_in(x.dtype)
    weight, bias = weight.to(kind), None if bias is None else bias.to(kind)
    extended = ops.behind_histories(x, lengths, history).to(kind)
    image = extended[None, None].permute(0, 3, 1, 2)  # (1, channels, 1, tokens), channels last in memory
    out = F.conv2d(image, weight[:, None, None], bias, groups=len(weight)).permute(0, 2, 3, 1)[0, 0]
    out = ops.own_rows(out, lengths, past)
    return F.silu(out, inplace=True).to(x.dtype), ops.last_rows(extended, lengths, past)


FEW_QUERIES = 8
MANY_KEYS = 2048  # from which one query's fast products by head are faster than torch's attention
LEAST_QUERIES, MOST_QUERIES, SCORES = 16, 128, 2**21  # that are worked on at a time, and the scores held meanwhile
LONGEST_CHUNK = 64  # steps; shorter ones have less to weigh inside, longer ones fewer states between
INSIDE = 2**20  # weights between the steps of chunks that are held at a time
NUMBERS = 2**19  # worked on at a time where several passes follow one another
FEW_NUMBERS = 2**15  # up to which one call costs less than the passes it makes
FUSED: dict[str, Callable[..., Tensor]] = {}  # twins of passes over a prompt, once `omni.compiled` has made them


@lru_cache(maxsize=8)
def _later(size: int) -> Float[Tensor, "size size"]:
    """-inf where the key is later than the query, else 0."""
    with torch.inference_mode(False):
        return torch.full((size, size), -torch.inf).triu(1)


def selective_scan(
    x: Float[Tensor, "tokens heads dim"],
    dt: Float[Tensor, "tokens heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "tokens groups state"],
    c: Float[Tensor, "tokens groups state"],
    state: Float[Tensor, "sequences heads dim state"],
    lengths: Lengths,
    chunk: int,
) -> tuple[Float[Tensor, "tokens heads dim"], Float[Tensor, "sequences heads dim state"]]:
    """See `ops.selective_scan`: every sum over steps or states is a product of matrices, of B and C by group."""
    if on_gpu(x):
        return kernels_cuda.selective_scan(x, dt, a, b, c, state, lengths, chunk)
    if not fast(x):
        return ops.selective_scan(x.float(), dt, a, b.float(), c.float(), state, lengths, chunk)
    kind = torch.float32 if x.dtype == torch.float16 else multiplied_in(x.dtype)  # float16 cannot hold a state
    x, b, c = x.to(kind), b.to(kind), c.to(kind)
    chunk = min(chunk, LONGEST_CHUNK, max(lengths))
    counts = [-(-length // chunk) for length in lengths]
    x, dt, b, c = (to_chunks(value, lengths, counts, chunk) for value in (x, dt, b, c))
    heads, dim = x.shape[2:]
    groups = b.shape[2]
    per_group = heads // groups

    decay = (dt * a).cumsum(1)  # (chunks, steps, heads), float32
    xdt = x * dt.to(kind)[..., None]  # (chunks, steps, heads, dim)

    # What each chunk adds to the state, and what the state that enters it gives: group by group, so that the states
    # between chunks stay small, heads abreast, and matrices one behind the other, whose products take half the time
    left, faded = (decay[:, -1:] - decay).exp_().to(kind)[..., None], decay.exp()[..., None]
    through = decay[:, -1].exp()
    rows, columns = (value.permute(2, 0, 1, 3).contiguous() for value in (b, c))
    y, after = torch.empty(len(x), chunk, heads, dim), torch.empty_like(state)
    for group in range(groups):
        mine = slice(group * per_group, (group + 1) * per_group)
        ended = (xdt[:, :, mine] * left[:, :, mine]).flatten(2)
        added = (ended.mT @ rows[group]).float().unflatten(1, (per_group, dim))  # (chunks, heads of it, dim, state)
        entering, after[:, mine] = _carried(added, through[:, mine], state[:, mine], counts)
        given = columns[group] @ entering.flatten(1, 2).to(kind).mT
        torch.mul(given.unflatten(-1, (per_group, dim)), faded[:, :, mine], out=y[:, :, mine])

    # Inside a chunk: y_i = sum_{j <= i} exp(l_i - l_j) (C_i . B_j) dt_j x_j; a few chunks at a time stay in the cache
    most, weigh = max(1, INSIDE // (heads * chunk * chunk)), FUSED.get("weigh", _weigh)
    for first in range(0, len(x), most):
        part = slice(first, first + most)
        by_head = decay[part].transpose(1, 2).contiguous()  # (chunks, heads, steps)
        weights = weigh(by_head, (columns[:, part] @ rows[:, part].mT).transpose(0, 1))
        y[part] += (weights @ xdt[part].transpose(1, 2)).transpose(1, 2)
    return from_chunks(y, lengths, counts), after


def _weigh(
    decay: Float[Tensor, "chunks heads steps"], scores: Float[Tensor, "chunks groups steps steps"]
) -> Float[Tensor, "chunks heads steps steps"]:
    """exp(l_i - l_j) (C_i . B_j), 0 where j is later than i."""
    weights = (decay[..., :, None] - decay[..., None, :]).add_(_later(decay.shape[-1])).exp_()
    by_group = weights.unflatten(1, (scores.shape[1], -1))
    return torch.mul(by_group, scores[:, :, None], out=torch.empty_like(by_group, dtype=scores.dtype)).flatten(1, 2)


def _carried(added: Tensor, decay: Tensor, state: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """See `ops.carry`; a single sequence's states are written where they are read."""
    if len(counts) > 1:
        return carry(added, decay, state, counts)
    states = torch.empty(len(added) + 1, *added.shape[1:])
    states[0] = state[0]
    steps = zip(states, states[1:], added, decay[..., None, None], strict=False)
    for before, after, more, fade in steps:
        torch.addcmul(more, before, fade, out=after)
    return states[:-1], states[-1:]


def step_conv(
    x: Float[Tensor, "sequences channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "sequences channels"], Float[Tensor, "sequences past channels"]]:
    """`ops.causal_conv` for one token of each sequence; the outputs are float32."""
    if on_gpu(x) and kernels_cuda.convolves(weight.shape[1]):
        return kernels_cuda.step_conv(x, weight, bias, history)
    window = torch.cat((history, x.float()[:, None]), 1)
    out = (window * weight.t()).sum(1)
    return F.silu(out if bias is None else out.add_(bias), inplace=True), window[:, 1:]


def selective_step(
    x: Float[Tensor, "sequences heads dim"],
    dt: Float[Tensor, "sequences heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "sequences groups state"],
    c: Float[Tensor, "sequences groups state"],
    state: Float[Tensor, "sequences heads dim state"],
) -> tuple[Float[Tensor, "sequences heads dim"], Float[Tensor, "sequences heads dim state"]]:
    """`ops.selective_steps` for one token of each sequence, without heads of B and C; all float32."""
    if on_gpu(x):
        return kernels_cuda.selective_step(x, dt, a, b, c, state)
    sequences, heads, dim, size = state.shape
    groups = b.shape[1]
    after = state * (dt * a).exp_()[..., None, None]
    by_group = after.view(sequences, groups, -1, size)  # the heads of a group, one behind the other
    by_group.addcmul_((x * dt[..., None]).view(sequences, groups, -1, 1), b[:, :, None])
    return (by_group @ c[..., None]).view(sequences, heads, dim), after


def short_conv(
    x: Float[Tensor, "tokens channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    lengths: Lengths,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "sequences past_and_steps channels"]]:
    """See `ops.short_conv`: of sequences of one length, in float32 as `step_conv`."""
    if not fast(x) or min(lengths) < max(lengths):
        return ops.short_conv(x, weight, bias, lengths, history)
    inputs = torch.cat((history, x.float().view(len(history), -1, x.shape[1])), 1)
    out = (inputs.unfold(1, weight.shape[1], 1) * weight).sum(-1)
    return F.silu(out if bias is None else out.add_(bias), inplace=True).view(x.shape), inputs


def selective_steps(
    x: Float[Tensor, "tokens heads dim"],
    dt: Float[Tensor, "tokens heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "tokens groups state"],
    c: Float[Tensor, "tokens groups state"],
    state: Float[Tensor, "sequences heads dim state"],
    lengths: Lengths,
) -> tuple[Float[Tensor, "tokens heads dim"], Float[Tensor, "steps sequences heads dim state"]]:
    """See `ops.selective_steps`: of sequences of one length, without heads of B and C, the states written in place."""
    if not fast(x) or min(lengths) < max(lengths):
        return ops.selective_steps(x.float(), dt, a, b.float(), c.float(), state, lengths)
    sequences, heads, dim, size = state.shape
    steps, groups = lengths[0], b.shape[1]
    together = sequences * groups
    decay = (dt * a).exp_().view(sequences, steps, heads, 1, 1).unbind(1)
    added = (x * dt[..., None]).view(sequences, steps, groups, -1, 1).unbind(1)
    rows = b.float().view(sequences, steps, groups, 1, size).unbind(1)
    columns = c.float().view(sequences, steps, groups, size).unbind(1)
    after, y = torch.empty(steps, *state.shape), torch.empty(steps, together, heads // groups * dim, 1)
    before = state
    for step, now in enumerate(after.unbind(0)):
        torch.mul(before, decay[step], out=now)
        now.view(sequences, groups, -1, size).addcmul_(added[step], rows[step])
        torch.bmm(now.view(together, -1, size), columns[step].reshape(together, size, 1), out=y[step])
        before = now
    return y.view(steps, sequences, heads, dim).transpose(0, 1).reshape(x.shape), after


def causal_attention(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "kv_heads keys dim"],
    v: Float[Tensor, "kv_heads keys dim"],
    window: int | None = None,
    *,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "queries heads dim"]:
    """See `ops.causal_attention`: queries' heads that share keys are rows of one product, so no key is copied."""
    queries, keys = len(q), k.shape[1]
    if sinks is not None or not fast(q) or (queries > 1 and window is not None):
        return ops.causal_attention(q, k, v, window, sinks=sinks)
    if queries > FEW_QUERIES:
        return _blocked_attention(q, k, v)
    if queries > 1:
        rows = q.view(queries, len(k), -1, q.shape[-1]).transpose(0, 1)  # (kv_heads, queries, heads of each, dim)
        unseen = _unseen(queries, keys, rows.shape[2], q.dtype)
        mixed = F.scaled_dot_product_attention(rows.flatten(1, 2)[None], k[None], v[None], attn_mask=unseen)
        return mixed[0].view(rows.shape).transpose(0, 1).reshape(q.shape)
    if window is not None:
        k, v = k[:, -window:], v[:, -window:]
    if k.shape[1] >= MANY_KEYS and q.dtype == torch.bfloat16 and fast_bfloat16():
        return _attention_by_head(q, k, v)
    rows = q.view(1, len(k), -1, q.shape[-1])
    return F.scaled_dot_product_attention(rows, k[None], v[None]).view(q.shape)


def _attention_by_head(
    q: Float[Tensor, "1 heads dim"], k: Float[Tensor, "kv_heads keys dim"], v: Float[Tensor, "kv_heads keys dim"]
) -> Float[Tensor, "1 heads dim"]:
    """Two products and a softmax between for each head of keys: all threads read it together."""
    rows = (q * q.shape[-1] ** -0.5).view(len(k), -1, q.shape[-1])
    out = torch.empty_like(rows)
    for head, mixed in enumerate(out):
        torch.mm((rows[head] @ k[head].t()).softmax(-1), v[head], out=mixed)
    return out.view(q.shape)


def _blocked_attention(
    q: Float[Tensor, "queries heads dim"], k: Float[Tensor, "kv_heads keys dim"], v: Float[Tensor, "kv_heads keys dim"]
) -> Float[Tensor, "queries heads dim"]:
    """Some queries at a time, against the keys that the last of them sees: two products and a softmax between."""
    queries, (kv_heads, keys, dim) = len(q), k.shape
    kind, out = multiplied_in(q.dtype), torch.empty_like(q)
    q, k, v = (q * dim**-0.5).view(queries, kv_heads, -1, dim).to(kind), k.to(kind), v.to(kind)
    each = q.shape[2]
    block = min(MOST_QUERIES, max(LEAST_QUERIES, SCORES // (each * keys)))
    for start in range(0, queries, block):
        count = min(block, queries - start)
        seen = keys - queries + start + count
        for head in range(kv_heads):
            scores = q[start : start + count, head].reshape(-1, dim) @ k[head, :seen].t()
            scores.view(count, each, seen)[..., seen - count :].add_(_later(count)[:, None])
            mixed = scores.softmax(-1) @ v[head, :seen]
            out[start : start + count, head * each : (head + 1) * each] = mixed.view(count, each, dim)
    return out


@lru_cache(maxsize=2)  # the layers of one read share it
def _unseen(queries: int, keys: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "rows keys"]:
    """-inf where the key is later than the query, else 0; a row for each head of each query, the last of the keys."""
    with torch.inference_mode(False):
        return F.pad(_later(queries).to(dtype).repeat_interleave(heads, 0), (keys - queries, 0))


def mix_experts(
    x: Float[Tensor, "tokens width"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
    expert: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "tokens width"]:
    """See `ops.mix_experts`: an expert's rows are fetched, worked on and added up while they lie in the cache."""
    if not fast(x):
        return ops.mix_experts(x, chosen, weights, expert)
    if len(x) == 1:
        results = torch.cat([expert(number, x) for number in chosen[0].tolist()])
        return (weights.float() @ results.float()).to(x.dtype)
    order = chosen.flatten().argsort(stable=True)
    rows, start = order // chosen.shape[1], 0
    results: Tensor | None = None
    for number, load in enumerate(chosen.flatten().bincount().tolist()):
        if load:
            made = expert(number, x.index_select(0, rows[start : start + load]))
            results = made.new_empty(len(order), made.shape[1]) if results is None else results
            results[start : start + load] = made  # while it lies in the cache
            start += load
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view(chosen.shape)
    assert results is not None
    return F.embedding_bag(places, results, per_sample_weights=weights.to(results.dtype), mode="sum").to(x.dtype)
