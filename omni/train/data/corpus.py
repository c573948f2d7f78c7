"""A corpus of synthetic speech: voices are slower than training, so what they say is made once and kept in shards.

Texts and pace of a shard come from (seed, voice, number) alone, so making goes on where it stopped. `hearing` wears it
anew each time it is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from rich.progress import track
from safetensors.numpy import load_file, save_file

from omni.train.data import sounds
from omni.train.data.sounds import Said
from omni.train.data.voices import Speaker

SHARD = 100  # utterances
SHARDS = {"espeak": 3, "flite": 8, "hibari": 16, "piper": 1}  # of a voice to train on, by engine; held out: 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """What a voice said; samples: 16 bit, 16 kHz."""

    voice: str
    text: str
    samples: np.ndarray
    times: np.ndarray


def shard_path(folder: Path, voice: str, number: int) -> Path:
    """Where a voice's shard lies."""
    return folder / f"{voice.replace(' ', '-').replace('+', '-')}-{number:02}.safetensors"


def make(
    folder: Path, speakers: Sequence[Speaker], *, shards: int | None = None, size: int = SHARD, seed: int = 1
) -> None:
    """Let each voice say what is missing: `shards` of `size` utterances (None: as SHARDS has it).

    Says which voices are not installed and goes on without them. Raises ValueError where none is.
    """
    present = [
        speaker for speaker in speakers if not (reason := speaker.absent()) or print(f"{speaker.name}: {reason}")
    ]
    if not present:
        raise ValueError("corpus: none of the voices is installed; pip install 'omni[train]' brings espeak and hibari")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(s, n) for s in present for n in range(SHARDS[s.name.split()[0]] if shards is None else shards)]
    missing = [(s, n) for s, n in wanted if not shard_path(folder, s.name, n).is_file()]
    for speaker, number in track(missing, "speech", disable=not missing):
        rng = Random(f"{seed} {speaker.name} {number}")
        _write(shard_path(folder, speaker.name, number), [speaker.say(rng, sounds.sentence(rng)) for _ in range(size)])


def load(folder: Path, speakers: Sequence[Speaker]) -> tuple[Utterance, ...]:
    """All that these voices have said so far, voice by voice. Raises ValueError where that is nothing."""
    found: list[Utterance] = []
    for speaker in speakers:
        for path in sorted(folder.glob(shard_path(folder, speaker.name, 0).name.replace("-00.", "-[0-9][0-9]."))):
            found += _read(path, speaker.name)
    if not found:
        raise ValueError(f"corpus: {folder} has no speech of {', '.join(s.name for s in speakers)}; make it first")
    return tuple(found)


def _write(path: Path, said: Sequence[Said]) -> None:
    part = path.with_suffix(".part")
    arrays = {
        "samples": np.concatenate([(each.samples * 32767).round().astype(np.int16) for each in said]),
        "lengths": np.array([len(each.samples) for each in said]),
        "text": np.frombuffer("\n".join(each.text for each in said).encode(), np.uint8),
        "times": np.concatenate([np.array(each.times, np.float32) for each in said]),
    }
    save_file(arrays, part)
    part.replace(path)


def _read(path: Path, voice: str) -> list[Utterance]:
    arrays = load_file(path)
    texts = arrays["text"].tobytes().decode().split("\n")
    samples = np.split(arrays["samples"], arrays["lengths"].cumsum()[:-1])
    times = np.split(arrays["times"], np.cumsum([len(text) for text in texts])[:-1])
    return [
        Utterance(voice=voice, text=text, samples=heard, times=at)
        for text, heard, at in zip(texts, samples, times, strict=True)
    ]
