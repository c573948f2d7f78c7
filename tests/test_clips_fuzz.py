"""Damaged videos and sounds end as a clear error or a right answer: never another exception, a crash, a hang or a leak.

Native decoders may crash, so the files are read in a process of its own; what it has not reported is what killed it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import made_clips

SEED = 20261123
COUNT = 250
SECONDS = 10.0

READER = """
import json, resource, sys, time
from processors.clips import open_video
from processors.limits import MediaError
from processors.sound import open_sound

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for number, path in enumerate(sys.argv[1:]):
    start, said = time.monotonic(), []
    for kind in ("video", "sound"):
        try:
            if kind == "video":
                video = open_video(path)
                frames = video.read(sorted({0, len(video) // 2, len(video) - 1}))
                assert frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype.name == "uint8"
                assert (frames.shape[2], frames.shape[1]) == video.size and len(video.times) == len(video)
                video.close()
            else:
                sound = open_sound(path)
                samples = sound.read()
                assert samples.shape == (sound.samples,) and bool(samples.isfinite().all())
            said.append("read")
        except MediaError as error:
            said.append("refused" if path.split("/")[-1] in str(error) else f"unnamed: {error}")
        except Exception as error:  # the child reports it, and the test then fails on it
            said.append(f"{type(error).__name__}: {error}")
    print(json.dumps([path, said, time.monotonic() - start, rss()]), flush=True)
"""


def bases(folder: Path) -> list[Path]:
    made = [
        made_clips.clip(folder / "a.mp4", frames=30),
        made_clips.clip(folder / "b.webm", codec="libvpx-vp9", sound="libopus", frames=30),
        made_clips.clip(folder / "c.mkv", codec="mpeg4", frames=30),
        made_clips.clip(folder / "d.avi", codec="mpeg4", sound="pcm_s16le", frames=30),
        made_clips.clip(folder / "e.mov", sound=None, frames=30),
    ]
    kinds = {"f.wav": "pcm_s16le", "g.mp3": "libmp3lame", "h.flac": "flac", "i.ogg": "libopus", "j.m4a": "aac"}
    return made + [
        made_clips.clip(folder / name, sound=codec, picture=False, frames=30) for name, codec in kinds.items()
    ]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, insert, blank or double a part."""
    spoiled = bytearray(data)
    how = chance.choice(["flip", "flip", "cut", "insert", "blank", "double"])
    if how == "flip":
        for _ in range(chance.choice([1, 10, 100])):
            spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    elif how == "cut":
        del spoiled[chance.randrange(len(spoiled)) :]
    elif how == "insert":
        at = chance.randrange(len(spoiled))
        spoiled[at:at] = chance.randbytes(chance.randrange(1, 300))
    else:
        start = chance.randrange(len(spoiled))
        part = spoiled[start : start + chance.randrange(1, 2000)]
        spoiled[start : start + len(part)] = bytes(len(part)) if how == "blank" else bytes(part) * 2
    return bytes(spoiled)


def test_damaged_files_end_as_an_error_or_right() -> None:
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = bases(folder)
        files = []
        for number in range(COUNT):
            original = originals[number % len(originals)]
            suffix = chance.choice(originals).suffix if chance.random() < 0.2 else original.suffix
            files.append(folder / f"bad{number}{suffix}")
            files[-1].write_bytes(damaged(original.read_bytes(), chance))
        reports: list[tuple[str, list[str], float, int]] = []
        for start in range(0, COUNT, 50):
            part = [str(path) for path in files[start : start + 50]]
            command = [sys.executable, "-c", READER, *part]
            done = subprocess.run(command, capture_output=True, text=True, timeout=50 * SECONDS)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            assert len(lines) == len(part), (
                f"{part[len(lines)]} ended the process: {done.returncode} {done.stderr[-400:]}"
            )
            reports += [tuple(line) for line in lines]
            assert lines[-1][3] - lines[9][3] < 200 << 20, "memory grows from file to file"
    wrong = [(path, said) for path, said, _, _ in reports if not set(said) <= {"read", "refused"}]
    assert not wrong
    slow = [(path, seconds) for path, _, seconds, _ in reports if seconds > SECONDS]
    assert not slow
    outcomes = [answer for _, said, _, _ in reports for answer in said]
    assert outcomes.count("read") > 50
    assert outcomes.count("refused") > 50
