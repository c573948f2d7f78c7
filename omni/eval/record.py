"""Record: one item's answer and what it was worth, as one line of JSON; and a run's file of them.

What differs from run to run (seconds, the time of day) lies in a second file beside it, so that the first one is the
same, byte by byte, whenever a greedy run is repeated, interrupted and resumed or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """spec: the spec's hash; model: the weights' fingerprint; rule: the scorer.

    extracted: what the rule read from the answer, None for a failure. got of most: points, or errors of how much text.
    tokens: prompt, thinking, all written. receipt: the media as they were made (hashes of their bytes, tokens, sizes),
    the hash of the prompt's ids, the seed, what was left out. error: why the item could not be asked.
    """

    spec: str
    model: str
    rule: str
    item: str
    question: str
    truth: Any
    answer: str
    thinking: str
    stopped: str
    extracted: str | None
    got: float
    most: float
    tokens: Mapping[str, int]
    groups: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether nothing could be read from the answer, or the item could not be asked."""
        return self.extracted is None

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """seconds: by stage, of one item. when: the answer was done, UTC."""

    item: str
    seconds: Mapping[str, float]
    when: str

    @property
    def first_token(self) -> float:
        """Seconds to the first token: media decoded, encoded, and the prompt read."""
        return sum(self.seconds.get(stage, 0.0) for stage in ("decode media", "encode", "prefill"))

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def times_path(path: Path) -> Path:
    """Where the seconds of a file of records lie: run.jsonl → run.times.jsonl."""
    return path.with_suffix(".times.jsonl")


def read(path: Path) -> list[Record]:
    """A file's records. Raises ValueError where it is missing, or holds something else, or an item twice."""
    try:
        found = [Record(**values) for values in _lines(path)]
    except (OSError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"eval: {path}: {error}; want what `omni eval run` wrote") from None
    lines: dict[str, int] = {}
    for number, each in enumerate(found, 1):
        if (first := lines.setdefault(each.item, number)) != number:
            raise ValueError(f"eval: {path}: lines {first} and {number} are both of item {each.item}; remove the file")
    return found


def read_times(path: Path) -> list[Times]:
    """The seconds beside a file of records; none where there are none."""
    beside = times_path(path)
    return [Times(**values) for values in _lines(beside)] if beside.is_file() else []


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; one that was cut off ends the file."""
    found = list[dict[str, Any]]()
    with path.open(encoding="utf-8", newline="\n") as file:  # no other character ends a line
        for line in file:
            try:
                value = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                value = None
            if not isinstance(value, dict):
                break
            found.append(value)
    return found


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs from writing records there meanwhile. Raises ValueError where one does."""
    with path.open("a", encoding="utf-8") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"eval: another run is writing {path}; wait for it, or choose another file") from None
        yield


def write(path: Path, records: Iterable[Record], times: Sequence[Times], *, anew: bool = False) -> None:
    """Append both, or begin anew; the seconds first, so that no record is ever without them."""
    mode = "w" if anew else "a"
    for place, lines in ((times_path(path), times), (path, records)):
        with place.open(mode, encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(line.to_line() for line in lines)
