"""Thinking: told apart from the answer in what a model writes, and kept within a hard budget.

After `budget` thinking tokens it ends at the next newline; after budget + grace it is cut (model card of Nemotron 3
Nano: 16384 + 1024). A budget of 0 means no thinking. Whatever the budget, a share of the tokens is left to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omni.codec import TextStream

Phase = Literal["before", "open", "closed"]  # nothing written yet, thinking, answering

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """soft: tokens after which thinking ends at a newline (None: whenever it likes). hard: after which it is cut."""

    soft: int | None
    hard: int

    @classmethod
    def of(cls, budget: int | None, grace: int | None, max_new_tokens: int) -> Budget:
        """grace None: a sixteenth of the budget, at least 16. A quarter of all tokens (2 to 256) stays for the answer
        and the mark before it. Raises ValueError for negative numbers.
        """
        if (budget is not None and budget < 0) or (grace is not None and grace < 0):
            raise ValueError(
                f"generate: thinking_budget {budget}, grace {grace}; want numbers from 0 on (0: no thinking), or None"
            )
        room = max(0, max_new_tokens - max(2, min(256, max_new_tokens // 4)))
        if budget is None:
            return cls(soft=None, hard=room)
        if budget == 0:
            return cls(soft=0, hard=0)
        return cls(soft=budget, hard=min(room, budget + (max(16, budget // 16) if grace is None else grace)))

    def spent(self, tokens: int, newline: bool) -> bool:
        """Whether thinking ends now, after so many tokens, the last of which wrote a newline or not."""
        return tokens >= self.hard or (self.soft is not None and tokens >= self.soft and newline)


class Split:
    """Text as it is written: first thinking (if there is any), then the answer.

    prompt: the end of the prompt's text, which may have opened or closed thinking already. stop: strings that end the
    answer.
    """

    def __init__(self, prompt: str, stop: Sequence[str] = ()) -> None:
        end = prompt.rstrip()
        self.phase: Phase = "closed" if end.endswith(CLOSE) else "open" if end.endswith(OPEN) else "before"
        self.thought = TextStream((CLOSE,), lead=True, trail=True)
        self.answer = TextStream(stop)
        self.has_thought = self.phase == "open"
        self._stop = tuple(stop)
        self._beginning = ""  # which may turn out to be the mark that opens thinking

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Take in what was written; what can be shown now, and whether it is thinking."""
        shown: list[tuple[str, bool]] = []
        if self.phase == "before":
            self._beginning += text
            begins = self._beginning.lstrip()
            if OPEN.startswith(begins) and begins != OPEN:
                return []
            text = begins.removeprefix(OPEN) if begins.startswith(OPEN) else self._beginning
            self.phase = "open" if begins.startswith(OPEN) else "closed"
            self.has_thought, self._beginning = self.phase == "open", ""
        if self.phase == "open":
            shown.append((self.thought.feed(text), True))
            if self.thought.hit is None:
                return shown
            self.phase, self.answer, text = "closed", TextStream(self._stop, lead=True), self.thought.rest
        return [*shown, (self.answer.feed(text), False)]

    @property
    def blank(self) -> bool:
        """Whether nothing of an answer was written yet."""
        return not self._beginning.strip() and self.answer.blank

    def finish(self) -> list[tuple[str, bool]]:
        """Nothing more comes: what was held back."""
        if self.phase == "open":
            return [(self.thought.finish(), True)]
        return [(self.answer.feed(self._beginning) + self.answer.finish(), False)]
