"""Sound: any file's sound as 16 kHz mono, placed on the clock of its frames.

PyAV decodes and resamples (libswresample); channels are averaged. The length is that of the packets' own times, less
what encoders put before and behind, so it is known before anything is decoded. Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from processors.container import decoded, opened, probe, short
from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.source import Source, open_source

RATE = 16000
GAP = RATE // 100  # samples by which stamps may be off; where more are missing there is silence


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
        first, last, longest = float("inf"), 0.0, 0.0
        try:
            with opened(source) as container:
                track = container.streams.audio[0]
                for packet in container.demux(track):
                    if packet.pts is None:
                        continue
                    at = float(packet.pts * packet.time_base)
                    duration = float((packet.duration or 0) * packet.time_base)
                    longest = max(longest, duration)  # some containers shorten the last packet by its padding, some not
                    end = at + min(duration, longest - _padding(packet) / track.rate)
                    first, last = min(first, at), max(last, end)
                if track.start_time is not None:  # behind the encoder's priming
                    first = max(first, float(track.start_time * track.time_base))
        except FFmpegError as error:
            raise MediaError(f"media: {source.name}: its sound cannot be read ({short(error)})") from None
        self._zero = max(first, 0.0) if start is None else start
        self.samples = max(0, round((last - self._zero) * RATE)) if first < float("inf") else 0
        if not self.samples and start is None:
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

        resampler, form, at = None, None, 0
        with opened(self._source) as container:
            for frame in chain(decoded(container, container.streams.audio[0]), (None,)):
                now = frame and (frame.rate, frame.layout.name, frame.format.name)
                want = frame and round((float(frame.pts * frame.time_base) - self._zero) * RATE)
                if resampler is None or now != form or want > at + GAP:
                    for part in resampler.resample(None) if resampler else []:
                        yield from _kept(at, mono(part))
                        at += part.samples
                    if frame is None:
                        return
                    at = want if resampler is None or want > at + GAP else at
                    resampler, form = av.AudioResampler(format="flt", rate=RATE), now
                for part in resampler.resample(frame):
                    yield from _kept(at, mono(part))
                    at += part.samples


def mono(frame: Any) -> Tensor:
    """The mean of a frame's channels. The frame is packed: PyAV ends the process at planes behind the eighth."""
    return torch.from_numpy(frame.to_ndarray()).view(-1, frame.layout.nb_channels).mean(1)


def _padding(packet: Any) -> int:
    """Samples at a packet's end that are the encoder's and not the sound's."""
    if not packet.has_sidedata("skip_samples"):
        return 0
    return int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[4:8], "little")


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
