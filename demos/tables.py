"""Tables: out of an answer, or of a page's own words by where they stand; and as CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from processors.pdf import Word

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "columns": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 8},
        "rows": {"type": "array", "items": {"type": "array", "items": {"type": "string"}, "maxItems": 8}},
    },
    "required": ["columns", "rows"],
    "additionalProperties": False,
}
QUESTION = "Write the table as JSON: its columns, and its rows as lists of texts."
NUMBER = re.compile(r"[-+]?[\d.,\s%€$£]+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """columns: their heads. rows: as many cells each."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, lines: Sequence[Sequence[str]]) -> Table:
        """The first line is the head; short lines are filled up."""
        width = max(map(len, lines))
        head, *rows = [(*line, *[""] * (width - len(line))) for line in lines]
        return cls(columns=head, rows=tuple(rows))

    def to_csv(self) -> str:
        """Comma-separated. A cell that a spreadsheet would run as a formula is kept a text by an apostrophe."""
        held = io.StringIO()
        writer = csv.writer(held)
        writer.writerows([[_inert(cell) for cell in line] for line in (self.columns, *self.rows)])
        return held.getvalue()


def _inert(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not NUMBER.match(cell) else cell


def of_answer(text: str) -> Table | None:
    """A table that an answer holds, in Markdown or in the JSON of `SCHEMA`; None where there is none."""
    try:
        values = json.loads(text)
        lines = [values["columns"], *values["rows"]]
        return Table.of([[str(cell) for cell in line] for line in lines]) if all(lines) else None
    except (ValueError, TypeError, KeyError):
        pass
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.count("|") > 1]
    lines = [[cell.strip() for cell in line] for line in lines]
    lines = [line for line in lines if not all(re.fullmatch(r":?-+:?", cell) for cell in line)]
    return Table.of(lines) if len(lines) > 1 else None


def of_words(words: Sequence[Word]) -> Table | None:
    """The largest table of a page's text layer: lines that follow one another, parted into cells by wide gaps."""
    best: list[list[Cell]] = []
    run: list[list[Cell]] = []
    for line in [*_lines(words), []]:
        if len(line) > 1:
            run.append(line)
            continue
        best, run = max(best, _core(run), key=lambda lines: sum(map(len, lines))), []
    return Table.of(_aligned(best)) if len(best) > 1 else None


def _core(run: list[list[Cell]]) -> list[list[Cell]]:
    """Of lines with cells, those from the first to the last that have the most: pairs around them are no table."""
    most = max(map(len, run), default=0)
    full = [number for number, line in enumerate(run) if len(line) == most]
    return run[full[0] : full[-1] + 1] if full else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A stretch of a line, from left to right in points."""

    left: float
    right: float
    text: str


def _lines(words: Sequence[Word]) -> list[list[Cell]]:
    """Words as lines from the top, each in cells."""
    lines: list[list[Word]] = []
    for word in sorted(words, key=lambda word: (word.box[1] + word.box[3]) / 2):
        middle = (word.box[1] + word.box[3]) / 2
        if lines and lines[-1][0].box[1] <= middle <= lines[-1][0].box[3]:
            lines[-1].append(word)
        else:
            lines.append([word])
    return [_cells(sorted(line, key=lambda word: word.box[0])) for line in lines]


def _cells(line: Sequence[Word]) -> list[Cell]:
    cells: list[Cell] = []
    height = max(word.box[3] - word.box[1] for word in line)
    for word in line:
        left, _, right, _ = word.box
        if cells and left - cells[-1].right < height:
            cells[-1] = Cell(left=cells[-1].left, right=right, text=f"{cells[-1].text} {word.text}")
        else:
            cells.append(Cell(left=left, right=right, text=word.text))
    return cells


def _aligned(lines: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """Cells under the columns of the line that has the most."""
    columns = max(lines, key=len)
    aligned = list[list[str]]()
    for line in lines:
        row = [""] * len(columns)
        for cell in line:
            at = max(range(len(columns)), key=lambda i: _overlap(cell, columns[i]))
            row[at] = f"{row[at]} {cell.text}".strip()
        aligned.append(row)
    return aligned


def _overlap(a: Cell, b: Cell) -> float:
    """Points shared, or how far apart, below zero."""
    return min(a.right, b.right) - max(a.left, b.left)
