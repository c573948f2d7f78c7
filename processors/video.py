"""Video: which frames, the patches of their tubelets, and the text that gives each its time.

A tubelet is two consecutive frames that share their tokens (Nemotron 3 Nano Omni, arXiv 2604.24954); Nemotron Nano
V2 VL (arXiv 2511.03929) has single frames, the preset V2_VL. Frames arrive decoded, as uint8 RGB, with the index and
the true time of each; a long clip is made in segments that end between tubelets, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import ceil, floor, isqrt, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from processors.image import Grid, PixelRule, as_frames, check_grid, resize_into


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRule:
    """How frames become tubelets and their text.

    target: patches of a frame, at the clip's aspect or, without `keep_aspect`, square. tubelet_frames: consecutive
    frames that share their tokens. prefix: text before the first tubelet; training had it, engines leave it out.
    """

    pixels: PixelRule = field(default_factory=PixelRule)
    target: int = 1024
    keep_aspect: bool = True
    tubelet_frames: int = 2
    prefix: str = "This is a video:\n"

    def __post_init__(self) -> None:
        if self.target < self.pixels.shuffle**2 or self.tubelet_frames < 1:
            raise ValueError(
                f"VideoRule: a target of {self.target} patches and tubelets of {self.tubelet_frames} frames came; "
                f"want at least {self.pixels.shuffle**2} and 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`fps` frames a second, at most `cap`.

    Below the cap: the frames nearest to 0, 1/fps, 2/fps … seconds, each once. Where the cap binds: `cap` frames,
    evenly by index. `even` spreads them evenly by index in both cases, floor(duration * fps) of them, as engines do.
    """

    fps: float = 1.0
    cap: int | None = 512
    even: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf") or (self.cap is not None and self.cap < 1):
            raise ValueError(f"Rate: {self.fps} fps, at most {self.cap} frames, came; want more than 0, and at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """So many frames, evenly by index from the first to the last; all of a shorter clip."""

    frames: int = 32

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"Count: {self.frames} frames came; want at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyframes:
    """The file's own key frames, or those of these indices, as a shot detector gives them; at most `cap`, evenly."""

    indices: tuple[int, ...] | None = None
    cap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The frames nearest to these seconds; moments that share a frame get it once."""

    seconds: tuple[float, ...]


Sampling = Rate | Count | Keyframes | Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive sampled frames that can be made by themselves: whole tubelets, but for the clip's last.

    first: how many sampled frames come before. indices: of the frames, in the file.
    """

    first: int
    indices: tuple[int, ...]


REFERENCE = VideoRule()
ENGINES = VideoRule(prefix="")
V2_VL = VideoRule(keep_aspect=False, tubelet_frames=1)
RECIPE = Rate(fps=1.0, cap=512)  # Omni's training recipe
CARD = Rate(fps=2.0, cap=256)  # Omni's model card
ENGINE = Rate(fps=2.0, cap=128, even=True)
ENGINE_COUNT = Count(frames=32)


def clip_grid(width: int, height: int, rule: VideoRule = REFERENCE) -> Grid:
    """The (rows, cols) of patches that every frame of a clip is resized to. Raises ValueError for an empty frame."""
    if min(width, height) < 1:
        raise ValueError(f"clip_grid: frames of {width}x{height} px came; want at least 1x1")
    step = rule.pixels.shuffle
    if not rule.keep_aspect:
        side = isqrt(rule.target) // step * step
        return side, side
    aspect = width / height
    rows, cols = max(round(sqrt(rule.target / aspect)), 1), max(round(sqrt(rule.target * aspect)), 1)
    up = -(-rows // step) * step, -(-cols // step) * step
    if up[0] * up[1] <= rule.target:
        return up
    return max(rows // step * step, step), max(cols // step * step, step)


def num_tokens(frames: int, grid: Grid, rule: VideoRule = REFERENCE) -> int:
    """Visual tokens of a clip of so many sampled frames, before any are dropped; the text is counted elsewhere."""
    return ceil(frames / rule.tubelet_frames) * grid[0] * grid[1] // rule.pixels.shuffle**2


def _whole(value: int | float) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise TypeError
    return int(value)


_PLAIN: dict[str, Callable[[Any], Any]] = {  # from JSON's types
    "fps": float,
    "frames": _whole,
    "cap": lambda most: None if most is None else _whole(most),
    "even": bool,
    "seconds": lambda them: tuple(map(float, them)),
    "indices": lambda them: None if them is None else tuple(map(_whole, them)),
}


def policy(value: object) -> Sampling:
    """A policy in its plain form: "keyframes", {"fps": 2.0, "cap": 128}, {"frames": 32} or {"seconds": [0.5, 9]}.

    A policy stays itself. Raises ValueError for anything else.
    """
    if isinstance(value, Rate | Count | Keyframes | Moments):
        return value
    if value == "keyframes":
        return Keyframes()
    if isinstance(value, Mapping):
        kinds = {"fps": Rate, "frames": Count, "seconds": Moments, "indices": Keyframes}
        kind = next((kind for name, kind in kinds.items() if name in value), None)
        if kind and set(value) <= {field.name for field in fields(kind)}:
            with suppress(TypeError, OverflowError):  # of no numbers, or of a part where a whole is wanted
                return kind(**{name: _PLAIN[name](it) for name, it in value.items()})
    raise ValueError(
        f"sample: the policy {value!r:.80} is unknown; want 'keyframes', {{'fps': 2.0, 'cap': 128}}, {{'frames': 32}} "
        "or {'seconds': [0.5, 9]}"
    )


def sample(
    policy: Sampling,
    frames: int,
    fps: float,
    times: Sequence[float] | None = None,
    keys: Sequence[int] = (),
) -> list[int]:
    """Indices of the frames to take, rising, each once, of a clip of `frames` frames at `fps` on average.

    times: the true second of every frame, where the rate varies; even spacing by default. keys: the file's key frames.
    Raises ValueError for a clip without frames or rate, times that do not rise or fit, and indices or moments outside
    the clip.
    """
    if frames < 1 or not 0 < fps < float("inf"):
        raise ValueError(f"sample: a clip of {frames} frames at {fps} fps came; want at least one frame and a rate")
    if times is not None and (len(times) != frames or any(not b > a for a, b in pairwise(times))):
        raise ValueError(f"sample: {len(times)} times came for {frames} frames; want one each, rising")
    match policy:
        case Count():
            return _spread(frames, policy.frames)
        case Rate(even=True):
            count = max(floor(frames / fps * min(policy.fps, fps)), 1)
            return _spread(frames, min(count, policy.cap or count))
        case Rate():
            chosen = _ticked(_stamps(frames, fps, times), fps, policy.fps)
            return chosen if policy.cap is None or len(chosen) <= policy.cap else _spread(frames, policy.cap)
        case Keyframes():
            chosen = sorted(set(keys if policy.indices is None else policy.indices))
            if not chosen or chosen[0] < 0 or chosen[-1] >= frames:
                raise ValueError(
                    f"sample: key frames {chosen[:1]} to {chosen[-1:]} of a clip of {frames} frames; "
                    f"want at least one, from 0 to {frames - 1}"
                )
            return chosen if policy.cap is None else [chosen[i] for i in _spread(len(chosen), policy.cap)]
        case Moments():
            stamps = _stamps(frames, fps, times)
            outside = [s for s in policy.seconds if not stamps[0] - 1 / fps <= s <= stamps[-1] + 1 / fps]
            if outside or not policy.seconds:
                raise ValueError(
                    f"sample: moments {outside or 'none'} of a clip from {stamps[0]:g} to {stamps[-1]:g} seconds came; "
                    "want at least one, all within it"
                )
            return sorted({_nearest(stamps, second) for second in policy.seconds})


_NOISE = 1e-6  # seconds; times are sums of binary fractions


def _stamps(frames: int, fps: float, times: Sequence[float] | None) -> np.ndarray:
    return np.arange(frames) / fps if times is None else np.asarray(times, float)


def _ticked(stamps: np.ndarray, fps: float, rate: float) -> list[int]:
    """Frames that are nearest to a tick of `rate`; of two equally near, the earlier. The last is seen for 1 / fps."""
    middles = (stamps[1:] + stamps[:-1]) / 2 + _NOISE
    borders = np.append(middles, stamps[-1] + 1 / fps - _NOISE) - stamps[0]
    ticks = np.floor(borders * rate)  # the last tick up to where each frame stops being the nearest
    return np.flatnonzero(np.diff(ticks, prepend=-1)).tolist()


def _nearest(stamps: np.ndarray, second: float) -> int:
    """The frame nearest to a moment; of two equally near, the earlier."""
    return int(np.abs(np.round((stamps - second) / _NOISE)).argmin())


def _spread(frames: int, count: int) -> list[int]:
    """`count` indices from the first to the last, rounded down; all where there are no more."""
    return np.linspace(0, frames - 1, count, dtype=int).tolist() if count < frames else list(range(frames))


def training_times(indices: Sequence[int], fps: float) -> list[float]:
    """Seconds of frames by the clock of the training text, which counts whole milliseconds a frame.

    It runs slow (by 36 s an hour at 30 fps): show `true_times` to people. Raises ValueError above 1000 fps, where it
    stands still.
    """
    return [int(index) * _frame_ms(fps) / 1000 for index in indices]


def true_times(seconds: Sequence[float], fps: float, times: Sequence[float] | None = None) -> list[float]:
    """Seconds by the training clock, as the model reads and writes them, to true seconds.

    times: the true second of every frame of the file, where the rate varies; seconds between two frames are
    interpolated. Raises ValueError as `training_times` does.
    """
    positions = np.asarray(seconds, float) * 1000 / _frame_ms(fps)
    if times is None:
        return (positions / fps).tolist()
    return np.interp(positions, np.arange(len(times)), np.asarray(times, float)).tolist()


def _frame_ms(fps: float) -> int:
    if not 0 < fps <= 1000:
        raise ValueError(f"video: {fps} fps came; the training clock wants 0 < fps <= 1000; pass true times instead")
    return int(1000 / fps)


def tubelet_lines(
    indices: Sequence[int],
    fps: float | None,
    rule: VideoRule = REFERENCE,
    *,
    times: Sequence[float] | None = None,
    first: int = 0,
) -> list[str]:
    """The text before each tubelet's `<img>`; the clip's text is every line followed by its `<img>…</img>`.

    The prefix stands before the first line, a newline before every other. Times are those of the training clock at
    `fps`, or `times`, the seconds of these frames; with neither, frames are numbered only. first: how many sampled
    frames come before, in a segment. Raises ValueError as `training_times` does.
    """
    if times is None and fps is not None:
        times = training_times(indices, fps)
    labels = [f"frame {first + i + 1}" for i in range(len(indices))]
    if times is not None:
        labels = [f"{label} sampled at {time:.2f} seconds" for label, time in zip(labels, times, strict=True)]
    lines = []
    for start in range(0, len(labels), rule.tubelet_frames):
        line = " and ".join(labels[start : start + rule.tubelet_frames]).capitalize()
        lines.append(("\n" if first + start else rule.prefix) + line + ": ")
    return lines


def tubelets(
    frames: Shaped[Tensor, "frames rows cols 3"] | Shaped[np.ndarray, "frames rows cols 3"],
    grid: Grid,
    rule: VideoRule = REFERENCE,
    *,
    piece: int = 1 << 21,
) -> Float[Tensor, "patches pixels"]:
    """uint8 RGB frames, resized to a grid and normalised as images are, in tubelets.

    Tubelet by tubelet, patches row-major; each row holds its patch in every frame, the earlier frame first, flattened
    (channel, y, x). An odd last frame is repeated. At most `piece` pixels, or one tubelet, are resized at a time.
    Raises ValueError for other shapes and dtypes, and for a grid that the pixel shuffle does not divide.
    """
    frames = as_frames("tubelets", frames, axes=4)
    check_grid("tubelets", grid, rule.pixels)
    depth, patch = rule.tubelet_frames, rule.pixels.patch
    steps, left = divmod(len(frames), depth)
    out = torch.empty(steps + bool(left), *grid, depth, 3, patch, patch, device=frames.device)
    by_frame = out.permute(0, 3, 1, 2, 4, 5, 6)  # (steps, depth, rows, cols, channel, y, x)
    stride = max(piece // frames[:depth, :, :, 0].numel(), 1)  # tubelets at a time
    for start in range(0, steps, stride):
        stop = min(start + stride, steps)
        part = frames[start * depth : stop * depth].unflatten(0, (stop - start, depth))
        resize_into(by_frame[start:stop], part, rule.pixels)
    if left:
        resize_into(by_frame[-1, :left], frames[-left:], rule.pixels)
        by_frame[-1, left:] = by_frame[-1, left - 1]
    return out.flatten(3).flatten(0, 2)


def tubelet_stream(
    parts: Iterable[Shaped[Tensor, "_ _ _ 3"] | Shaped[np.ndarray, "_ _ _ 3"]],
    grid: Grid,
    rule: VideoRule = REFERENCE,
) -> Iterator[Float[Tensor, "patches pixels"]]:
    """Tubelets of a clip whose frames arrive in parts of any number; the pieces joined equal `tubelets` of all frames.

    Parts are (frames, rows, cols, 3), held one at a time. Raises ValueError as `tubelets` does.
    """
    waiting: Tensor | None = None
    for part in parts:
        frames = as_frames("tubelet_stream", part, axes=4)
        if waiting is not None:
            if frames.shape[1:] != waiting.shape[1:]:
                raise ValueError(
                    f"tubelet_stream: frames of shape {tuple(frames.shape[1:])} came after {tuple(waiting.shape[1:])}; "
                    "want one size for the whole clip"
                )
            frames = torch.cat((waiting, frames))
        whole = len(frames) // rule.tubelet_frames * rule.tubelet_frames
        if whole:
            yield tubelets(frames[:whole], grid, rule)
        waiting = frames[whole:].clone() if whole < len(frames) else None
    if waiting is not None:
        yield tubelets(waiting, grid, rule)


def segments(indices: Sequence[int], length: int, rule: VideoRule = REFERENCE) -> Iterator[Segment]:
    """Split sampled frames into segments of `length`, one at a time; the last may be shorter.

    Raises ValueError where the length would cut a tubelet.
    """
    if length < 1 or length % rule.tubelet_frames:
        raise ValueError(
            f"segments: a length of {length} frames came; want a positive multiple of {rule.tubelet_frames}, "
            "the frames of a tubelet"
        )
    for first in range(0, len(indices), length):
        yield Segment(first=first, indices=tuple(indices[first : first + length]))


def interleave(starts: Sequence[float], samples: int, rate: int = 16000, block: int = 1280) -> list[tuple[int, int]]:
    """Split a clip's sound by time: the (start, end) samples that belong to each segment of its frames.

    starts: the true second of each segment's first frame. A segment's sound lasts until the next one's first frame,
    the first begins with the sound, the last ends with it; none is repeated or lost. Borders stand between audio
    tokens (`block` samples), so the spans have as many tokens as the whole. A span is empty where the sound has ended,
    or where less than a token would be left of it. Raises ValueError for starts that fall.
    """
    if not starts or any(b < a for a, b in pairwise(starts)):
        raise ValueError(f"interleave: starts {list(starts)} came; want the rising seconds of one segment or more")
    borders = [min(max(round(start * rate / block), 0) * block, samples) for start in starts[1:]]
    borders = [border if samples - border >= block else samples for border in borders]
    return list(pairwise([0, *borders, samples]))
