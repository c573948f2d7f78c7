"""Item: one question of a benchmark, with its media and its truth; Mark: what an answer to it was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """name: its own within the task. media: parts of a message, before the question. fields: what a prompt may name.

    truth: plain values that the rule understands. options: texts of a choice, in the order of their letters. groups:
    kinds under which results are broken down.
    """

    name: str
    media: tuple[Mapping[str, Any], ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    truth: Any = None
    options: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)

    def question(self, prompt: str) -> str:
        """The prompt with this item's fields in the place of their {names}; {{ and }} are braces.

        Raises ValueError for one that it has not, and for anything but a name.
        """
        made: list[str] = []
        try:
            for text, name, form, conversion in Formatter().parse(prompt):
                made.append(text)
                if name is not None:
                    if form or conversion:
                        raise ValueError(f"more than a name in {{{name}...}}")
                    made.append(self.fields[name])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"spec: the prompt {prompt!r} does not fit ({error}); this task has {', '.join(self.fields)}"
            ) from None
        return "".join(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """extracted: what was read from the answer, None where nothing could be: a failure. got of most: points; or errors
    of how much text. notes: what else a summary needs.
    """

    extracted: str | None
    got: float
    most: float = 1.0
    notes: Mapping[str, Any] = field(default_factory=dict)


FAILED = Mark(extracted=None, got=0.0)


@runtime_checkable
class Table(Protocol):
    """Rows by number: a list, or a table of `datasets`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Lazy:
    """Items made from rows when they are asked for, so that no more than a batch's media are held."""

    def __init__(self, rows: Table, make: Callable[[int, Any], Item]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._make(index, self._rows[index])

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))
