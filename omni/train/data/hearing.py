"""What training hears: utterances of the corpus at another pace, with pauses, beeps, rooms and noise, always anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from omni.train.data import sounds
from omni.train.data.corpus import Utterance
from omni.train.data.example import Recording
from omni.train.data.sounds import RATE, TOKEN

GRID = 8 * round(TOKEN * RATE)  # samples; recordings end on it, so that sounds of one length are encoded together
FULL_SCALE = 32768.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of sound: characters and tones with their seconds in it."""

    samples: np.ndarray
    text: str = ""
    chars: tuple[tuple[float, str], ...] = ()
    tones: tuple[tuple[float, float, str], ...] = ()


def quickened(utterance: Utterance, factor: float) -> Part:
    """An utterance played faster, and so higher, by a factor: another pace and another throat."""
    count = int(len(utterance.samples) / factor)
    samples = np.interp(np.arange(count) * factor, np.arange(len(utterance.samples)), utterance.samples / FULL_SCALE)
    times = (utterance.times / factor).clip(0, (count - 1) / RATE)
    chars = tuple(zip(times.tolist(), utterance.text, strict=True))
    return Part(samples=samples.astype(np.float32), text=utterance.text, chars=chars)


def beeped(rng: Random) -> Part:
    """Some beeps."""
    made = sounds.beeps(rng).media[0]
    assert isinstance(made, Recording)
    return Part(samples=made.samples, tones=made.tones)


def joined(rng: Random, parts: Sequence[Part], strength: float = 1.0) -> Recording:
    """Parts one after the other with pauses, then worn as one; between two texts a space. The end lies on GRID."""
    pieces, texts, chars, tones = [], [], [], []
    at = 0
    for part in parts:
        gap = round(rng.uniform(0.0, 0.5) * RATE)
        if texts and part.text:
            chars.append(((at + gap / 2) / RATE, " "))
        at += gap
        chars += [(at / RATE + time, char) for time, char in part.chars]
        tones += [(at / RATE + time, length, pitch) for time, length, pitch in part.tones]
        texts += [part.text] if part.text else []
        pieces += [np.zeros(gap, np.float32), part.samples]
        at += len(part.samples)
    pieces.append(np.zeros(-at % GRID, np.float32))
    samples = sounds.worn(rng, np.concatenate(pieces), strength)
    return Recording(
        samples=samples, text=" ".join(texts), tones=tuple(tones), fields=sounds.fields(len(samples), chars, tones)
    )


def recording(rng: Random, corpus: Sequence[Utterance], longest: float = 8.0) -> Recording:
    """Somebody speaks, one time in five twice; or beeps, alone or before or after speech. Up to about `longest` s."""
    kind = rng.random()
    if kind < 0.12:
        return joined(rng, [beeped(rng)], 0.6)
    first = rng.randrange(len(corpus))
    factor = rng.uniform(0.86, 1.16)
    parts = [quickened(corpus[first], factor)]
    if kind < 0.2:
        parts.append(beeped(rng))
        rng.shuffle(parts)
    elif kind < 0.36:  # the corpus lies voice by voice: mostly the same voice
        parts.append(quickened(corpus[rng.randrange(max(first - 50, 0), min(first + 50, len(corpus)))], factor))
    while sum(len(part.samples) for part in parts) > longest * RATE and len(parts) > 1:
        parts.pop()
    return joined(rng, parts)
