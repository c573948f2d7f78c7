"""Audio: log-mel frames of 16 kHz mono samples, whole or in chunks cut at quiet points.

The features are those of NVIDIA's Parakeet-TDT-0.6B-v2 (FastConformer, arXiv 2305.05084), which Nemotron 3 Nano Omni
(arXiv 2604.24954) listens with. The encoder makes a token of 8 frames, 80 ms. Training heard at most 20 minutes at
once; a longer recording becomes chunks that overlap by whole tokens, and what overlaps is trimmed after the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

STRIDE = 8  # mel frames a token


@dataclass(frozen=True, slots=True, kw_only=True)
class MelRule:
    """How samples become mel frames; the defaults are the released encoder's.

    rate: samples a second. fft, window, hop: in samples. floor: added to the power before the logarithm; eps: to the
    deviation of each mel. extra_frame: one more frame, of zeros, at the end, as engines that count 1 + samples // hop
    have it. shortest: shorter sounds are padded with silence to so many samples.
    """

    rate: int = 16000
    fft: int = 512
    window: int = 400
    hop: int = 160
    mels: int = 128
    preemphasis: float = 0.97
    floor: float = 2**-24
    eps: float = 1e-5
    extra_frame: bool = False
    shortest: int = 0

    @property
    def block(self) -> int:
        """Samples a token."""
        return self.hop * STRIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRule:
    """How a recording longer than `longest` seconds (None: none is) is cut; all in seconds.

    quiet: chunks of even length, each border moved by at most `search` to where `pause` is quietest, and each chunk
    heard `overlap` beyond its borders. Without: chunks of `longest`, cut hard, the rest last.
    """

    longest: float | None = 1200.0
    quiet: bool = True
    overlap: float = 10.0
    search: float = 20.0
    pause: float = 0.4

    def __post_init__(self) -> None:
        needed = 2 * self.overlap + 6 * self.search if self.quiet else 0
        if min(self.overlap, self.search, self.pause) < 0 or (self.longest is not None and self.longest <= needed):
            raise ValueError(
                f"ChunkRule: chunks of {self.longest} s, overlap {self.overlap} s, search {self.search} s came; "
                "want none negative, and chunks longer than twice the overlap and six times the search"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioRule:
    """Features and chunks."""

    mel: MelRule = field(default_factory=MelRule)
    chunk: ChunkRule = field(default_factory=ChunkRule)

    def __post_init__(self) -> None:
        if not self.chunk.quiet and self.mel.shortest < self.mel.hop:
            raise ValueError(
                f"AudioRule: hard cuts leave a rest of any length, padded to {self.mel.shortest} samples; "
                f"pad it to at least a frame of {self.mel.hop}"
            )

    def is_long(self, samples: int) -> bool:
        """Whether a recording of so many samples is cut."""
        return self.chunk.longest is not None and samples > self.chunk.longest * self.mel.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Samples start to end, encoded alone; of its tokens the first and last few are trimmed, another chunk has them."""

    start: int
    end: int
    trim_start: int = 0
    trim_end: int = 0


REFERENCE = AudioRule()
TRANSFORMERS = AudioRule(mel=MelRule(extra_frame=True), chunk=ChunkRule(longest=None))
VLLM = AudioRule(mel=MelRule(shortest=1600), chunk=ChunkRule(longest=30.0, quiet=False))


def num_frames(samples: int, rule: MelRule = REFERENCE.mel) -> int:
    """Mel frames of a sound of so many samples, encoded as one. Raises ValueError where there is none."""
    frames = max(samples, rule.shortest) // rule.hop
    if not frames:
        raise ValueError(
            f"mel_features: a sound of {samples} samples came; want at least {rule.hop}, a frame of "
            f"{1000 * rule.hop / rule.rate:g} ms"
        )
    return frames + rule.extra_frame


def num_tokens(samples: int, rule: AudioRule = REFERENCE) -> int:
    """Tokens of a recording of so many samples, chunked or whole. Raises ValueError where there is none."""
    if rule.chunk.quiet or not rule.is_long(samples):
        return _tokens(num_frames(samples, rule.mel))
    full, rest = divmod(samples, _hard(rule))
    return full * _tokens(num_frames(_hard(rule), rule.mel)) + (_tokens(num_frames(rest, rule.mel)) if rest else 0)


def _tokens(frames: int) -> int:
    """(n - 1) // 2 + 1, three times."""
    return -(-frames // STRIDE)


def _hard(rule: AudioRule) -> int:
    """Samples of a hard chunk."""
    assert rule.chunk.longest is not None
    return int(rule.chunk.longest * rule.mel.rate)


def mel_features(samples: Shaped[Tensor, "*samples"], rule: MelRule = REFERENCE.mel) -> Float[Tensor, "frames mels"]:
    """Log-mel frames of one sound at the rule's rate, normalised: each mel to mean 0 and deviation 1 over the frames.

    Computed in pieces, so memory is little more than the result's. Silence becomes zeros; so does a single frame,
    which has no deviation. Raises ValueError for anything but one axis of finite floats, and for less than a frame.
    """
    _check("mel_features", samples)
    count = num_frames(len(samples), rule)
    samples = samples.float()
    if len(samples) < rule.shortest:
        samples = F.pad(samples, (0, rule.shortest - len(samples)))
    out = torch.zeros(count, rule.mels, device=samples.device)
    valid = out[: count - rule.extra_frame]
    log_mel(samples, rule, out=valid)
    # Summed in float64: the mean of a constant is that constant, so silence is exactly zero, however long.
    pieces = valid.split(4096)
    valid -= (torch.stack([piece.double().sum(0) for piece in pieces]).sum(0) / len(valid)).float()
    squares = torch.stack([piece.double().square().sum(0) for piece in pieces]).sum(0)
    valid /= (squares / max(len(valid) - 1, 1)).sqrt().float() + rule.eps
    return out


def log_mel(
    samples: Float[Tensor, " samples"],
    rule: MelRule = REFERENCE.mel,
    *,
    out: Float[Tensor, "frames mels"] | None = None,
    piece: int = 4096,
) -> Float[Tensor, "frames mels"]:
    """Mel frames before normalisation: frame i is centred on sample i * hop, with silence beyond the ends.

    `piece` frames at a time, which changes nothing but the memory. len(samples) // hop frames, written to `out` where
    it is given.
    """
    count = len(samples) // rule.hop
    out = samples.new_empty(count, rule.mels) if out is None else out
    window = torch.hann_window(rule.window, periodic=False, device=samples.device)
    bank = filterbank(rule).to(samples.device)
    reach = rule.fft // 2
    for first in range(0, count, piece):
        last = min(first + piece, count)
        start, stop = first * rule.hop - reach, (last - 1) * rule.hop + reach  # in samples
        heard = samples[max(start - 1, 0) : min(stop, len(samples))]
        emphasised = heard[1:] - rule.preemphasis * heard[:-1]
        if start <= 0:  # the first sample of all has none before it
            emphasised = torch.cat((heard[:1], emphasised))
        padded = F.pad(emphasised, (max(-start, 0), max(stop - len(samples), 0)))
        spectrum = torch.stft(padded, rule.fft, rule.hop, rule.window, window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # (bins, frames)
        torch.log(power.T @ bank + rule.floor, out=out[first:last])
    return out


@cache
def filterbank(rule: MelRule = REFERENCE.mel) -> Float[Tensor, "bins mels"]:
    """Slaney's triangular filters from 0 Hz to half the rate, of equal area: linear in Hz below 1 kHz, then in its log.

    Computed in float64 (in float32 the features move by 1e-4). Source: M. Slaney, Auditory Toolbox (1998).
    """
    bins = torch.linspace(0, rule.rate / 2, rule.fft // 2 + 1, dtype=torch.float64)[:, None]
    top = 15 + 27 * log(rule.rate / 2000) / log(6.4) if rule.rate > 2000 else 3 * rule.rate / 400
    mels = torch.linspace(0, top, rule.mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * log(6.4) / 27))  # in Hz
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)).float()


def block_energy(
    samples: Shaped[Tensor, "*samples"], rule: MelRule = REFERENCE.mel, *, piece: int = 1024
) -> Float[Tensor, " blocks"]:
    """Mean square of each token's samples; the last token may have fewer. `piece` tokens at a time.

    A recording that is decoded in parts of whole tokens may pass them one by one and join the results. Raises
    ValueError for anything but one axis of finite floats.
    """
    _check("block_energy", samples)
    energy = []
    for part in samples.split(piece * rule.block):
        rest = len(part) % rule.block
        energy.append(part[: len(part) - rest].float().view(len(part) // rule.block, rule.block).square().mean(1))
        if rest:
            energy.append(part[-rest:].float().square().mean()[None])
    return torch.cat(energy)


def chunks(samples: int, energy: Float[Tensor, " blocks"] | None = None, rule: AudioRule = REFERENCE) -> list[Chunk]:
    """How a recording of so many samples is encoded: one chunk where it is short enough, else several.

    The tokens that the chunks keep are num_tokens(samples), in order; with quiet cuts they lie on the grid of the
    recording as a whole, token t at t * 80 ms: none repeated, none lost. Cuts at quiet points need the recording's
    `block_energy`. Raises ValueError without it, where it does not fit, and for a sound of less than a frame.
    """
    num_frames(samples, rule.mel)
    if not rule.is_long(samples):
        return [Chunk(start=0, end=samples)]
    if not rule.chunk.quiet:
        size = _hard(rule)
        return [Chunk(start=start, end=min(start + size, samples)) for start in range(0, samples, size)]
    block = rule.mel.block
    if energy is None or len(energy) != -(-samples // block):
        raise ValueError(
            f"chunks: {'no' if energy is None else len(energy)} energies came for {samples} samples, which are cut at "
            f"quiet points; pass the {-(-samples // block)} of block_energy"
        )
    total = num_tokens(samples, rule)
    overlap = _in_tokens(rule.chunk.overlap, rule)
    borders = [0, *_quiet_borders(energy, total, rule), total]
    made = []
    for first, last in pairwise(borders):
        from_token, to_token = max(first - overlap, 0), min(last + overlap, total)
        start, end = from_token * block, samples if to_token == total else to_token * block
        tokens = _tokens(num_frames(end - start, rule.mel))
        trim_start = first - from_token
        trim_end = tokens - trim_start - (last - first)
        made.append(Chunk(start=start, end=end, trim_start=trim_start, trim_end=trim_end))
    return made


def features(
    samples: Shaped[Tensor, "*samples"], rule: AudioRule = REFERENCE
) -> Iterator[tuple[Chunk, Float[Tensor, "frames mels"]]]:
    """The chunks of a recording and their mel frames, one at a time, each normalised by itself.

    Raises ValueError as `mel_features` does.
    """
    _check("features", samples)
    energy = block_energy(samples, rule.mel) if rule.chunk.quiet and rule.is_long(len(samples)) else None
    for chunk in chunks(len(samples), energy, rule):
        yield chunk, mel_features(samples[chunk.start : chunk.end], rule.mel)


def _quiet_borders(energy: Tensor, total: int, rule: AudioRule) -> list[int]:
    """Tokens before which to cut: evenly spaced, then moved to the quietest pause nearby."""
    assert rule.chunk.longest is not None
    search = _in_tokens(rule.chunk.search, rule)
    longest = int(rule.chunk.longest * rule.mel.rate) // rule.mel.block
    kept = longest - 2 * (_in_tokens(rule.chunk.overlap, rule) + search)  # a chunk may grow by this much
    count = -(-total // kept)
    pause = max(_in_tokens(rule.chunk.pause, rule), 1) | 1  # odd, so that it has a middle
    # The border before token t lies in the samples of block t - 1, so that block is the middle of the pause.
    smooth = F.avg_pool1d(F.pad(energy.double()[None], (pause // 2, pause // 2), value=0.0), pause, 1)[0]
    borders = []
    for i in range(1, count):
        even = total * i // count
        nearby = smooth[even - search - 1 : even + search]
        distance = torch.arange(-search, search + 1, device=nearby.device).abs()
        quietest = torch.where(nearby == nearby.min(), distance, search + 1).argmin()
        borders.append(even - search + int(quietest))
    return borders


def _in_tokens(seconds: float, rule: AudioRule) -> int:
    return round(seconds * rule.mel.rate / rule.mel.block)


def _check(where: str, samples: Tensor) -> None:
    if samples.ndim != 1 or not samples.is_floating_point():
        raise ValueError(
            f"{where}: {str(samples.dtype).removeprefix('torch.')} of shape {tuple(samples.shape)} came; "
            "want one axis of floats, mono; mix channels down, and scale integers to -1..1"
        )
    start = 0
    for part in samples.split(1 << 20):
        if not part.isfinite().all():
            place = start + int((~part.isfinite()).nonzero()[0])
            raise ValueError(
                f"{where}: sample {place} is {samples[place].item()}; want finite samples; save the sound anew"
            )
        start += len(part)
