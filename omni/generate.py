"""Generate: a batch → its answers, at once or piece by piece; a thin loop around the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal

from omni.answer import Piece, Result, Settings
from omni.engine import Engine, Request
from omni.language import LanguageModel
from omni.memory import Memory
from processors.batch import Batch


class Stream(Iterator[Piece]):
    """Pieces of text as they come, of all sequences of a batch; `result` in the end."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._ready: deque[Piece] = deque()
        self._failed: list[Request] = []

    def __next__(self) -> Piece:
        while not self._ready:
            if not self._engine.busy:
                raise StopIteration
            self._step()
        return self._ready.popleft()

    def _step(self) -> None:
        """Raises what ended a sequence, once; the others can be gone on with."""
        self._ready.extend(self._engine.step())
        for request in self._requests:
            if request.error is not None and request not in self._failed:
                self._failed.append(request)
                raise request.error

    @property
    def results(self) -> list[Result]:
        """The answers, in the batch's order; what is still to be written is written first."""
        while self._engine.busy:
            self._step()
        return [request.result for request in self._requests if request.result]

    @property
    def result(self) -> Result | list[Result]:
        """The answer, or all of them for a batch of many."""
        results = self.results
        return results[0] if len(results) == 1 else results


def generate(
    model: LanguageModel,
    batch: Batch,
    settings: Settings,
    *,
    memory: Memory | None = None,
    draft: int | Literal["auto"] | None = None,
) -> Stream:
    """Begin to write the answers to a batch; nothing is computed before the stream is asked.

    memory: what was read before each sequence of the batch; it stays as it is. Sequence i draws from seed + i. Raises
    ValueError for a batch that was made to follow something else.
    """
    if memory:
        for each in batch:
            memory.check(each)
    engine = Engine(model, draft)
    requests = [
        engine.submit(each, settings.seeded(i), prefix=memory.prefix() if memory else None, sequence=i)
        for i, each in enumerate(batch)
    ]
    return Stream(engine, requests)
