"""Clips: videos opened for just the frames that are wanted, at their true times, upright.

Frames far apart, each behind a key frame of its own, are sought by decord. Frames close together are met by PyAV on
one way forward: decord would read on without bound (an hour at 1 frame a second peaked 921 MiB above a minute). The
two give the same bytes. Where decord cannot open a file or does not find its frames, PyAV does all; `decoder` says
so. Frames given as pictures have the same interface. No decoder is imported before it is needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from processors.container import AvVideo, by_walk, check_indices, probe
from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.media import open_picture, open_pictures, picture_count, picture_headers, picture_size
from processors.source import Source, open_source, sniff

# Containers in which decord finds the frame it is asked for. In MPEG-TS, MPEG-PS, FLV and ASF it gives others.
_SOUGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")


@runtime_checkable
class Video(Protocol):
    """Frames by their index. size: (width, height), upright. times: true seconds of each frame from the first one.

    keys: the frames at which decoding may begin.
    """

    name: str
    size: tuple[int, int]
    times: Float64[np.ndarray, " frames"]
    keys: list[int]
    decoder: str

    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """These frames, upright, in this order; repeats are allowed."""
        ...

    def walk(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "rows cols 3"]]:
        """Frames of rising indices, one at a time."""
        ...

    def close(self) -> None:
        """Free the decoder."""
        ...


def average_fps(times: Float64[np.ndarray, " frames"]) -> float:
    """Frames a second over the whole clip; 1 for a single frame."""
    if len(times) < 2 or times[-1] <= times[0]:
        return 1.0
    # Times are sums of binary fractions: a hair above 25 would be 39 whole milliseconds by the training clock, not 40.
    return round(float((len(times) - 1) / (times[-1] - times[0])), 9)


def stream(video: Video, indices: Sequence[int], chunk: int = 2) -> Iterator[UInt8[np.ndarray, "frames rows cols 3"]]:
    """Frames of rising indices in pieces, so that a long clip is never held as a whole.

    The next two pieces are decoded while one is worked on.
    """
    apart = len({bisect_right(video.keys, index) for index in indices}) == len(indices)
    walk = None if apart else video.walk(indices)

    def decode(piece: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        return video.read(piece) if walk is None else np.stack([next(walk) for _ in piece])

    pieces = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
    with ThreadPoolExecutor(1) as decoder:
        ahead = deque(decoder.submit(decode, piece) for piece in pieces[:2])
        for piece in (*pieces[2:], None, None)[: len(pieces)]:
            frames = ahead.popleft().result()
            if piece is not None:
                ahead.append(decoder.submit(decode, piece))
            yield frames


def open_video(thing: object, limits: Limits = DEFAULT_LIMITS) -> Video:
    """Open a video by path, bytes, file, data URI or URL: its packets are read for their times, one frame is decoded.

    An animated picture (GIF, WebP, PNG, AVIF) is decoded once for the times of its frames.

    Raises MediaError for one without frames, broken or beyond the limits.
    """
    source = open_source(thing, limits)
    if sniff(source) == "image":
        return Animation(source, limits)
    header = probe(source, limits)
    if not header.has_video:
        raise MediaError(f"media: {source.name}: holds sound only; pass it as audio")
    film = AvVideo(source, limits)
    if film.times[-1] > limits.max_seconds:
        raise MediaError(
            f"media: {source.name}: lasts {film.times[-1]:.0f} s, the limit is {limits.max_seconds} s; send a part or "
            "raise Limits.max_seconds"
        )
    return DecordVideo(source, film) if header.container in _SOUGHT else film


class DecordVideo:
    """Single frames by decord, opened when the first is asked for; the way from one to the next by PyAV.

    Where decord cannot read the file, or sees other frames in it than its packets say, `decoder` becomes "av".
    """

    def __init__(self, source: Source, film: AvVideo) -> None:
        self.name, self.size, self.times, self.keys, self.walk = film.name, film.size, film.times, film.keys, film.walk
        self.decoder, self._source, self._film = "decord", source, film
        self._reader: Any = None

    def __len__(self) -> int:
        return len(self.times)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises MediaError for frames that cannot be decoded, ValueError for those outside the clip."""
        check_indices(self.name, indices, len(self))
        if self.decoder == "decord":
            self._reader = self._reader or self._opened()
            frames = None if self._reader is None else self._sought(indices)
            if frames is not None:
                return frames
            self.decoder = "av"
        return self._film.read(indices)

    def _sought(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"] | None:
        import decord

        try:
            frames = self._reader.get_batch(list(indices)).asnumpy()
            self._reader.seek(0)  # drops what it has read on
        except (decord.DECORDError, RuntimeError, IndexError):
            return None
        return frames

    def _opened(self) -> Any:
        """decord's reader; None where it does not agree with the packets."""
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            file = str(self._source.path) if self._source.path is not None else self._source.open()
            reader = decord.VideoReader(file, num_threads=0)
            stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)
        except (decord.DECORDError, RuntimeError, IndexError, ValueError, OSError):
            return None
        agrees = len(stamps) == len(self) and np.abs(stamps[:, 0] - stamps[0, 0] - self.times).max() < 0.002
        return reader if agrees else None

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None


class FrameList:
    """Frames that the user has already: pictures of any kind that `open_picture` takes, with their seconds."""

    decoder = "given"

    def __init__(self, frames: Sequence[object], times: Sequence[float], limits: Limits = DEFAULT_LIMITS) -> None:
        self.name, self._frames, self._limits = "frames", list(frames), limits
        self.times = _rising(times, len(frames))
        if len(frames) > limits.max_frames or self.times[-1] - self.times[0] > limits.max_seconds:
            raise MediaError(
                f"video: {len(frames)} frames over {self.times[-1] - self.times[0]:.0f} s came, the limits are "
                f"{limits.max_frames:,} and {limits.max_seconds} s; send a part or raise Limits.max_frames, max_seconds"
            )
        self.keys = list(range(len(frames)))
        sizes = sorted({picture_size(frame, limits) for frame in self._frames})
        if len(sizes) > 1:
            raise ValueError(f"video: frames of {len(sizes)} sizes came, {sizes[:4]}; resize them to one size")
        (self.size,) = sizes

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        fps: float = 1.0,
        limits: Limits = DEFAULT_LIMITS,
        times: Sequence[float] | None = None,
    ) -> FrameList:
        """The pictures of a folder in their natural order (2 before 10), at their times or `fps` of them a second.

        Raises MediaError for a folder that is absent, not allowed or holds anything else.
        """
        import re

        if not limits.allow_files:
            raise MediaError(f"media: {folder.name}: local files are off here; send the frames' bytes")
        if not folder.is_dir():
            raise MediaError(f"media: {folder.name}: no such folder; check the path")
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        files.sort(key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)])
        return cls(files, [i / fps for i in range(len(files))] if times is None else times, limits)

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises ValueError for frames outside the list."""
        check_indices(self.name, indices, len(self))
        return np.stack([open_picture(self._frames[index], self._limits) for index in indices])

    def walk(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "rows cols 3"]]:
        """One at a time; raises as `read`."""
        return (self.read([index])[0] for index in indices)

    def close(self) -> None:
        """Nothing stays open."""


def _rising(times: Sequence[float], count: int) -> Float64[np.ndarray, " frames"]:
    """The second of each of so many frames. Raises ValueError where they are not that."""
    seconds = np.asarray(times, dtype=np.float64)
    if not count or seconds.shape != (count,) or not np.isfinite(seconds).all() or bool((np.diff(seconds) < 0).any()):
        raise ValueError(
            f"video: {count} frames with {seconds.size} times came; want one rising time, in seconds, a frame"
        )
    return seconds


def is_animation(source: Source, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether a picture's file holds several frames in time; a TIFF's further pictures are pages."""
    return picture_count(source, limits) > 1 and sum(1 for _ in picture_headers(source, limits)) == 1


class Animation:
    """The frames of a GIF, WebP, PNG or AVIF at the times that their durations give."""

    decoder = "pillow"

    def __init__(self, source: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        if not is_animation(source, limits):
            raise MediaError(f"media: {source.name}: holds an image, not video; pass it as image")
        self.name, self._source, self._limits = source.name, source, limits
        lasting = [frame.seconds or 0.1 for frame in open_pictures(source, limits)]
        self.times: Float64[np.ndarray, " frames"] = np.cumsum([0.0, *lasting[:-1]]).round(6)
        if self.times[-1] > limits.max_seconds:
            raise MediaError(
                f"media: {source.name}: lasts {self.times[-1]:.0f} s, the limit is {limits.max_seconds} s; send a part "
                "or raise Limits.max_seconds"
            )
        self.keys, self.size = [0], picture_size(source, limits)

    def __len__(self) -> int:
        return len(self.times)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises ValueError for frames outside the animation."""
        return by_walk(self, indices)

    def walk(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "rows cols 3"]]:
        """One at a time, from the first on: each is drawn over the one before."""
        wanted = set(indices)
        for index, frame in enumerate(open_pictures(self._source, self._limits)):
            if index in wanted:
                yield frame.pixels
            if index == max(wanted):
                return

    def close(self) -> None:
        """Nothing stays open."""
