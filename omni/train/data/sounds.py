"""Sound: what is said and how it is timed, beeps to count and place, rooms and noise.

A `Voice` says a text: samples at 16 kHz and the second at which each character is heard. `Mute` only keeps time: it
is enough for a language model that learns from what the renderer knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, runtime_checkable

import numpy as np

from omni.train.data import words
from omni.train.data.example import Example, Recording, Turn
from omni.train.data.page import CODE

RATE = 16000
TOKEN = 0.08  # seconds an audio token
CHARS = 3  # characters told a token
PITCHES = {"low": (180.0, 260.0), "middle": (500.0, 700.0), "high": (1300.0, 1900.0)}
FIELDS = (len(CODE) + 1,) * CHARS + (len(PITCHES) + 1,)
SPOKEN = """zero one two three four five six seven eight nine ten red green blue yellow purple orange pink door window
house river garden table bottle train ticket letter market doctor teacher driver station kitchen basket camera piano
pencil jacket button candle open close left right stop start morning evening monday friday apple coffee water bread
paper music happy yellow silver winter summer""".split()
DIGITS = SPOKEN[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Samples at 16 kHz and the second of each character of the text."""

    samples: np.ndarray
    text: str
    times: tuple[float, ...]


@runtime_checkable
class Voice(Protocol):
    """Somebody who speaks."""

    def say(self, rng: Random, text: str) -> Said:
        """A text spoken; other words of `rng` give other pace."""
        ...

    def tell(self, rng: Random) -> Recording:
        """A recording of words of the voice's own choosing."""
        ...


class Mute:
    """Keeps the time of speech, in silence."""

    def say(self, rng: Random, text: str) -> Said:
        """Zeros, as long as the text would take."""
        at, times = rng.uniform(0.02, 0.12), []
        pace = rng.uniform(0.055, 0.085)
        for char in text:
            step = pace * rng.uniform(0.6, 1.4) * (1.3 if char == " " else 1.0)
            times.append(at + step / 2)
            at += step
        return Said(
            samples=np.zeros(int((at + rng.uniform(0.03, 0.2)) * RATE), np.float32), text=text, times=tuple(times)
        )

    def tell(self, rng: Random) -> Recording:
        """Nothing to hear, but what would be heard."""
        return recording(self.say(rng, sentence(rng)))


def fields(
    samples: int, chars: Sequence[tuple[float, str]], tones: Sequence[tuple[float, float, str]] = ()
) -> np.ndarray:
    """What each token of 80 ms holds, (tokens, fields): characters in order, then the pitch that sounds.

    The number of tokens is the encoder's for L // 160 frames.
    """
    length = samples // 160
    for _ in range(3):
        length = (length - 1) // 2 + 1
    out = np.zeros((length, len(FIELDS)), np.int16)
    used = [0] * length
    for time, char in chars:
        token = min(int(time / TOKEN), length - 1)
        if used[token] < CHARS:
            out[token, used[token]] = CODE.get(char, 0)
            used[token] += 1
    for start, seconds, pitch in tones:
        first, last = int(start / TOKEN), int((start + seconds) / TOKEN)
        out[first : last + 1, CHARS] = list(PITCHES).index(pitch) + 1
    return out


def sentence(rng: Random) -> str:
    """What is said: words, digits, or a short sentence; lower case, without marks."""
    kind = rng.random()
    if kind < 0.3:
        return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(2, 6)))
    if kind < 0.6:
        return " ".join(rng.choice(SPOKEN) for _ in range(rng.randint(1, 5)))
    return words.sentence(rng).lower().rstrip(".")


def recording(said: Said) -> Recording:
    """A spoken text as a recording with its fields."""
    chars = list(zip(said.times, said.text, strict=True))
    return Recording(samples=said.samples, text=said.text, fields=fields(len(said.samples), chars))


WHAT = ("What is said?", "Transcribe the recording.", "Write down what you hear.", "What does the speaker say?")


def speech(rng: Random, voice: Voice) -> Example:
    """Somebody speaks: write it down."""
    made = voice.tell(rng)
    return Example(skill="speech", media=(made,), turns=(Turn(question=rng.choice(WHAT), answer=made.text),))


def beeps(rng: Random, voiced: bool = True) -> Example:
    """Beeps of one or several pitches: how many, which pitch, in which order. voiced: False leaves out the samples."""
    count, at = rng.randint(1, 5), rng.uniform(0.1, 0.5)
    pitches = [rng.choice(list(PITCHES)) for _ in range(count)]
    if rng.random() < 0.5:
        pitches = [pitches[0]] * count
    tones = []
    for pitch in pitches:
        length = rng.uniform(0.15, 0.35)
        tones.append((at, length, pitch))
        at += length + rng.uniform(0.25, 0.6)
    samples = np.zeros(int((at + rng.uniform(0, 0.3)) * RATE), np.float32)
    if voiced:
        for start, length, pitch in tones:
            t = np.arange(int(length * RATE)) / RATE
            wave = np.sin(2 * np.pi * rng.uniform(*PITCHES[pitch]) * t) * np.minimum(
                1, np.minimum(t, length - t) / 0.01
            )
            samples[int(start * RATE) : int(start * RATE) + len(t)] += wave.astype(np.float32) * rng.uniform(0.1, 0.5)
        samples += np.random.default_rng(rng.getrandbits(32)).standard_normal(
            len(samples), np.float32
        ) * 10 ** rng.uniform(-4, -2)
    turns = [Turn(question=rng.choice(("How many beeps are there?", "How many tones do you hear?")), answer=str(count))]
    if len(set(pitches)) == 1:
        turns.append(Turn(question="Is the pitch low, middle or high?", answer=pitches[0]))
    else:
        turns.append(Turn(question="Which pitches are heard, in order?", answer=", ".join(pitches)))
    rng.shuffle(turns)
    made = Recording(samples=samples, tones=tuple(tones), fields=fields(len(samples), (), tones))
    return Example(skill="sounds", media=(made,), turns=tuple(turns))


def worn(rng: Random, samples: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """A room, noise, a band and another level."""
    noise = np.random.default_rng(rng.getrandbits(32))
    out = samples
    if rng.random() < 0.4 * strength:
        tail = int(rng.uniform(0.05, 0.3) * RATE)
        echo = noise.standard_normal(tail).astype(np.float32) * np.exp(-np.arange(tail) / (tail / 5)).astype(np.float32)
        echo *= rng.uniform(0.02, 0.12)
        echo[0] = 1.0
        size = 1 << (len(out) + tail - 1).bit_length()
        out = np.fft.irfft(np.fft.rfft(out, size) * np.fft.rfft(echo, size), size)[: len(out)].astype(np.float32)
    level = float(np.sqrt((out**2).mean())) + 1e-6
    if rng.random() < 0.8 * strength:
        hiss = noise.standard_normal(len(out)).astype(np.float32)
        if rng.random() < 0.5:
            hiss = np.convolve(hiss, np.ones(8, np.float32) / 8, "same") * 2.8
        out = out + hiss * level * 10 ** (-rng.uniform(8, 35) / 20)
    return (out * rng.uniform(0.3, 1.5)).clip(-1, 1).astype(np.float32)
