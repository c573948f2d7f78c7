"""Example: a conversation with media made in code, the right answers, and what the renderer knows of each patch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer; thinking: what is thought first ("" where the turn is answered at once).

    skill: what the turn counts as, where it is not the example's. box: where a click is right, as shares of the
    picture (left, top, right, bottom).
    """

    question: str
    answer: str
    thinking: str = ""
    skill: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture on a whole grid of patches. fields: (rows, cols, fields), see `page.FIELDS`. label: text before it.

    blurred: fields as a tower sees them that is not sure on which side of a border a character lies, several guesses;
    none where the pixels are there to be looked at. bound: (rows, cols, fields) of a chart, what each patch belongs to,
    see `page.BOUND`.
    """

    image: Image.Image
    fields: np.ndarray
    label: str = ""
    blurred: tuple[np.ndarray, ...] = ()
    bound: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Sound at 16 kHz, mono. text: what is said, "" where nobody speaks. tones: (second, length, pitch class).
    fields: (tokens, fields) of 80 ms, see `sounds.FIELDS`; None where nobody knows."""

    samples: np.ndarray
    text: str = ""
    tones: tuple[tuple[float, float, str], ...] = ()
    fields: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """Frames (frames, height, width, 3) uint8 at times in seconds; fields as a picture's, one set a frame."""

    frames: np.ndarray
    times: tuple[float, ...]
    fields: np.ndarray
    sound: Recording | None = None


Medium = Picture | Recording | Film


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Media in front of the first question, then turns about them. skill: the row of the card's table it counts in.

    lists: turns that go over all that the media show; each may stand alone in place of the turns.
    """

    skill: str
    turns: tuple[Turn, ...]
    media: tuple[Medium, ...] = field(default=())
    lists: tuple[Turn, ...] = field(default=())
