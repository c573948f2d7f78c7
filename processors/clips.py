"""Clips: videos opened for just the frames that are wanted, at their true times, upright.

decord reads the frames (it seeks, turns and scales inside its decoder); PyAV tells what a file holds, and reads
frames where decord cannot open it. `decoder` says which one is at work. Frames given as pictures have the same
interface. No decoder is imported before it is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.media import open_picture, picture_size
from processors.source import Source, open_source


@runtime_checkable
class Video(Protocol):
    """Frames by their index. size: (width, height), upright. times: true seconds of each frame from the first one."""

    name: str
    size: tuple[int, int]
    times: Float64[np.ndarray, " frames"]
    decoder: str

    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """These frames, upright, in this order; repeats are allowed."""
        ...

    def close(self) -> None:
        """Free the decoder."""
        ...


def average_fps(times: Float64[np.ndarray, " frames"]) -> float:
    """Frames a second over the whole clip; 1 for a single frame."""
    return float((len(times) - 1) / (times[-1] - times[0])) if len(times) > 1 and times[-1] > times[0] else 1.0


def stream(video: Video, indices: Sequence[int], chunk: int = 2) -> Iterator[UInt8[np.ndarray, "frames rows cols 3"]]:
    """The frames in pieces, so that a long clip is never held as a whole; small ones keep the decoder's memory flat.

    The next pieces are decoded while one is worked on.
    """
    pieces = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
    with ThreadPoolExecutor(1) as decoder:
        ahead = deque(decoder.submit(video.read, piece) for piece in pieces[:2])
        for piece in (*pieces[2:], None, None)[: len(pieces)]:
            frames = ahead.popleft().result()
            if piece is not None:
                ahead.append(decoder.submit(video.read, piece))
            yield frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file holds, without decoding: seconds of its longest stream, and of its sound (None: there is none)."""

    seconds: float
    has_video: bool
    sound_rate: int | None
    video_start: float
    container: str


def probe(source: Source, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Read the header of a video or sound. Raises MediaError for what is no media, or longer than the limits allow."""
    import av

    with opened(source) as container:
        known = [s for s in container.streams if s.codec_context is not None]  # None: a codec that is not built in
        videos = [s for s in known if s.type == "video" and not _is_cover(s)]
        sounds = [s for s in known if s.type == "audio"]
        if not videos and not sounds:
            raise MediaError(f"media: {source.name}: neither frames nor sound; send a video or a sound")
        seconds = (container.duration or 0) / av.time_base
        if seconds > limits.max_seconds:
            raise MediaError(
                f"media: {source.name}: lasts {seconds:.0f} s, the limit is {limits.max_seconds} s; "
                "send a part or raise Limits.max_seconds"
            )
        start = 0.0
        if videos and videos[0].start_time is not None:
            start = float(videos[0].start_time * (videos[0].time_base or 0))
        rate = int(sounds[0].rate) if sounds and sounds[0].rate else None
        return Header(
            seconds=seconds,
            has_video=bool(videos),
            sound_rate=rate,
            video_start=start,
            container=str(container.format.name),
        )


def opened(source: Source) -> Any:
    """PyAV's container of a source. Raises MediaError for what it cannot open."""
    import av
    from av.error import FFmpegError

    file = str(source.path) if source.path is not None else source.open()
    try:
        return av.open(file, "r")
    except (FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"media: {source.name}: cannot be opened ({short(error)}); send the whole file") from None


def open_video(thing: object, limits: Limits = DEFAULT_LIMITS) -> Video:
    """Open a video by path, bytes, file, data URI or URL.

    Raises MediaError for one without frames, broken or too long.
    """
    source = open_source(thing, limits)
    header = probe(source, limits)
    if not header.has_video:
        raise MediaError(f"media: {source.name}: holds sound only; pass it as audio")
    try:
        video: Video = DecordVideo(source)
    except _DecordFailed:
        video = AvVideo(source)
    width, height = video.size
    if not len(video):
        raise MediaError(f"media: {source.name}: no frame can be decoded; send the whole file")
    if len(video) > limits.max_frames or width * height > limits.max_pixels:
        raise MediaError(
            f"media: {source.name}: {len(video)} frames of {width}x{height}; the limits are {limits.max_frames} "
            "frames of "
            f"{limits.max_pixels} pixels; send a part or raise Limits"
        )
    return video


class _DecordFailed(Exception):
    """decord cannot read this file; PyAV is asked."""


class DecordVideo:
    """Frames by decord."""

    decoder = "decord"

    def __init__(self, source: Source) -> None:
        import decord

        self.name = source.name
        decord.logging.set_level(decord.logging.QUIET)
        try:
            file = str(source.path) if source.path is not None else source.open()
            self._reader: Any = decord.VideoReader(file, num_threads=0)
            stamps = self._reader.get_frame_timestamp(range(len(self._reader)))
            first = self._reader[0].asnumpy() if len(self._reader) else np.zeros((0, 0, 3), np.uint8)
        except (decord.DECORDError, RuntimeError, IndexError, ValueError, OSError) as error:
            raise _DecordFailed(str(error)) from None
        self.size = (first.shape[1], first.shape[0])
        starts = np.asarray(stamps, dtype=np.float64).reshape(-1, 2)[:, 0]
        self.times = starts - (starts[0] if len(starts) else 0.0)

    def __len__(self) -> int:
        return len(self.times)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises MediaError for frames that cannot be decoded, IndexError for those outside the clip."""
        import decord

        check_indices(self.name, indices, len(self))
        try:
            return self._reader.get_batch(list(indices)).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise MediaError(
                f"media: {self.name}: frames {indices[0]} to {indices[-1]} cannot be decoded ({short(error)}); "
                "send the whole file"
            ) from None

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None


class AvVideo:
    """Frames by PyAV: times from the packets, frames by seeking to the key frame before."""

    decoder = "av"

    def __init__(self, source: Source) -> None:
        from av.error import FFmpegError

        self.name, self._source = source.name, source
        stamps: list[float] = []
        try:
            with opened(source) as container:
                track = container.streams.video[0]
                for packet in container.demux(track):
                    if packet.pts is not None:
                        stamps.append(float(packet.pts * packet.time_base))
            with opened(source) as container:
                frame = next(iter(container.decode(container.streams.video[0])), None)
        except (FFmpegError, IndexError) as error:
            raise MediaError(f"media: {source.name}: cannot be read ({short(error)}); send the whole file") from None
        if frame is None:
            raise MediaError(f"media: {source.name}: no frame can be decoded; send the whole file")
        stamps.sort()
        self._start = stamps[0] if stamps else 0.0
        self.times = np.array(stamps, dtype=np.float64) - self._start
        shape = _upright(frame).shape
        self.size = (shape[1], shape[0])

    def __len__(self) -> int:
        return len(self.times)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises MediaError for frames that cannot be decoded, ValueError for those outside the clip."""
        from av.error import FFmpegError

        check_indices(self.name, indices, len(self))
        found: dict[int, np.ndarray] = {}
        wanted = sorted(set(indices))
        try:
            with opened(self._source) as container:
                track = container.streams.video[0]
                base = track.time_base
                if self.times[wanted[0]] > 2:
                    container.seek(int((self._start + self.times[wanted[0]]) / base), stream=track)
                for frame in container.decode(track):
                    if frame.pts is None:
                        continue
                    index = int(np.abs(self.times - (float(frame.pts * base) - self._start)).argmin())
                    if index in wanted:
                        found[index] = _upright(frame)
                    if index >= wanted[-1]:
                        break
        except FFmpegError as error:
            raise MediaError(f"media: {self.name}: cannot be decoded ({short(error)}); send the whole file") from None
        lost = [index for index in wanted if index not in found]
        if lost:
            raise MediaError(f"media: {self.name}: frames {lost[:8]} cannot be decoded; send the whole file")
        return np.stack([found[index] for index in indices])

    def close(self) -> None:
        """Nothing stays open."""


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

    def close(self) -> None:
        """Nothing stays open."""


def check_indices(name: str, indices: Sequence[int], count: int) -> None:
    """Raise ValueError for no index, or one outside the clip."""
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong or not len(indices):
        raise ValueError(f"video: {name}: frames {wrong[:8] or 'none'} asked for; it has 0 to {count - 1}")


def _upright(frame: Any) -> np.ndarray:
    """RGB, turned as the display matrix says (PyAV gives degrees counterclockwise)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def _is_cover(track: Any) -> bool:
    """A picture attached to a sound file is no video."""
    return "attached_pic" in str(track.disposition)


def short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
