"""Container: what PyAV tells of a file before it is decoded, and its frames on one way forward.

Headers, limits, the true times of frames (from the packets, so that a file cut off at its end gives what it has) and
the frames themselves, upright, decoded forwards from one to the next with memory for a few. PyAV is not imported
before it is needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file holds, without decoding: seconds of its longest stream, and of its sound (None: there is none)."""

    seconds: float
    has_video: bool
    sound_rate: int | None
    video_start: float
    container: str


def probe(source: Source, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Read the header of a video or sound.

    Raises MediaError for what is no media, and for more seconds or pixels a frame than the limits allow.
    """
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
        for track in videos:
            width, height = track.codec_context.width, track.codec_context.height
            if width * height > limits.max_pixels:
                raise MediaError(
                    f"media: {source.name}: frames of {width}x{height} pixels, the limit is {limits.max_pixels:,}; "
                    "make it smaller or raise Limits.max_pixels"
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


class AvVideo:
    """Frames by PyAV.

    times: true seconds of each frame from the first. keys: the frames at which decoding may begin. size: (width,
    height), upright; the first frame is decoded for it, nothing else is.
    Raises MediaError for a file without frames, broken, or with more of them than the limits allow.
    """

    decoder = "av"

    def __init__(self, source: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        from av.error import FFmpegError

        self.name, self._source = source.name, source
        stamps: dict[int, bool] = {}  # and whether decoding may begin there
        try:
            with opened(source) as container:
                track = container.streams.best("video")
                for packet in container.demux(track):
                    # Corrupt: the file's end cuts it off. Discard: an edit list leaves it out.
                    if packet.pts is None or packet.is_corrupt or packet.is_discard:
                        continue
                    if len(stamps) == limits.max_frames:
                        raise MediaError(
                            f"media: {source.name}: more than {limits.max_frames:,} frames; send a part or raise "
                            "Limits.max_frames"
                        )
                    stamps[packet.pts] = packet.is_keyframe
                self._base = float(track.time_base)
        except FFmpegError as error:
            raise MediaError(f"media: {source.name}: cannot be read ({short(error)}); send the whole file") from None
        first_key = min((pts for pts, is_key in stamps.items() if is_key), default=None)
        # What comes before the first key frame, in a recording that begins in the middle, cannot be decoded.
        pts = sorted(stamp for stamp in stamps if first_key is None or stamp >= first_key)
        if not pts:
            raise MediaError(f"media: {source.name}: holds no frame; send the whole file")
        self._pts: Int64[np.ndarray, " frames"] = np.array(pts, dtype=np.int64)
        self.keys: list[int] = [index for index, stamp in enumerate(pts) if stamps[stamp]]
        self.times: Float64[np.ndarray, " frames"] = (self._pts - self._pts[0]) * self._base
        first = next(self.walk([0]))
        self.size: tuple[int, int] = (first.shape[1], first.shape[0])

    def __len__(self) -> int:
        return len(self._pts)

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
        """Raises MediaError for frames that cannot be decoded, ValueError for those outside the clip."""
        return by_walk(self, indices)

    def walk(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "rows cols 3"]]:
        """Frames of rising indices, one at a time; where a key frame lies ahead of the next one wanted, it is sought.

        Raises MediaError for a frame that cannot be decoded.
        """
        from av.error import FFmpegError

        with opened(self._source) as container:
            track = container.streams.best("video")
            track.thread_type = "AUTO"
            frames, at = decoded(container, track), -1
            for wanted in indices:
                if self._key(wanted) > at + 1:
                    with suppress(FFmpegError):  # a container that cannot seek is read on
                        frames = self._sought(container, track, wanted)
                frame = next((frame for frame in frames if self._index(frame.pts) >= wanted), None)
                at = len(self) if frame is None else self._index(frame.pts)
                if frame is None or at > wanted:
                    raise MediaError(f"media: {self.name}: frame {wanted} cannot be decoded; send the whole file")
                yield _upright(frame)

    def _key(self, index: int, back: int = 0) -> int:
        """The last key frame up to a frame; `back` key frames before that."""
        return self.keys[max(bisect_right(self.keys, index) - 1 - back, 0)] if self.keys else 0

    def _sought(self, container: Any, track: Any, wanted: int) -> Iterator[Any]:
        """Frames from the last key frame up to the one wanted; from earlier ones where the container lands behind."""
        back = 0
        while True:
            start = self._key(wanted, back)
            container.seek(int(self._pts[start]), stream=track)
            frames = decoded(container, track)
            first = next(frames, None)
            if first is not None and self._index(first.pts) <= wanted:
                return chain((first,), frames)
            if start == self._key(0):
                return iter(())
            back = 2 * back + 1

    def _index(self, pts: int) -> int:
        """The frame with this stamp; the nearest one, for decoders that guess."""
        at = int(np.searchsorted(self._pts, pts))
        if at and (at == len(self._pts) or pts - self._pts[at - 1] <= self._pts[at] - pts):
            at -= 1
        return at

    def close(self) -> None:
        """Nothing stays open."""


def by_walk(film: Any, indices: Sequence[int]) -> UInt8[np.ndarray, "frames rows cols 3"]:
    """Frames in any order, repeats allowed, of a film that can only be walked. Raises ValueError for those outside."""
    check_indices(film.name, indices, len(film))
    wanted = sorted(set(indices))
    found = dict(zip(wanted, film.walk(wanted), strict=True))
    return np.stack([found[index] for index in indices])


def check_indices(name: str, indices: Sequence[int], count: int) -> None:
    """Raise ValueError for no index, or one outside the clip."""
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong or not len(indices):
        raise ValueError(f"video: {name}: frames {wrong[:8] or 'none'} asked for; it has 0 to {count - 1}")


def decoded(container: Any, track: Any) -> Iterator[Any]:
    """Frames of a track that have a stamp, from where the container stands on; broken packets are passed over."""
    from av.error import FFmpegError

    try:
        for packet in container.demux(track):
            with suppress(FFmpegError):
                if not packet.is_corrupt:
                    yield from (frame for frame in packet.decode() if frame.pts is not None)
    except FFmpegError:
        return  # the file ends in the middle of a packet


def _upright(frame: Any) -> np.ndarray:
    """RGB, turned as the display matrix says (PyAV gives degrees counterclockwise)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def _is_cover(track: Any) -> bool:
    """A picture attached to a sound file is no video."""
    return "attached_pic" in str(track.disposition)


def short(error: BaseException) -> str:
    """The error in a line."""
    told = getattr(error, "strerror", None) or str(error)  # without the path, which may be a server's
    return " ".join(told.split())[:120]
