"""espeak-ng by its C interface: speech with the time of each word, and a text's phones.

The library comes in the PyPI package espeakng-loader (GPL-3): a tool for making data, loaded where it is installed and
never redistributed. It holds one voice at a time, for the whole process; calls must not overlap. Source: speak_lib.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

SYNCHRONOUS, UTF8, IPA = 2, 1, 2
RATE, PITCH, RANGE = 1, 3, 4  # numbers of the parameters
END_OF_LIST, WORD = 0, 1  # kinds of events


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("position", ctypes.c_int),  # in the text, from 1
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Id),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """Samples in -1..1 at `rate`; words: where each begins, in the text (characters) and in the sound (seconds)."""

    samples: np.ndarray
    rate: int
    words: tuple[tuple[int, float], ...]


class Engine:
    """The loaded library. Get it by `engine()`: there is one a process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise ValueError(
                "espeak: the package espeakng-loader is not installed; it is a part of the train extra: "
                "pip install 'omni[train]'"
            ) from None
        data = espeakng_loader.get_data_path()
        self._variants = Path(data) / "voices" / "!v"
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        self._rate: int = self._library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
        if self._rate <= 0:
            raise ValueError(f"espeak: its data in {data} cannot be read; install espeakng-loader again")
        self._pieces: list[bytes] = []
        self._words: list[tuple[int, float]] = []
        self._failed: BaseException | None = None
        self._callback = _CALLBACK(self._heard)  # kept: the library holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def _heard(self, samples, count: int, events) -> int:
        """What was said; Python's errors, Ctrl-C too, would be lost in the library: they wait for its return."""
        try:
            self._take(samples, count, events)
        except BaseException as error:
            self._failed = error
            return 1
        return 0

    def _take(self, samples, count: int, events) -> None:
        if samples and count:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].kind != END_OF_LIST:
            if events[index].kind == WORD:
                self._words.append((events[index].position - 1, events[index].sample / self._rate))
            index += 1

    def select(self, name: str) -> None:
        """Take a voice, such as en-us or en+f2: the file of a language, then a variant.

        Raises ValueError for one that espeak does not have.
        """
        variant = name.partition("+")[2]
        # An unknown variant is otherwise passed over in silence.
        known = not variant or (self._variants / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(name.encode()):
            raise ValueError(
                f"espeak: it has no voice {name!r}; want a language such as en-us, and a variant such as +f2"
            )

    def speak(self, name: str, text: str, *, pace: int = 175, pitch: int = 50, spread: int = 50) -> Spoken:
        """Say a plain text at `pace` words a minute; pitch and its spread from 0 to 100."""
        self.select(name)
        for parameter, value in ((RATE, pace), (PITCH, pitch), (RANGE, spread)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        self._words.clear()
        self._failed = None
        content = text.encode()
        wrong = self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, UTF8, None, None)
        if self._failed is not None:
            raise self._failed
        if wrong:
            raise ValueError(f"espeak: {name} cannot say {text!r}")
        samples = np.frombuffer(b"".join(self._pieces), np.int16).astype(np.float32) / 32768
        return Spoken(samples=samples, rate=self._rate, words=tuple(self._words))

    def phones(self, name: str, text: str) -> str:
        """A text in the phonetic alphabet, clause by clause, joined by spaces."""
        self.select(name)
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:
            clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, IPA).decode())
        return " ".join(clauses)


@cache
def engine() -> Engine:
    """The process's espeak. Raises ValueError where it is not installed."""
    return Engine()
