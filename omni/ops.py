"""Readable reference maths of the backbone: norms, the Mamba-2 scan, rotary positions, attention, routing.

Sequences are packed: rows of all sequences lie one behind the other, `lengths` says how many rows each has. Every
function here is plain torch, differentiable, and the oracle of its fast twin in `kernels`.

Sources: Mamba-2 (arXiv 2405.21060, sections 6 and 7), Nemotron-H / Nemotron Nano 2 (arXiv 2508.14444), Nemotron 3 Nano
(arXiv 2512.20848), Llama 3 (arXiv 2407.21783) for the scaled rotary positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Lengths = tuple[int, ...]


def rms_norm(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*rows width"]:
    """Divide each row by its root mean square and scale it; in float32, weight included, back in x's dtype."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def gated_group_rms_norm(
    y: Float[Tensor, "tokens inner"],
    gate: Float[Tensor, "tokens inner"],
    weight: Float[Tensor, " inner"],
    groups: int,
    eps: float,
) -> Float[Tensor, "tokens inner"]:
    """Mamba-2's output norm: y * SiLU(gate), then RMSNorm within each of `groups` equal parts; in float32."""
    wide = (y.float() * F.silu(gate.float())).unflatten(-1, (groups, -1))  # (tokens, groups, inner / groups)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide.flatten(-2) * weight.float()).to(gate.dtype)


def relu2(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squared ReLU."""
    return F.relu(x).square()


# Mamba-2


def causal_conv(
    x: Float[Tensor, "tokens channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    lengths: Lengths,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "sequences past channels"]]:
    """Depthwise causal convolution and SiLU along each sequence.

    history: the `taps - 1` inputs before each sequence (zeros at the start), float32. Returns the outputs in x's
    dtype and the history for what comes next.
    """
    past, weight = weight.shape[1] - 1, weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    extended = behind_histories(x, lengths, history)
    count = len(extended) - past
    out = sum(extended[tap : tap + count] * weight[:, tap] for tap in range(past + 1))
    assert isinstance(out, Tensor)
    out = own_rows(out, lengths, past)
    return F.silu(out if bias is None else out + bias), last_rows(extended, lengths, past)


def behind_histories(x: Tensor, lengths: Lengths, history: Tensor) -> Float[Tensor, "rows channels"]:
    """Each sequence behind its own history, packed, in x's dtype."""
    parts: list[Tensor] = []
    for before, rows in zip(history.to(x.dtype), x.split(list(lengths)), strict=True):
        parts += [before, rows]
    return torch.cat(parts)


def own_rows(out: Tensor, lengths: Lengths, past: int) -> Float[Tensor, "tokens channels"]:
    """Outputs of a convolution over `behind_histories`, without those that straddle two sequences."""
    if len(lengths) == 1:
        return out
    starts = accumulate(lengths, lambda start, length: start + past + length, initial=0)
    return torch.cat([out[start : start + n] for start, n in zip(starts, lengths, strict=False)])


def last_rows(extended: Tensor, lengths: Lengths, past: int) -> Float[Tensor, "sequences past channels"]:
    """The histories for what comes after `behind_histories`, float32."""
    ends = accumulate(past + length for length in lengths)
    return torch.stack([extended[end - past : end] for end in ends]).float()


def short_conv(
    x: Float[Tensor, "tokens channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    lengths: Lengths,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "sequences past_and_steps channels"]]:
    """`causal_conv` for sequences of a few tokens, all abreast.

    Returns the inputs in place of the history, each sequence's behind its past (ends filled up with zeros): whoever
    goes back to a sequence's n-th token takes the rows n to n + past.
    """
    ones = [1] * len(lengths)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    inputs = torch.cat((history.to(x.dtype), to_chunks(x, lengths, ones, max(lengths))), 1)
    windows = inputs.unfold(1, weight.shape[1], 1)  # (sequences, steps, channels, taps)
    out = from_chunks((windows * weight).sum(-1), lengths, ones)
    return F.silu(out if bias is None else out + bias), inputs


def selective_steps(
    x: Float[Tensor, "tokens heads dim"],
    dt: Float[Tensor, "tokens heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "tokens groups state"],
    c: Float[Tensor, "tokens groups state"],
    state: Float[Tensor, "sequences heads dim state"],
    lengths: Lengths,
) -> tuple[Float[Tensor, "tokens heads dim"], Float[Tensor, "steps sequences heads dim state"]]:
    """A few tokens a sequence, one by one: h = exp(dt a) h + dt x B, y = h C.

    All float32; dt is after its softplus, a is negative. Returns the state after each token (sequences that have
    ended keep theirs).
    """
    ones = [1] * len(lengths)
    per_group = a.shape[0] // b.shape[1]
    x, dt, b, c = (to_chunks(value, lengths, ones, max(lengths)) for value in (x, dt, b, c))
    b, c = b.repeat_interleave(per_group, 2), c.repeat_interleave(per_group, 2)  # (sequences, steps, heads, state)
    decay = torch.exp(dt * a)[..., None, None]
    xdt = (x * dt[..., None])[..., None]  # (sequences, steps, heads, dim, 1)
    states: list[Tensor] = []
    for step in range(x.shape[1]):
        state = torch.addcmul(state * decay[:, step], xdt[:, step], b[:, step, :, None])
        states.append(state)
    after = torch.stack(states)
    y = (after @ c.transpose(0, 1)[..., None]).squeeze(-1).transpose(0, 1)  # (sequences, steps, heads, dim)
    return from_chunks(y, lengths, ones), after


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
    """The same recurrence over whole sequences, in chunks: quadratic inside a chunk, linear between chunks.

    Each sequence is cut into chunks of its own (the last one filled up with dt = 0, which changes nothing), all
    chunks are computed side by side, and only the states between chunks are carried one after the other. Any `chunk`
    gives the same result up to rounding. Source: Mamba-2, section 6.
    """
    chunk = min(chunk, max(lengths))
    counts = [-(-length // chunk) for length in lengths]
    x, dt, b, c = (to_chunks(value, lengths, counts, chunk) for value in (x, dt, b, c))
    groups, per_group = b.shape[2], a.shape[0] // b.shape[2]

    log_decay = (dt * a).cumsum(1).unflatten(-1, (groups, per_group))  # (chunks, steps, groups, per_group)
    xdt = (x * dt[..., None]).unflatten(2, (groups, per_group))  # (chunks, steps, groups, per_group, dim)

    # Inside a chunk: y_i = sum_{j <= i} exp(l_i - l_j) (C_i . B_j) dt_j x_j
    by_head = log_decay.permute(0, 2, 3, 1)  # (chunks, groups, per_group, steps)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    weights = (by_head[..., :, None] - by_head[..., None, :]).masked_fill(later, -torch.inf).exp()
    weights = weights * torch.einsum("kigs,kjgs->kgij", c, b)[:, :, None]
    y = torch.einsum("kghij,kjghd->kighd", weights, xdt)

    # What each chunk adds to the state, and the state that enters each chunk
    to_end = (log_decay[:, -1:] - log_decay).exp()
    added = torch.einsum("kjgs,kjghd->kghds", b, xdt * to_end[..., None]).flatten(1, 2)
    entering, state = carry(added, log_decay[:, -1].flatten(1).exp(), state, counts)
    entering = entering.unflatten(1, (groups, per_group))
    y = y + torch.einsum("kigs,kghds->kighd", c, entering) * log_decay.exp()[..., None]

    y = y.flatten(2, 3)  # (chunks, steps, heads, dim)
    return from_chunks(y, lengths, counts), state


def to_chunks(value: Tensor, lengths: Lengths, counts: list[int], chunk: int) -> Tensor:
    """(tokens, ...) → (chunks, chunk, ...), each sequence filled up with zeros at its end."""
    if any(length % chunk for length in lengths):
        parts: list[Tensor] = []
        for rows, count in zip(value.split(list(lengths)), counts, strict=True):
            parts += [rows, rows.new_zeros(count * chunk - len(rows), *rows.shape[1:])]
        value = torch.cat(parts)
    return value.unflatten(0, (-1, chunk))


def from_chunks(value: Tensor, lengths: Lengths, counts: list[int]) -> Tensor:
    chunk = value.shape[1]
    value = value.flatten(0, 1)
    if len(value) == sum(lengths):
        return value
    filled = value.split([count * chunk for count in counts])
    return torch.cat([rows[:length] for rows, length in zip(filled, lengths, strict=True)])


def carry(added: Tensor, decay: Tensor, state: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Run h_{k+1} = decay_k h_k + added_k along each sequence's chunks, all sequences abreast.

    Returns the state that enters each chunk (packed as the chunks are) and each sequence's last state.
    """
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    order = sorted(range(len(counts)), key=lambda i: -counts[i])  # longest first: the active ones are a prefix
    if order != sorted(order):
        state = state[order]
    entering: list[Tensor] = []
    rows: list[int] = []
    last: list[Tensor] = []
    for step in range(max(counts)):
        active = [firsts[i] + step for i in order if counts[i] > step]
        last.append(state[len(active) :])  # sequences that ended before this step
        state = state[: len(active)]
        entering.append(state)
        rows += active
        state = state * decay[active][..., None, None] + added[active]
    last.append(state)
    final = torch.cat(last[::-1])  # back in `order`
    entered = torch.cat(entering)
    if rows != sorted(rows):
        entered = entered[_inverse(rows)]
    return entered, final if order == sorted(order) else final[_inverse(order)]


def _inverse(order: list[int]) -> list[int]:
    places = [0] * len(order)
    for place, row in enumerate(order):
        places[row] = place
    return places


# Attention

MASKED = 2**23  # entries of a mask held at a time, where keys are many


def causal_attention(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "kv_heads keys dim"],
    v: Float[Tensor, "kv_heads keys dim"],
    window: int | None = None,
    block: int = 512,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "queries heads dim"]:
    """Grouped-query attention of the last `queries` positions of a sequence over all its keys so far.

    Query i stands at position keys - queries + i and sees the keys up to its own position, at most `window` of them
    (its own included). sinks: a score of each head that takes part in every softmax and stands for no key (gpt-oss).
    Long calls run in blocks of queries, so memory stays linear in the number of keys, and that of a mask bounded.
    """
    block = min(block, max(1, MASKED // k.shape[1]))
    if sinks is not None:
        return _attention_with_sinks(q, k, v, window, block, sinks)
    queries, keys = q.shape[0], k.shape[1]
    q = q.transpose(0, 1)  # (heads, queries, dim)
    if window is None and queries in (1, keys):
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=queries > 1, enable_gqa=True)
        return out[0].transpose(0, 1)
    parts: list[Tensor] = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        first, last, seen = _seen(keys - queries + start, keys - queries + stop, window, q.device)
        part = F.scaled_dot_product_attention(
            q[None, :, start:stop],
            k[None, :, first:last],
            v[None, :, first:last],
            attn_mask=seen,
            enable_gqa=True,
        )
        parts.append(part[0])
    return torch.cat(parts, 1).transpose(0, 1)


def _seen(start: int, stop: int, window: int | None, device: torch.device) -> tuple[int, int, Tensor]:
    """The keys that queries at positions start to stop see: from, to, and which of them, (queries, keys)."""
    first = 0 if window is None else max(0, start - window + 1)
    at = torch.arange(start, stop, device=device)[:, None]
    key_at = torch.arange(first, stop, device=device)
    return first, stop, key_at <= at if window is None else (key_at <= at) & (key_at > at - window)


def _attention_with_sinks(q: Tensor, k: Tensor, v: Tensor, window: int | None, block: int, sinks: Tensor) -> Tensor:
    """One more channel and one more key: that key scores each head's sink for every query, and its value is zero."""
    queries, keys, size = q.shape[0], k.shape[1], q.shape[2]
    q = torch.cat((q, (sinks * size**0.5).to(q.dtype).expand(queries, -1)[..., None]), -1).transpose(0, 1)
    k, v = F.pad(k, (0, 1)), F.pad(v, (0, 1))
    sink = torch.zeros_like(k[:, :1])
    sink[..., -1] = 1
    parts: list[Tensor] = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        first, last, seen = _seen(keys - queries + start, keys - queries + stop, window, q.device)
        part = F.scaled_dot_product_attention(
            q[None, :, start:stop],
            torch.cat((sink, k[:, first:last]), 1)[None],
            F.pad(v[:, first:last], (0, 0, 1, 0))[None],
            attn_mask=F.pad(seen, (1, 0), value=True),
            enable_gqa=True,
            scale=size**-0.5,
        )
        parts.append(part[0])
    return torch.cat(parts, 1).transpose(0, 1)[..., :size]


def rope_frequencies(
    dim: int,
    theta: float,
    factor: float = 1.0,
    low: float = 1.0,
    high: float = 1.0,
    original: int = 0,
    yarn: bool = False,
) -> Float[Tensor, " half"]:
    """Radians a position for each pair of channels; with `original` > 0, scaled for contexts longer than that.

    Waves longer than original/low are slowed by `factor`, those shorter than original/high are kept, and those
    between are blended: by their turns within the original context (Llama 3), or by the logarithm of these (YaRN).
    Sources: Llama 3, section 3.2 and its released configs; YaRN (arXiv 2309.00071, section 3.2).
    """
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if original:
        turns = original * frequencies / (2 * math.pi)
        if yarn:
            turns, low, high = turns.log(), math.log(low), math.log(high)
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (blend + (1 - blend) / factor)
    return frequencies.float()


def rotate(
    x: Float[Tensor, "tokens heads dim"],
    positions: Int[Tensor, " tokens"],
    frequencies: Float[Tensor, " half"],
    amplitude: float = 1.0,
) -> Float[Tensor, "tokens heads dim"]:
    """Rotary positions: turn the channel pairs (i, i + dim/2) by position * frequency, and scale them by `amplitude`.

    In float32, back in x's dtype.
    """
    angles = (positions[:, None].float() * frequencies)[:, None]  # (tokens, 1, half)
    cos, sin = amplitude * angles.cos(), amplitude * angles.sin()
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


# Mixture of experts


def choose_experts(
    scores: Float[Tensor, "tokens experts"], top_k: int, groups: int = 1, top_groups: int = 1
) -> Int[Tensor, "tokens top_k"]:
    """The `top_k` best experts of each token, taken from the `top_groups` groups whose two best experts score most."""
    if groups > 1:
        by_group = scores.unflatten(-1, (groups, -1))
        group_scores = by_group.topk(min(2, by_group.shape[-1]), -1).values.sum(-1)
        best = group_scores.topk(top_groups, -1).indices
        open_groups: Bool[Tensor, "tokens groups"] = torch.zeros_like(group_scores, dtype=torch.bool)
        open_groups = open_groups.scatter(-1, best, True)
        scores = by_group.masked_fill(~open_groups[..., None], -torch.inf).flatten(-2)
    return scores.topk(top_k, -1).indices


def mix_experts(
    x: Float[Tensor, "tokens width"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
    expert: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "tokens width"]:
    """Sum over each token's chosen experts of weight * expert(its number, the token).

    Tokens are sorted by expert once and each expert that was chosen runs on its own contiguous rows.
    """
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    rows = order // chosen.shape[1]
    loads = flat.bincount().tolist()
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, weights.dtype))
    parts = x[rows].split(loads)
    results = [expert(number, part) for number, part in enumerate(parts) if len(part)]
    weighted = torch.cat(results) * weights.flatten()[order, None]
    return out.index_add(0, rows, weighted.to(out.dtype)).to(x.dtype)


def clamped_swiglu(
    gate: Float[Tensor, "rows hidden"], up: Float[Tensor, "rows hidden"], limit: float
) -> Float[Tensor, "rows hidden"]:
    """gpt-oss's gate: SiLU of slope 1.702 times (up + 1), both clamped first."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)
