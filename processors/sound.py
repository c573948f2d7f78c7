"""Sound: any file's sound as 16 kHz mono, placed on the clock of its frames.

PyAV decodes; channels are averaged; torchaudio resamples. The length is that of the packets' own times, so it is
known before anything is decoded. Nothing is imported before it is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from processors.clips import opened, probe, short
from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.source import Source, open_source

RATE = 16000


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
        import av
        from av.error import FFmpegError

        parts: list[Tensor] = []
        rate, at = RATE, 0
        try:
            with opened(self._source) as container:
                track = container.streams.audio[0]
                rate = int(track.rate)
                resampler = av.AudioResampler(format="fltp")
                for frame in container.decode(track):
                    if frame.pts is None:
                        continue
                    want = round((float(frame.pts * frame.time_base) - self._zero) * rate)
                    mono = torch.cat([_mono(part) for part in resampler.resample(frame)] or [torch.zeros(0)])
                    if want < 0:
                        mono = mono[-want:]  # before the first frame: encoders' priming
                        want = 0
                    if want > at + rate // 20:  # a gap of more than 50 ms
                        parts.append(torch.zeros(want - at))
                        at = want
                    parts.append(mono)
                    at += len(mono)
        except FFmpegError as error:
            if not parts:
                raise MediaError(f"media: {self.name}: its sound cannot be decoded ({short(error)})") from None
        sound = torch.cat(parts) if parts else torch.zeros(0)
        if rate != RATE and len(sound):
            from torchaudio.functional import resample

            sound = resample(sound, rate, RATE)
        return torch.nn.functional.pad(sound, (0, max(0, self.samples - len(sound))))[: self.samples]


def _mono(frame: Any) -> Tensor:
    return torch.from_numpy(frame.to_ndarray()).mean(0)


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
