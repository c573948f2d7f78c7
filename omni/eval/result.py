"""Result: what a run's records come to: the figure with its interval, failures apart, and by groups."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omni.eval.item import Mark
from omni.eval.record import Record, Times
from omni.eval.scorers import named
from omni.eval.spec import OnFailure
from omni.interval import interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A ratio with its 95 % interval over the questions. errors: whether less is better."""

    value: float
    low: float
    high: float
    questions: int
    errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """figure: of all items that count. failures: share of answers from which nothing could be read; unasked: of items
    that could not be asked. further: the rule's other figures. seconds, tokens: medians an item.
    """

    figure: Figure
    failures: float
    unasked: float
    further: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    first_token_seconds: float | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarise(records: Sequence[Record], times: Sequence[Times] = (), on_failure: OnFailure = "wrong") -> Result:
    """A run's result. Raises ValueError where there is no record, or none that counts."""
    counted = [r for r in records if on_failure == "wrong" or not r.failed]
    if not counted:
        why = "; nothing could be read from any answer, and scoring.on_failure leaves those out" if records else ""
        raise ValueError(f"eval: {len(records)} items, and none that counts{why}")
    scorer = named(records[0].rule)
    marks = [Mark(extracted=r.extracted, got=r.got, most=r.most, notes=r.notes) for r in counted]
    first = [each.first_token for each in times]
    return Result(
        figure=_figure(counted, scorer.errors),
        failures=sum(r.failed and r.error is None for r in records) / len(records),
        unasked=sum(r.error is not None for r in records) / len(records),
        further=scorer.summary(marks) if scorer.summary else {},
        groups=_by_group(counted, scorer.errors),
        tokens={name: float(statistics.median(r.tokens[name] for r in records)) for name in records[0].tokens},
        first_token_seconds=statistics.median(first) if first else None,
        seconds=statistics.median(each.seconds["all"] for each in times) if times else None,
    )


def _figure(records: Sequence[Record], errors: bool) -> Figure:
    value, low, high = interval([(r.got, r.most) for r in records])
    return Figure(value=value, low=low, high=high, questions=len(records), errors=errors)


def _by_group(records: Sequence[Record], errors: bool) -> dict[str, dict[str, Figure]]:
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for kind, name in record.groups.items():
            found[kind][name].append(record)
    return {
        kind: {name: _figure(members, errors) for name, members in sorted(names.items()) if _weighs(members)}
        for kind, names in found.items()
    }


def _weighs(records: Sequence[Record]) -> bool:
    return sum(r.most for r in records) > 0
