"""Scorers: the benchmarks' own rules by name. Each takes an answer and an item, and gives a mark.

Thinking is taken off before any rule sees an answer; where nothing is left, or a rule finds nothing, the mark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omni.eval import extract, scorers_documents, scorers_ocr, scorers_speech
from omni.eval.item import FAILED, Item, Mark
from omni.train import marks

Rule = Callable[[str, Item], Mark]
Summary = Callable[[Sequence[Mark]], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """rule: of an answer without thinking. errors: whether marks count errors, so that less is better. summary: further
    figures over all items.
    """

    name: str
    about: str
    rule: Rule
    errors: bool = False
    summary: Summary | None = None

    def mark(self, answer: str, item: Item) -> Mark:
        """What an answer is worth; a failure where it holds nothing but thinking. Errors then are all of the text."""
        said = extract.spoken(answer)
        mark = self.rule(said or "", item)
        return mark if said or self.errors else replace(mark, extracted=None, got=0.0)


def choice(answer: str, item: Item) -> Mark:
    """A letter among options; see `extract.letter`. The truth is a letter."""
    found = extract.letter(answer, item.options)
    return Mark(extracted=found, got=float(found == item.truth))


def numeric(answer: str, item: Item) -> Mark:
    """The same number as the truth, which may end in "#### 18". Source: GSM8K, arXiv 2110.14168."""
    found, truth = extract.number(answer), extract.number(str(item.truth))
    right = found is not None and truth is not None and extract.same_number(found, truth)
    return Mark(extracted=found, got=float(right))


def click(answer: str, item: Item) -> Mark:
    """A point within the box. Truth: box (left, top, right, bottom) and its unit, and the picture's size in it.

    Source: ScreenSpot (SeeClick, arXiv 2401.10935): the click must fall into the element's box.
    """
    found = extract.point(answer)
    if found is None:
        return FAILED
    left, top, right, bottom = item.truth["box"]
    across, down = item.truth["size"]
    x, y = found[0] / across, found[1] / down
    return Mark(extracted=f"{x:g}, {y:g}", got=float(left <= x <= right and top <= y <= bottom))


def needles(answer: str, item: Item) -> Mark:
    """The share of the hidden values that are named, in any case. Source: RULER, arXiv 2404.06654, string_match_all."""
    found = [value for value in item.truth if value.lower() in answer.lower()]
    return Mark(extracted=", ".join(found) or None, got=len(found) / len(item.truth))


def _own(mark: Callable[[str, str], tuple[float, float]]) -> Rule:
    """A mark of the small model's exam as a rule."""

    def rule(answer: str, item: Item) -> Mark:
        got, most = mark(answer, item.truth)
        return Mark(extracted=answer or None, got=got, most=most)

    return rule


def _timed(answer: str, item: Item) -> Mark:
    got, _ = marks.near(answer, item.truth)
    return Mark(extracted=extract.number(answer), got=got)


ALL = (
    Scorer(name="choice", about="the letter of an option", rule=choice),
    Scorer(name="numeric", about="a number, as in GSM8K", rule=numeric),
    Scorer(name="click", about="a point within a box", rule=click),
    Scorer(name="needles", about="share of hidden values named, as in RULER", rule=needles),
    Scorer(name="anls", about="average normalised Levenshtein similarity", rule=scorers_documents.anls),
    Scorer(name="relaxed", about="relaxed accuracy, 5 % of a number", rule=scorers_documents.relaxed),
    Scorer(name="vqa", about="agreement with ten people", rule=scorers_documents.vqa),
    Scorer(name="ocrbench", about="the truth stands in the answer", rule=scorers_ocr.ocrbench),
    Scorer(
        name="ocrbench v2",
        about="a rule for each type of question",
        rule=scorers_ocr.ocrbench_v2,
        summary=scorers_ocr.abilities,
    ),
    Scorer(
        name="long documents",
        about="MMLongBench-Doc's rules by format",
        rule=scorers_documents.long_documents,
        summary=scorers_documents.f1,
    ),
    Scorer(
        name="word errors",
        about="WER behind Whisper's English normaliser",
        rule=scorers_speech.word_errors,
        errors=True,
    ),
    Scorer(name="exact", about="the truth, letter by letter", rule=_own(marks.exact)),
    Scorer(name="time", about="a time within one tubelet", rule=_timed),
    Scorer(name="plain character errors", about="CER of the text as it is", rule=_own(marks.edits), errors=True),
    Scorer(name="plain word errors", about="WER of the text as it is", rule=_own(marks.word_edits), errors=True),
)
SCORERS = {each.name: each for each in ALL}


def named(name: str) -> Scorer:
    """Raises ValueError for a name that is unknown."""
    if name not in SCORERS:
        raise ValueError(f"scorer: {name!r} is unknown; want one of {', '.join(SCORERS)}")
    return SCORERS[name]
