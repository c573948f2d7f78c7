"""Choir: all installed voices as one, for examples that want somebody to speak.

Sentences come from the corpus, worn and mixed as in `hearing`; single words that a clip needs at a certain time are
said anew by the voices that are quick enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random

from omni.train.data import corpus, hearing
from omni.train.data.corpus import Utterance
from omni.train.data.example import Recording
from omni.train.data.sounds import Said
from omni.train.data.voices import Espeak, Speaker, voices


class Choir:
    """The voices to train on, or the held-out ones; `folder` holds the corpus, which is made where it is missing.

    chosen: speakers to take instead of all. shards, size: of the corpus, a voice (None: as the recipe has it).
    """

    def __init__(
        self,
        folder: Path,
        held_out: bool = False,
        *,
        chosen: Sequence[Speaker] | None = None,
        shards: int | None = None,
        size: int = corpus.SHARD,
    ) -> None:
        self.folder, self.held_out = folder, held_out
        self.speakers = tuple(chosen) if chosen is not None else voices(held_out)
        self.shards, self.size = 1 if held_out and shards is None else shards, size

    @cached_property
    def spoken(self) -> tuple[Utterance, ...]:
        """The corpus of these voices."""
        corpus.make(self.folder, self.speakers, shards=self.shards, size=self.size)
        return corpus.load(self.folder, self.speakers)

    @cached_property
    def quick(self) -> tuple[Speaker, ...]:
        """Voices that speak a hundred times as fast as one listens."""
        return tuple(voice for voice in self.speakers if isinstance(voice, Espeak) and not voice.absent())

    def say(self, rng: Random, text: str) -> Said:
        """A text by one of the quick voices."""
        return rng.choice(self.quick).say(rng, text)

    def tell(self, rng: Random) -> Recording:
        """Somebody says something of their own."""
        while True:
            made = hearing.recording(rng, self.spoken)
            if made.text:
                return made
