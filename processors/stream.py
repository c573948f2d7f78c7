"""Streams: sound as it comes, from a pipe or a microphone, in chunks of 16 kHz mono; bounded memory, for hours.

A pipe carries raw PCM (say its rate) or any container that can be read forwards (WAV, Ogg, FLAC, MPEG-TS). PyAV
decodes and resamples.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, RawIOBase
from typing import Any

from jaxtyping import Float
from torch import Tensor

from processors.container import short
from processors.limits import MediaError
from processors.sound import RATE, mono

DEVICES = {"linux": ("pulse", "alsa"), "darwin": ("avfoundation",), "win32": ("dshow",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundChunk:
    """start: seconds from the beginning of the stream. samples: 16 kHz mono in -1..1."""

    start: float
    samples: Float[Tensor, " samples"]


def sound_chunks(
    pipe: BufferedIOBase | RawIOBase, seconds: float = 1.0, rate: int | None = None, channels: int = 1
) -> Iterator[SoundChunk]:
    """Chunks of `seconds` each, the last one shorter, as soon as the pipe has delivered them.

    rate: of raw little-endian 16-bit PCM with `channels` interleaved; None: the pipe carries a container with a
    header. Raises MediaError for what cannot be decoded, ValueError for a length below 10 ms.
    """
    import av
    from av.error import FFmpegError

    options = (
        {} if rate is None else {"sample_rate": str(rate), "ch_layout": f"{channels}c" if channels > 2 else "mono"}
    )
    if channels == 2:
        options["ch_layout"] = "stereo"
    try:
        container = av.open(pipe, "r", format=None if rate is None else "s16le", options=options)
    except (FFmpegError, ValueError) as error:
        raise MediaError(
            f"stream: the pipe cannot be read ({short(error)}); send WAV, or state the PCM's rate"
        ) from None
    with container:
        yield from _chunks(container, seconds)


def microphone(seconds: float = 1.0, name: str = "default") -> Iterator[SoundChunk]:
    """Chunks from a microphone, without end. Raises MediaError where there is none."""
    import av
    from av.error import FFmpegError

    said: list[str] = []
    for kind in DEVICES.get(sys.platform, ()):
        try:
            container = av.open(name, "r", format=kind)
        except (FFmpegError, ValueError, OSError) as error:
            said.append(f"{kind}: {short(error)}")
            continue
        with container:
            yield from _chunks(container, seconds)
        return
    raise MediaError(f"stream: no microphone ({'; '.join(said) or sys.platform}); connect one, or use a pipe")


def _chunks(container: Any, seconds: float) -> Iterator[SoundChunk]:
    import av
    from av.error import FFmpegError

    size = int(seconds * RATE)
    if size < RATE // 100:
        raise ValueError(f"stream: chunks of {seconds} s; want at least 0.01")
    if not container.streams.audio:
        raise MediaError("stream: what came holds no sound; send WAV, FLAC or Ogg, or state the PCM's rate")
    resampler = av.AudioResampler(format="flt", rate=RATE, frame_size=size)
    done = 0
    try:
        for frame in container.decode(container.streams.audio[0]):
            frame.pts = None  # the stream's own clock may jump; samples are counted
            for part in resampler.resample(frame):
                samples = mono(part)
                yield SoundChunk(start=done / RATE, samples=samples)
                done += len(samples)
        for part in resampler.resample(None):
            samples = mono(part)
            yield SoundChunk(start=done / RATE, samples=samples)
            done += len(samples)
    except FFmpegError as error:
        raise MediaError(f"stream: broken after {done / RATE:.1f} s ({short(error)}); start it again") from None
