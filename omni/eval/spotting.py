"""Spotting: words with their boxes against the true ones, as ICDAR 2015's end-to-end evaluation counts them.

Source: OCRBench v2 (arXiv 2501.00321), with the Robust Reading Competition's rules for task 4.4.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

Box = Sequence[int | float]  # left, top, right, bottom
ENOUGH = 0.5
UNREADABLE = "###"  # a true word that nobody can read: found or not, it does not count
EDGES = "!?.:,*\"()·[]/'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """box: left, top, right, bottom."""

    text: str
    box: Box


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    both = _shared(one, other)
    whole = _area(one) + _area(other) - both
    return both / whole if whole else 0.0


def _area(box: Box) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(0, width) * max(0, height))


def read(text: str) -> list[Word]:
    """The words of an answer: a list of (left, top, right, bottom, "text"), or such brackets within other text.

    Boxes are of whole numbers from 0 to 1000; others, and repetitions, are passed over.
    """
    found = dict[Word, None]()
    for parts in _brackets(text):
        with suppress(ValueError):
            box = tuple(int(str(part).strip()) for part in parts[:4])
            if all(0 <= side <= 1000 for side in box):
                said = str(parts[4]).replace("\n", "").strip().strip('"').strip("'")
                found[Word(text=said, box=box)] = None
    return list(found)


def _brackets(text: str) -> list[Sequence[object]]:
    """Whatever has five parts or more."""
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        cut = [inside.split(",", 4) for inside in re.findall(r"[\[(]\s*([^\[\]()]*?)\s*[\])]", text)]
        return [parts for parts in cut if len(parts) == 5]
    listed = listed if isinstance(listed, list | tuple) else ()
    return [parts for parts in listed if isinstance(parts, list | tuple) and len(parts) >= 5]


def true_words(texts: Sequence[str], polygons: Sequence[Box]) -> list[Word]:
    """Each text with the box around its polygon (x, y, x, y, and so on)."""
    return [
        Word(text=text, box=(min(places[0::2]), min(places[1::2]), max(places[0::2]), max(places[1::2])))
        for text, places in zip(texts, polygons, strict=True)
    ]


def f_measure(said: Sequence[Word], truth: Sequence[Word]) -> float:
    """The harmonic mean of precision and recall.

    A word is found by the first box that overlaps its own by more than a half; it is right if the words agree, but for
    case and one mark at either end of the true one. What lies on words that nobody can read does not count.
    """
    boxes = [word for word in said if word.box[0] < word.box[2] and word.box[1] < word.box[3]]
    hidden = [word for word in truth if word.text == UNREADABLE]
    wanted = [word for word in truth if word.text != UNREADABLE]
    left = [word for word in boxes if not any(_covers(each, word) for each in hidden)]
    counted, right = len(left), 0
    for word in wanted:
        found = next((each for each in left if overlap(each.box, word.box) > ENOUGH), None)
        if found is not None:
            left.remove(found)
            right += _agree(word.text.upper(), found.text.upper())
    return 2 * right / (counted + len(wanted)) if counted and wanted else 0.0


def _covers(hidden: Word, said: Word) -> bool:
    return _shared(hidden.box, said.box) / _area(said.box) > ENOUGH


def _agree(truth: str, said: str) -> bool:
    first, last = truth[:1] in EDGES, truth[-1:] in EDGES
    return bool(truth) and said in (truth, truth[1:] if first else truth, truth[:-1] if last else truth,
                                    truth[1:-1] if first and last else truth)  # fmt: skip
