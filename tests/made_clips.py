"""Videos and sounds made in code: each frame shows its own number in bars, each odd half second beeps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (128, 96)


def numbered(index: int) -> np.ndarray:
    """Bits of the frame's number as white bars, the lowest on the left."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for bit in range(8):
        if index >> bit & 1:
            pixels[:, bit * 16 : (bit + 1) * 16] = 255
    return pixels


def number(pixels: np.ndarray) -> int:
    """The number that a frame shows."""
    bar = pixels.shape[1] / 8
    row = pixels[pixels.shape[0] // 2]
    return sum(1 << bit for bit in range(8) if row[int((bit + 0.3) * bar) : int((bit + 0.7) * bar)].mean() > 128)


def beeps(seconds: float, rate: int) -> np.ndarray:
    """440 Hz in every second half second, from 0.5 s on."""
    t = np.arange(int(seconds * rate))
    return (0.5 * np.sin(2 * np.pi * 440 * t / rate) * ((t // (rate // 2)) % 2 == 1)).astype(np.float32)


def clip(
    path: Path,
    *,
    fps: float = 30,
    frames: int = 60,
    codec: str = "libx264",
    sound: str | None = "aac",
    rate: int = 48000,
    variable: bool = False,
    picture: bool = True,
    group: int = 12,
    ready: bool = False,
) -> Path:
    """A video; with `variable`, its second half runs at a third of the pace.

    group: frames from one key frame to the next, at most. ready: an MP4's index stands before its frames.
    """
    base = 1 / Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options={"movflags": "faststart"} if ready else {}) as container:
        video = container.add_stream(codec, rate=1 / base, options={"g": str(group)}) if picture else None
        audio = container.add_stream(sound, rate=rate) if sound else None
        if video is not None:
            video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
                frame.pts = i if not variable or i < frames // 2 else frames // 2 + 3 * (i - frames // 2)
                frame.time_base = base
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None:
            samples = beeps(frames / fps, rate)[None]
            piece = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            piece.sample_rate = rate
            container.mux(audio.encode(piece))
            container.mux(audio.encode())
    return path


def turned(path: Path, target: Path) -> Path:
    """The same file, to be shown turned by a quarter: the track header's matrix is rewritten."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16
    matrix = (0, 65536, 0, -65536, 0, 0, SIZE[1] * 65536, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    target.write_bytes(data)
    return target
