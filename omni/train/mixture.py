"""Mixture: which examples a stage sees, in which shares; the same from the same (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from omni.train.data import charts, clips, documents, fonts, screens, sounds, texts
from omni.train.data.example import Example, Film, Picture, Recording
from omni.train.data.page import FINE, Print
from omni.train.data.sounds import Voice

Maker = Callable[[Random], Example]


def makers(
    voice: Voice, *, held_out: bool = False, drawn: bool = True, turns: int = 8, how: Print = FINE, shown: int = 8,
    lists: float = 0.0,
) -> dict[str, Maker]:  # fmt: skip
    """A maker for each skill.

    held_out: fonts that training never sees. drawn: with pixels and samples. turns: questions about a page at most;
    shown: about a chart or a clip, whose answers tell much of the next ones. how: pages and charts are drawn. lists:
    share of the conversations about what can be listed whole that end so.
    """
    shown = min(shown, turns)
    faces = fonts.faces(held_out)
    few, some = how.patches * 5 // 32, how.patches * 3 // 8  # 100 and 240 of 640
    short = (documents.receipt, documents.form, documents.table)
    pages: dict[str, Any] = {"drawn": drawn, "how": how}
    return {
        "line": lambda r: documents.transcription(r, faces, patches=few, kinds=(documents.line,), **pages),
        "lines": lambda r: documents.transcription(r, faces, patches=few, kinds=(documents.lines,), **pages),
        "small document": lambda r: documents.questions(r, faces, turns=turns, patches=some, kinds=short, **pages),
        "document": lambda r: documents.questions(r, faces, turns=turns, **pages),
        "pages": lambda r: documents.pages(r, faces, turns=turns, **pages),
        "transcription": lambda r: documents.transcription(r, faces, **pages),
        "chart": lambda r: listed(r, charts.questions(r, faces, turns=shown, **pages), lists),
        "screen": lambda r: screens.questions(r, faces, turns=turns, drawn=drawn),
        "video": lambda r: clips.questions(r, turns=shown, drawn=drawn),
        "time": lambda r: clips.questions(r, turns=shown, skill="time", drawn=drawn),
        "speech": lambda r: sounds.speech(r, voice),
        "sounds": lambda r: sounds.beeps(r, voiced=drawn),
        "sound and video": lambda r: listed(r, clips.spoken(r, voice, turns=min(shown, 3), drawn=drawn), lists),
        "strings": texts.strings,
        "copying": texts.copying,
        "look-up": texts.lookup,
        "sums": texts.sums,
    }


def listed(rng: Random, example: Example, share: float) -> Example:
    """In this share of them, one list more at the end of a conversation."""
    if not example.lists or rng.random() >= share:
        return example
    return replace(example, turns=(*example.turns, rng.choice(example.lists)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a stage: until which step, tokens a step, and shares of the skills."""

    until: int
    tokens: int
    weights: Mapping[str, float]


ALL = {
    "lines": 1.0, "small document": 1.5, "document": 4.0, "pages": 1.0, "transcription": 1.5, "chart": 1.4,
    "screen": 0.4, "video": 1.5, "time": 1.4, "speech": 2.0, "sounds": 1.0, "sound and video": 1.4, "copying": 0.3,
    "look-up": 0.4, "sums": 4.0,
}  # fmt: skip

JOINT = ALL | {  # where all parts learn; few questions about each chart and clip, so more of them
    "lines": 0.7, "small document": 1.0, "document": 3.5, "pages": 1.5, "transcription": 2.5, "chart": 10.0,
    "screen": 1.0, "video": 3.0, "time": 1.0, "sounds": 0.7, "sound and video": 2.5, "look-up": 0.3, "sums": 2.5,
}  # fmt: skip

DRAFTED = JOINT | {  # long answers and texts, where drafts help
    "transcription": 4.0, "chart": 3.0, "sound and video": 1.0, "strings": 1.0, "copying": 2.0, "look-up": 1.5,
    "sums": 4.0,
}  # fmt: skip


PHASES = (  # copying, then reading: all answers are built on them
    Phase(until=250, tokens=1200, weights={"strings": 1.0}),
    Phase(until=1500, tokens=1500, weights={"line": 3.0, "strings": 0.4, "look-up": 0.6}),
    Phase(
        until=3000,
        tokens=2500,
        weights={
            "line": 1.0, "lines": 3.0, "small document": 3.0, "strings": 0.3, "copying": 0.4, "look-up": 1.0,
            "speech": 1.0, "video": 0.7, "time": 0.5, "sums": 0.5,
        },
    ),
    Phase(until=10**9, tokens=4096, weights=ALL),
)  # fmt: skip


def tokens_of(example: Example) -> int:
    """About how many tokens an example takes."""
    total = sum(20 + len(t.question) // 3 + len(t.answer) + len(t.thinking) for t in example.turns)
    for medium in example.media:
        match medium:
            case Picture():
                total += medium.fields.shape[0] * medium.fields.shape[1] // 4
            case Film():
                steps = -(-len(medium.times) // 2)
                total += steps * (28 + medium.fields.shape[1] * medium.fields.shape[2] // 4)
                total += len(medium.sound.fields) if medium.sound is not None and medium.sound.fields is not None else 0
            case Recording():
                total += len(medium.samples) // 1280
    return total


def draw(rng: Random, made: Mapping[str, Maker], weights: Mapping[str, float], tokens: int) -> list[Example]:
    """Examples of about so many tokens in all, in an order of their own."""
    names, shares = list(weights), list(weights.values())
    examples: list[Example] = []
    while tokens > 0:
        example = made[rng.choices(names, shares)[0]](rng)
        examples.append(example)
        tokens -= tokens_of(example)
    return examples
