"""Compare: two runs over the same items, in pairs: the difference with its interval, and the items that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omni.eval.record import Record
from omni.eval.scorers import named
from omni.interval import difference, interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that one run had better than the other."""

    item: str
    question: str
    truth: Any
    before: str
    after: str
    gained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """before, after: the figures over the shared items; low, high: 95 % of their paired difference.

    better, worse: items by what they gained or lost. apart: items that only one of the runs has. asked_otherwise:
    shared items whose question differs. errors: whether less is better.
    """

    items: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    errors: bool
    better: tuple[Flip, ...]
    worse: tuple[Flip, ...]
    apart: int
    asked_otherwise: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(before: Sequence[Record], after: Sequence[Record]) -> Comparison:
    """Two runs of one benchmark. Raises ValueError where they share no item, or were marked by different rules."""
    first, second = ({r.item: r for r in records} for records in (before, after))
    pairs = [(first[name], second[name]) for name in first if name in second]
    if not pairs:
        raise ValueError("compare: the runs share no item; pass two runs of one benchmark")
    if other := [(a, b) for a, b in pairs if (a.rule, a.truth) != (b.rule, b.truth)]:
        a, b = other[0]
        raise ValueError(
            f"compare: item {a.item} was marked by {a.rule!r} for {a.truth!r}, and by {b.rule!r} for {b.truth!r}; "
            "pass two runs of one benchmark"
        )
    errors = named(pairs[0][0].rule).errors
    marks = [[(pair[side].got, pair[side].most) for pair in pairs] for side in (0, 1)]
    value, low, high = difference(marks[0], marks[1])
    flips = sorted(
        (flip for flip in (_flip(a, b, errors) for a, b in pairs) if flip.gained),
        key=lambda flip: -abs(flip.gained),
    )
    return Comparison(
        items=len(pairs),
        before=interval(marks[0])[0],
        after=interval(marks[1])[0],
        difference=value,
        low=low,
        high=high,
        errors=errors,
        better=tuple(flip for flip in flips if flip.gained > 0),
        worse=tuple(flip for flip in flips if flip.gained < 0),
        apart=len(first) + len(second) - 2 * len(pairs),
        asked_otherwise=sum(a.question != b.question for a, b in pairs),
    )


def _flip(before: Record, after: Record, errors: bool) -> Flip:
    shares = [r.got / r.most if r.most else 0.0 for r in (before, after)]
    gained = shares[0] - shares[1] if errors else shares[1] - shares[0]
    return Flip(
        item=before.item,
        question=before.question,
        truth=before.truth,
        before=before.answer,
        after=after.answer,
        gained=gained,
    )
