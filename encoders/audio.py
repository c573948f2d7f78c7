"""Audio tower: FastConformer, eightfold subsampling, relative positions; sounds of all lengths packed.

Mel frames lie one sound behind the other; every sound is encoded as if alone, and memory grows linearly with its
length: subsampling runs in pieces that overlap by exactly their reach, attention in blocks of queries. What a token
hears of its sound is a `Window`: all of it, or stretches that `encoders.audio_stream` can follow live. Sources:
FastConformer (arXiv 2305.05084), Conformer (arXiv 2005.08100), Transformer-XL's relative positions (arXiv 1901.02860,
section 3.3); the released encoder is Parakeet-TDT-0.6B-v2's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.window import WHOLE, Span, Window, attention_spans, convolution_spans

STRIDE = 8  # mel frames a token
SCORES = 2**22  # attention scores a head computed at a time, where sounds or chunks are small
MANY = 128  # queries from which heads go one by one, where that is faster


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioConfig:
    """FastConformer's shape; the defaults are the released encoder's."""

    width: int = 1024
    depth: int = 24
    heads: int = 8
    ff_width: int = 4096
    mels: int = 128
    kernel: int = 9
    subsampling_channels: int = 256
    eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.ff_width, self.mels, self.kernel, self.subsampling_channels)
        if min(sizes) < 1 or self.width % (2 * self.heads) or self.mels % STRIDE or not self.kernel % 2:
            raise ValueError(
                f"AudioConfig: {self} does not fit; want positive sizes, width divisible by twice the heads, mels by "
                "8, "
                "an odd kernel"
            )


def num_tokens(frames: int) -> int:
    """Tokens of a sound of so many mel frames: (n - 1) // 2 + 1, three times. Raises ValueError for an empty sound."""
    if frames < 1:
        raise ValueError(f"FastConformer: a sound of {frames} mel frames came; want at least one (10 ms)")
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


class Subsampling(nn.Module):
    """Three convolutions of stride 2 over (time, mel), then a linear: 80 ms a token."""

    piece = 512  # tokens computed at a time

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        c = config.subsampling_channels
        layers: list[nn.Module] = [nn.Conv2d(1, c, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(c * config.mels // STRIDE, config.width)

    def forward(self, mels: Float[Tensor, "frames mels"], lengths: list[int]) -> Float[Tensor, "tokens width"]:
        """Mel frames of packed sounds of these lengths → one token for eight frames."""
        tokens: list[Tensor] = []
        start = 0
        for length, run in groupby(lengths):
            count = len(list(run))
            sounds = mels[start : start + count * length].unflatten(0, (count, length))
            start += count * length
            pieces = [
                self._piece(sounds, first, first + self.piece) for first in range(0, num_tokens(length), self.piece)
            ]
            tokens.append(torch.cat(pieces, 1).flatten(0, 1))
        return self.linear(torch.cat(tokens))

    def _piece(self, sounds: Tensor, first: int, last: int) -> Tensor:
        """Tokens first to last, exactly: a token reaches 7 frames to either side, so one more is read and dropped."""
        before = min(first, 1)
        return self.convolve(sounds[:, (first - before) * STRIDE : last * STRIDE], before)

    def convolve(
        self, sounds: Float[Tensor, "sounds frames mels"], drop: int
    ) -> Float[Tensor, "sounds tokens features"]:
        """The convolutions alone, without their first `drop` tokens, which did not hear what came before."""
        x = self.layers(sounds[:, None])  # (sounds, channels, tokens, mels / 8)
        return x.transpose(1, 2).flatten(2)[:, drop:]


class FeedForward(nn.Module):
    """Linear, SiLU, linear; no biases."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.width, config.ff_width, bias=False)
        self.linear2 = nn.Linear(config.ff_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Each token alone."""
        return self.linear2(F.silu(self.linear1(x)))


class RelativeAttention(nn.Module):
    """Attention with Transformer-XL's relative positions: (q + u) k + (q + v) r, r of the distance key to query."""

    block = 512  # queries computed at a time

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.heads = config.heads
        shape = (config.heads, config.width // config.heads)
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.relative_k_proj = nn.Linear(config.width, config.width, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(shape))
        self.bias_v = nn.Parameter(torch.zeros(shape))

    def forward(
        self, x: Float[Tensor, "tokens width"], spans: Sequence[Span], distances: Float[Tensor, "distances width"]
    ) -> Float[Tensor, "tokens width"]:
        """`spans` cover the rows in order. `distances` holds the sinusoids from the largest down to its negative."""
        return self.attend(x, self.k_proj(x), self.v_proj(x), self.relative_k_proj(distances), spans)

    def attend(
        self,
        x: Float[Tensor, "tokens width"],
        keys: Float[Tensor, "heard width"],
        values: Float[Tensor, "heard width"],
        relative: Float[Tensor, "distances width"],
        spans: Sequence[Span],
    ) -> Float[Tensor, "tokens width"]:
        """The same with keys and values at hand, also of tokens before x: x are the last rows that `spans` counts."""
        before, zero = len(keys) - len(x), len(relative) // 2  # zero: where distance 0 stands
        q, k, v, r = (part.unflatten(-1, (self.heads, -1)) for part in (self.q_proj(x), keys, values, relative))
        content, position, falling = q + self.bias_u, q + self.bias_v, r.transpose(0, 1)
        mixed: list[Tensor] = []
        for group in _alike(spans, self.block):
            start, stop, first, last = group[0]
            c, p = (_rows(part, [(s.start - before, s.stop - before) for s in group]) for part in (content, position))
            heard, said = (_rows(part, [(s.first, s.last) for s in group]) for part in (k, v))
            near = falling[:, zero - (stop - 1 - first) : zero + last - start]  # distances from largest to smallest
            if (
                stop - start >= MANY
                and x.dtype == torch.bfloat16
                and x.device.type == "cpu"
                and not torch.is_grad_enabled()
            ):
                mixed.append(_head_by_head(c, p, heard, said, near).transpose(1, 2).flatten(0, 1))
                continue
            bias = _shift(p @ near.transpose(1, 2), last - first) * heard.shape[-1] ** -0.5
            mixed.append(F.scaled_dot_product_attention(c, heard, said, attn_mask=bias).transpose(1, 2).flatten(0, 1))
        return self.o_proj(torch.cat(mixed).flatten(1))


def _head_by_head(
    content: Float[Tensor, "sounds heads rows dim"],
    position: Float[Tensor, "sounds heads rows dim"],
    keys: Float[Tensor, "sounds heads keys dim"],
    values: Float[Tensor, "sounds heads keys dim"],
    near: Float[Tensor, "heads distances dim"],
) -> Float[Tensor, "sounds heads rows dim"]:
    """softmax((content keys^T + position near^T, shifted) / sqrt(dim)) values: in bfloat16 on a CPU as three products
    and a softmax two to four times as fast as torch's attention with a mask.
    """
    sounds, heads, rows, dim = content.shape
    scale, out = dim**-0.5, content.new_empty(sounds, rows, heads, dim).transpose(1, 2)
    for sound in range(sounds):
        for head in range(heads):
            bias = _shift((position[sound, head] @ near[head].t())[None, None], keys.shape[2])[0, 0]
            scores = torch.addmm(bias, content[sound, head], keys[sound, head].t(), beta=scale, alpha=scale)
            out[sound, head] = scores.softmax(-1) @ values[sound, head]
    return out


def _alike(spans: Sequence[Span], block: int) -> Iterator[list[Span]]:
    """Spans in order, at most `block` rows long, and together where neighbours have one shape and are small."""
    cut = (
        Span(start, min(start + block, stop), first, last)
        for whole_start, stop, first, last in spans
        for start in range(whole_start, stop, block)
    )
    for (rows, keys, _), run in groupby(cut, lambda s: (s.stop - s.start, s.last - s.first, s.start - s.first)):
        alike = list(run)
        size = max(SCORES // (rows * keys), 1)
        for at in range(0, len(alike), size):
            yield alike[at : at + size]


def _rows(x: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Equally long runs of rows (tokens, heads, dim) side by side: (runs, heads, rows, dim)."""
    (start, stop), count = runs[0], len(runs)
    if runs[-1][1] - start == count * (stop - start):  # one behind the other: a view
        return x[start : runs[-1][1]].unflatten(0, (count, stop - start)).transpose(1, 2)
    return torch.stack([x[start:stop] for start, stop in runs]).transpose(1, 2)


def _shift(scores: Tensor, keys: int) -> Tensor:
    """Scores by distance (falling from the last query's distance to key 0) → scores by key: row i starts i later from
    the end.

    A view: row i, key j is entry (rows - 1 - i) + j.
    """
    sounds, heads, rows, distances = scores.shape
    scores = scores.contiguous()
    stride = (heads * rows * distances, rows * distances, distances - 1, 1)
    return scores.as_strided((sounds, heads, rows, keys), stride, scores.storage_offset() + rows - 1)


class Convolution(nn.Module):
    """Pointwise, GLU, depthwise over time, BatchNorm, SiLU, pointwise; no biases."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(config.width, 2 * config.width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(config.width, config.width, config.kernel, groups=config.width, bias=False)
        self.norm = nn.BatchNorm1d(config.width)
        self.pointwise_conv2 = nn.Conv1d(config.width, config.width, 1, bias=False)

    def forward(self, x: Float[Tensor, "tokens width"], spans: Sequence[Span]) -> Float[Tensor, "tokens width"]:
        """`spans` cover the rows in order, each hearing at most half a kernel beyond its own."""
        return self.convolve(self.gate(x), spans)

    def gate(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Pointwise and GLU: what the convolution over time hears."""
        return F.glu(F.linear(x, self.pointwise_conv1.weight.squeeze(-1)))

    def convolve(self, x: Float[Tensor, "heard width"], spans: Sequence[Span]) -> Float[Tensor, "tokens width"]:
        """The rest, for the rows of the spans; zeros stand where a span hears nothing."""
        reach = self.depthwise_conv.kernel_size[0] // 2
        silence = x.new_zeros(reach, x.shape[1])
        parts: list[Tensor] = []
        sizes: list[int] = []
        for start, stop, first, last in spans:
            parts += [silence[: reach - (start - first)], x[first:last], silence[: reach - (last - stop)]]
            sizes += [stop - start, 2 * reach]  # between two spans: rows that hear both
        image = torch.cat(parts)[None, None].permute(0, 3, 1, 2)  # (1, width, 1, heard), channels last in memory
        weight = self.depthwise_conv.weight[:, :, None]
        x = F.conv2d(image, weight, groups=len(weight)).permute(0, 2, 3, 1)[0, 0]
        if len(spans) > 1:
            x = torch.cat(x.split(sizes[:-1])[::2])
        x = F.silu(self.norm(x))
        return F.linear(x, self.pointwise_conv2.weight.squeeze(-1))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(config.width, eps=config.eps)
        self.norm_self_att = nn.LayerNorm(config.width, eps=config.eps)
        self.norm_conv = nn.LayerNorm(config.width, eps=config.eps)
        self.norm_feed_forward2 = nn.LayerNorm(config.width, eps=config.eps)
        self.norm_out = nn.LayerNorm(config.width, eps=config.eps)
        self.feed_forward1 = FeedForward(config)
        self.self_attn = RelativeAttention(config)
        self.conv = Convolution(config)
        self.feed_forward2 = FeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "tokens width"],
        attended: Sequence[Span],
        convolved: Sequence[Span],
        distances: Float[Tensor, "distances width"],
    ) -> Float[Tensor, "tokens width"]:
        """One layer over packed sounds; spans and distances as its parts take them."""
        x = torch.add(x, self.feed_forward1(self.norm_feed_forward1(x)), alpha=0.5)
        x = x + self.self_attn(self.norm_self_att(x), attended, distances)
        x = x + self.conv(self.norm_conv(x), convolved)
        x = torch.add(x, self.feed_forward2(self.norm_feed_forward2(x)), alpha=0.5)
        return self.norm_out(x)


class FastConformer(nn.Module):
    """The encoder. Set `checkpoint` to save memory in training: blocks are computed again going back.

    In training, BatchNorm's statistics are taken over the real frames of all sounds together.
    """

    checkpoint = False

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.depth))

    def forward(
        self, mels: Float[Tensor, "frames mels"], lengths: Int[Tensor, " sounds"], window: Window = WHOLE
    ) -> tuple[Float[Tensor, "tokens width"], Int[Tensor, " sounds"]]:
        """Log-mel frames of packed sounds → features and their number for each sound.

        Raises ValueError when lengths, frames and window do not fit or a sound is empty.
        """
        self.check(window)
        frames = lengths.tolist()
        if sum(frames) != len(mels) or mels.shape[1] != self.config.mels:
            raise ValueError(
                f"FastConformer: {len(mels)} frames of {mels.shape[1]} mels came for lengths {frames}; "
                f"want {sum(frames)} frames of {self.config.mels}"
            )
        counts = [num_tokens(n) for n in frames]
        if not counts:
            return mels.new_zeros(0, self.width), lengths
        x = self.subsampling(mels, frames)
        distances = sinusoids(min(max(counts), window.reach(self.config.depth)), self.width, x)
        for layer, block in enumerate(self.layers):
            attended = attention_spans(counts, window, layer)
            convolved = convolution_spans(counts, window, layer, self.config.kernel // 2)
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, attended, convolved, distances, use_reentrant=False)  # pyright: ignore[reportAssignmentType]  (untyped in torch)
            else:
                x = block(x, attended, convolved, distances)
        return x, torch.tensor(counts, device=lengths.device)

    def check(self, window: Window) -> None:
        """Raise ValueError for a window that waits for more than a convolution hears."""
        reach = self.config.kernel // 2
        if window.ahead > reach:
            raise ValueError(
                f"FastConformer: a window {window.ahead} tokens ahead came, the convolutions hear {reach}; "
                f"want at most {reach}"
            )


def sinusoids(tokens: int, width: int, like: Tensor) -> Float[Tensor, "distances width"]:
    """Sine and cosine, interleaved, of the distances tokens-1 … 1-tokens.

    Computed in float32, in the dtype of `like`.
    """
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width)
    angles = torch.arange(tokens - 1, -tokens, -1, device=like.device)[:, None].float() * frequencies
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(like.dtype)
