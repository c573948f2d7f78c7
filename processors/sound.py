"""Sound: any file's sound as 16 kHz mono, placed on the clock of its frames.

PyAV decodes and resamples (libswresample); channels are averaged. The length is that of the packets' own times, so it
is known before anything is decoded. Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from processors.container import opened, probe, short
from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.source import Source, open_source

RATE = 16000


@runtime_checkable
class SoundSource(Protocol):
    """16 kHz mono sound of a file or an array: `samples` from its header; `read` and `stream` decode."""

    name: str
    samples: int

    def read(self) -> Tensor:
        """All samples, (samples,) float32."""
        ...

    def stream(self) -> Iterator[tuple[int, Tensor]]:
        """Where each piece starts, and its samples; what lies between pieces is silence."""
        ...


class Tape:
    """A sound read forwards: decoded as far as it is asked for, and forgotten up to where the last call started."""

    def __init__(self, sound: SoundSource) -> None:
        self._sound, self._pieces = sound, sound.stream()
        self._held, self._start, self._end = torch.zeros(0), 0, 0  # samples start to end are at hand

    def read(self, start: int, stop: int) -> Tensor:
        """Samples start to stop, those of `SoundSource.read`. No later call may start earlier.

        Raises MediaError where none of the sound can be decoded.
        """
        assert self._start <= start <= stop <= self._sound.samples
        held = [self._held]
        while self._end < stop:
            piece = next(self._pieces, None)
            if piece is None and not self._end:
                raise MediaError(f"media: {self._sound.name}: its sound cannot be decoded; send the whole file")
            at, samples = piece or (stop, torch.zeros(0))
            if at + len(samples) <= start:  # nothing of it will be asked for
                held, self._start = [], at + len(samples)
            else:
                held += [torch.zeros(at - self._end), samples]
            self._end = at + len(samples)
        self._held = torch.cat(held)[start - self._start :]
        self._start = start
        return self._held[: stop - start]


class Sound:
    """The sound of a file, from second 0 (of its frames, where it has some). samples: at 16 kHz, from the packets."""

    def __init__(self, source: Source, start: float | None, limits: Limits) -> None:
        from av.error import FFmpegError

        self.name, self._source = source.name, source
        first, last = float("inf"), 0.0
        try:
            with opened(source) as container:
                for packet in container.demux(container.streams.audio[0]):
                    if packet.pts is None:
                        continue
                    at = float(packet.pts * packet.time_base)
                    first, last = min(first, at), max(last, at + float((packet.duration or 0) * packet.time_base))
        except FFmpegError as error:
            raise MediaError(f"media: {source.name}: its sound cannot be read ({short(error)})") from None
        self._zero = max(first, 0.0) if start is None else start
        self.samples = max(0, int((last - self._zero) * RATE)) if first < float("inf") else 0
        if not self.samples:
            raise MediaError(f"media: {source.name}: its sound is empty; send the whole file")
        if self.samples > limits.max_seconds * RATE:
            raise MediaError(
                f"media: {source.name}: {self.samples / RATE:.0f} s of sound, the limit is {limits.max_seconds} s; "
                "send a part or raise Limits.max_seconds"
            )

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def read(self) -> Tensor:
        """All of it: (samples,) float32 in -1..1. Where packets are missing or broken there is silence."""
        sound = torch.zeros(self.samples)
        end = 0
        for at, part in self.stream():
            end = max(end, min(at + len(part), self.samples))
            sound[at : at + len(part)] = part[: max(self.samples - at, 0)]
        if not end:
            raise MediaError(f"media: {self.name}: its sound cannot be decoded; send the whole file")
        return sound

    def stream(self) -> Iterator[tuple[int, Tensor]]:
        """Pieces as they are decoded: the 16 kHz sample each starts at, and its samples; holds one at a time."""
        import av
        from av.error import FFmpegError

        resampler = av.AudioResampler(format="fltp", rate=RATE)
        at, begun = 0, False
        try:
            with opened(self._source) as container:
                track = container.streams.audio[0]
                for frame in container.decode(track):
                    if frame.pts is None:
                        continue
                    want = round((float(frame.pts * frame.time_base) - self._zero) * RATE)
                    if not begun or want > at + RATE // 20:  # the beginning, or a gap of more than 50 ms
                        at, begun = want, True
                    for part in resampler.resample(frame):
                        yield from _kept(at, torch.from_numpy(part.to_ndarray()).mean(0))
                        at += part.samples
                for part in resampler.resample(None) if begun else []:
                    yield from _kept(at, torch.from_numpy(part.to_ndarray()).mean(0))
                    at += part.samples
        except (FFmpegError, ValueError) as error:
            if not begun:
                message = f"media: {self.name}: its sound cannot be decoded ({short(error)}); send the whole file"
                raise MediaError(message) from None


def _kept(at: int, part: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Without what lies before the first frame (encoders' priming)."""
    if at + len(part) > 0:
        yield max(at, 0), part[max(-at, 0) :]


def open_sound(thing: object, limits: Limits = DEFAULT_LIMITS, with_video: bool = False) -> Sound | None:
    """Open the sound of a file; with_video, on the clock of its frames, and None where there is none.

    Raises MediaError for a file without sound, broken or too long.
    """
    source = open_source(thing, limits)
    header = probe(source, limits)
    if header.sound_rate is None:
        if with_video:
            return None
        raise MediaError(f"media: {source.name}: has no sound; pass it as video, or send a sound")
    return Sound(source, header.video_start if header.has_video else None, limits)
