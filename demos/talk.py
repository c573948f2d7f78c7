"""Talk: one conversation about files. They are read once; every question goes on from what is remembered."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from demos.desk import Desk
from omni.answer import Piece, Result, Settings
from omni.long_video import Progress
from omni.memory import Memory
from processors.batch import Batch
from processors.plan import Plan
from processors.source import Source

QUESTION = 512  # tokens kept free for questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of an answer. budget: tokens to think, 0: none. most: tokens of thinking and answer together."""

    budget: int = 0
    most: int = 512
    schema: Mapping[str, Any] | None = None

    @property
    def settings(self) -> Settings:
        """For the engine."""
        return Settings(max_new_tokens=self.most, thinking_budget=self.budget, schema=self.schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer and what lies behind it. plan: what the files were to cost, in the order in which they were read.

    state_bytes, state_tokens: of the memory that it went on from, 0 where no file was read. where: the tab.
    """

    result: Result
    plans: tuple[Plan, ...] = ()
    state_bytes: int = 0
    state_tokens: int = 0
    where: str = ""


@dataclass(slots=True)
class Talk:
    """memory: the files read, and the turns before the last of them. turns: messages behind it. stopped: by the user,
    looked at after each piece. busy: while an answer is made.
    """

    memory: Memory | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    plans: tuple[Plan, ...] = ()
    thinks: bool | None = None  # as the files were read
    stopped: bool = False
    busy: bool = False

    def say(
        self, desk: Desk, question: str, parts: Sequence[Mapping[str, Any]], wish: Wish, **reading: Any
    ) -> Generator[Progress | Piece | Told, None, None]:
        """Ask, about further files too: how far reading is, the answer's pieces, then all of it.

        parts: of a message, each a file. reading: settings of `Desk.read`. A talk that fails or is left is as it was
        before, but for files that were read whole. Raises ValueError for what cannot be read or does not fit, and while
        another answer is made.
        """
        if not question.strip():
            raise ValueError("The question is empty. What would you like to know?")
        if self.busy:  # each would forget the other's turn
            raise ValueError("An answer is still being written here. Wait for its end, or stop it.")
        self.busy, self.stopped = True, False
        try:
            yield from self._said(desk, question, parts, wish, reading)
        finally:
            self.busy = False

    def _said(
        self, desk: Desk, question: str, parts: Sequence[Mapping[str, Any]], wish: Wish, reading: Mapping[str, Any]
    ) -> Iterator[Progress | Piece | Told]:
        if parts:
            with closing(self.read(desk, parts, think=wish.budget > 0, **reading)) as pieces:
                for progress in pieces:
                    yield progress
                    if self.stopped:
                        return
        last = {"role": "user", "content": [{"type": "text", "text": question}]}
        batch = self._prompt(desk, [*self.turns, last], wish)
        result: Result | None = None
        written: list[str] = []
        with closing(desk.answer(batch, wish.settings, self.memory)) as pieces:
            for piece in pieces:
                if isinstance(piece, Result):
                    result = piece
                    break
                written.append("" if piece.thinking else piece.text)
                yield piece
                if self.stopped:
                    break
        text = result.text if result else "".join(written).strip()
        if text:
            self.turns = [*self.turns, last, {"role": "assistant", "content": text}]
        if result is not None:
            yield self.told(result)

    def read(
        self, desk: Desk, parts: Sequence[Mapping[str, Any]], *, think: bool = False, **reading: Any
    ) -> Generator[Progress, None, None]:
        """Read files, behind the turns so far; how far that is. Raises ValueError for what cannot be read."""
        messages = [*self.turns, {"role": "user", "content": list(parts)}]
        think = think if self.thinks is None else self.thinks
        reading = {"context": self._room(desk), "reserve": QUESTION, "enable_thinking": think, **reading}
        as_planned = {name: value for name, value in reading.items() if name not in ("evs", "segment")}
        plan = desk.processor.plan(messages[-1:], **as_planned)
        self.memory = yield from desk.read(messages, self.memory, **reading)
        self.turns, self.plans, self.thinks = [], (*self.plans, plan), think

    def told(self, result: Result) -> Told:
        """An answer with what it went on from."""
        memory = self.memory
        return Told(
            result=result,
            plans=self.plans,
            state_bytes=memory.nbytes if memory else 0,
            state_tokens=memory.tokens if memory else 0,
        )

    def _room(self, desk: Desk) -> int:
        return max(1, desk.context - (self.memory.tokens if self.memory else 0))

    def _prompt(self, desk: Desk, messages: list[dict[str, Any]], wish: Wish) -> Batch:
        think, room = wish.budget > 0, self._room(desk)
        if self.memory is None:
            return desk.processor(messages, context=room, enable_thinking=think)
        try:
            return desk.processor.ask(messages, after=self.memory.given, context=room, enable_thinking=think)
        except ValueError:
            if think == self.thinks:
                raise
            raise ValueError(
                "This model is told before the files whether to think. Start anew to change that, or set the thinking "
                "budget back."
            ) from None


def file_part(source: Source, **options: Any) -> dict[str, Any]:
    """A file as a part of a message; its kind is told by its content."""
    return {"type": "file", "path": source, **options}
