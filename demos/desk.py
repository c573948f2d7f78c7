"""Desk: one loaded model that everybody in the demo shares, each in turn.

All answers are written side by side by one engine, in a thread of its own; files are read piece by piece, and the
model is passed on after each piece. So a long video of one user delays the others by a piece, not by the video; what
a user has read stays in that user's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Event, Thread
from time import monotonic
from typing import Any

from omni.answer import Piece, Result, Settings
from omni.engine import Engine, Request
from omni.load import OmniProcessor
from omni.long_video import Progress, read_long
from omni.memory import Memory
from omni.model import OmniModel
from processors.batch import Batch
from processors.chat import Conversation

WRITERS = 16  # answers that may be written side by side; others wait
PATIENCE = 30.0  # seconds that closing waits for the pieces which are worked on
CLOSED = "demo: it is being closed"


class Turn:
    """A lock that serves in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed, self._drawn, self._serving = Condition(), 0, 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._drawn = self._drawn, self._drawn + 1
            self._changed.wait_for(lambda: self._serving == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    def pass_on(self) -> None:
        """Let those who wait go first, then go on; for who holds it."""
        self.__exit__()
        self.__enter__()


@dataclass(slots=True)
class Waiting:
    """Someone who waits for an answer: what was written for them so far, or what went wrong."""

    request: Request
    told: SimpleQueue[Piece | Result | Exception] = field(default_factory=SimpleQueue)


class Desk:
    """The model and its processor. name: of the model, for people."""

    def __init__(self, model: OmniModel, processor: OmniProcessor, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.turn = Turn()
        self._engine = Engine(model, limit=WRITERS)
        self._numbers, self._waiting = count(), dict[int, Waiting]()
        self._work, self._closed = Event(), Event()
        self._threads = set[Thread]()
        self._start(self._write)

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        def run() -> None:
            try:
                work(*given)
            finally:
                self._threads.discard(thread)

        thread = Thread(target=run, daemon=True)
        self._threads.add(thread)
        thread.start()

    def close(self) -> None:
        """Begin no further piece, tell all who wait, and return when nothing is worked on: a process that ends in the
        middle of a piece is aborted. What takes longer than `PATIENCE` is left.
        """
        self._closed.set()
        self._work.set()
        end = monotonic() + PATIENCE
        for thread in list(self._threads):
            if thread.is_alive():  # one that is yet to start finds the desk closed
                thread.join(max(0.0, end - monotonic()))

    @property
    def title(self) -> str:
        """The model's name, without the folders that it lies in."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    @property
    def context(self) -> int:
        """Tokens that the model knows how to keep in mind."""
        return self.model.config.media.context

    def answer(
        self, batch: Batch, settings: Settings, memory: Memory | None = None
    ) -> Generator[Piece | Result, None, None]:
        """Write an answer: its pieces as they come, its result in the end. Left early, it is not written on.

        memory: what was read before; it stays as it is. Raises ValueError for settings that do not fit, and once the
        desk is closed.
        """
        with self.turn:
            if self._closed.is_set():
                raise ValueError(CLOSED)
            number = next(self._numbers)
            prefix = memory.prefix() if memory else None
            waiting = Waiting(self._engine.submit(batch, settings, prefix=prefix, sequence=number))
            self._waiting[number] = waiting
        self._work.set()
        try:
            while True:
                told = waiting.told.get()
                if isinstance(told, Exception):
                    raise told
                yield told
                if isinstance(told, Result):
                    return
        finally:
            if number in self._waiting:
                self._cancel(number)

    def _cancel(self, number: int) -> None:
        with self.turn:
            if waiting := self._waiting.pop(number, None):
                self._engine.cancel(waiting.request)

    def _write(self) -> None:
        """Write for all who wait, a round at a time, until the desk is closed."""
        while self._work.wait():
            with self.turn:
                if self._closed.is_set():
                    self._give_up(ValueError(CLOSED))
                    return
                if not self._engine.busy:
                    self._work.clear()
                    continue
                try:
                    pieces = self._engine.step()
                except Exception as error:  # all who wait must hear of it: nobody else would tell them
                    self._give_up(error)
                    continue
                for piece in pieces:
                    if piece.sequence in self._waiting:
                        self._waiting[piece.sequence].told.put(piece)
                self._tell_ends()

    def _tell_ends(self) -> None:
        for number, waiting in list(self._waiting.items()):
            end = waiting.request.error or waiting.request.result
            if end is not None:
                waiting.told.put(end)
                del self._waiting[number]

    def _give_up(self, error: Exception) -> None:
        self._engine = Engine(self.model, limit=WRITERS)
        for waiting in self._waiting.values():
            waiting.told.put(error)
        self._waiting.clear()

    def read(
        self, messages: Conversation, memory: Memory | None = None, **settings: Any
    ) -> Generator[Progress, None, Memory]:
        """Read files behind what a memory holds, which stays as it is; where that is, piece by piece, then the memory.

        settings: of `omni.long_video.read_long`. Left early, reading ends after the piece. Raises what that raises.
        """
        told: SimpleQueue[Progress | Memory | Exception] = SimpleQueue()
        left = Event()
        self._start(self._read, told, left, messages, memory, settings)
        try:
            while True:
                now = told.get()
                if isinstance(now, Exception):
                    raise now
                if isinstance(now, Memory):
                    return now
                yield now
        finally:
            left.set()

    def _read(
        self,
        told: SimpleQueue[Progress | Memory | Exception],
        left: Event,
        messages: Conversation,
        memory: Memory | None,
        settings: Mapping[str, Any],
    ) -> None:
        def report(progress: Progress) -> None:
            told.put(progress)
            self.turn.pass_on()
            go_on()

        def go_on() -> None:
            if left.is_set():
                raise InterruptedError("nobody waits for this any more")
            if self._closed.is_set():
                raise ValueError(CLOSED)

        try:
            with self.turn:
                go_on()
                own = memory.fork() if memory else None
                told.put(read_long(self.model, self.processor, messages, memory=own, progress=report, **settings))
        except Exception as error:  # told to the one who waits for it
            told.put(error)
