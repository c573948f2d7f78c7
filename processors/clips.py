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
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from processors.container import AvVideo, check_indices, probe
from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.media import open_picture, picture_size
from processors.source import Source, open_source

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

    Raises MediaError for one without frames, broken or beyond the limits.
    """
    source = open_source(thing, limits)
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
        if not len(frames) or len(frames) != len(times) or any(b < a for a, b in pairwise(times)):
            raise ValueError(
                f"video: {len(frames)} frames with {len(times)} times came; want one rising time, in seconds, a frame"
            )
        self.name, self._frames, self._limits = "frames", list(frames), limits
        self.times = np.asarray(times, dtype=np.float64)
        self.keys = list(range(len(frames)))
        self.size = picture_size(self._frames[0], limits)

    @classmethod
    def from_folder(cls, folder: Path, fps: float, limits: Limits = DEFAULT_LIMITS) -> FrameList:
        """The pictures of a folder in their natural order (2 before 10), `fps` of them a second."""
        import re

        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        files.sort(key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)])
        return cls(files, [i / fps for i in range(len(files))], limits)

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises ValueError for frames of several sizes or outside the list."""
        check_indices(self.name, indices, len(self))
        frames = [open_picture(self._frames[index], self._limits) for index in indices]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"video: frames of several sizes {sorted(sizes)} came; resize them to one size")
        return np.stack(frames)

    def walk(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "rows cols 3"]]:
        """One at a time; raises as `read`."""
        return (self.read([index])[0] for index in indices)

    def close(self) -> None:
        """Nothing stays open."""
