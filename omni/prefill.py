"""Prefill: a prompt is read on a fixed grid of positions, at the activation memory of one stretch between two lines.

Where a read ends depends on the position and the prompt's length alone, so a prompt that comes in any pieces (a
recording first and a question an hour later, a video by its stretches) passes through the same matrix products as one
that comes whole, and leaves the same state bit for bit. From line to line it is read at once: a mixture's experts want
many rows. What stands behind the last line is read in cells, which a memory keeps for the next question, and which the
prompt's growth over the next line takes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.language import LanguageModel
from omni.seen import Seen
from omni.speculate import Drafter
from omni.splice import Spliced
from omni.state import Snapshot, State
from processors.batch import Batch

LINE = 1024  # tokens from one line to the next
CELL = 256  # of them, behind the last line


@dataclass(frozen=True, slots=True)
class Line:
    """The last line, to go back to. drafter: where it stood, if there was one."""

    state: Snapshot
    drafter: tuple[Snapshot, Tensor | None] | None


@dataclass(slots=True)
class Prefix:
    """One sequence on its way in.

    state: at the last line of the grid, or some cells ahead of it. tokens: all ids so far, read or not. unread:
    embeddings behind the line, of which the first `ahead` are read in cells. drafter: what the multi-token head has
    read of it (None: nobody will draft). seen: what it was made of. spent: seconds by stage that its reading took of
    the answer's own time.
    """

    state: State
    tokens: Int[Tensor, " tokens"]
    unread: Float[Tensor, "unread width"]
    drafter: Drafter | None = None
    seen: Seen = field(default_factory=Seen)
    spent: Mapping[str, float] = field(default_factory=dict)
    ahead: int = field(init=False, default=0)
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        self._draw()

    @classmethod
    def new(cls, model: LanguageModel, draft: bool = False) -> Prefix:
        """Nothing read yet. draft: the multi-token head shall read along."""
        nothing = torch.zeros(0, dtype=torch.long)
        return cls(model.new_state(), nothing, model.look_up(nothing), Drafter.new(model) if draft else None)

    def append(self, batch: Batch, spliced: Spliced) -> None:
        """What follows, a batch of one sequence as the model embedded it; nothing is read yet."""
        self.tokens = torch.cat((self.tokens, spliced.tokens.cpu()))
        self.unread = torch.cat((self.unread, spliced.embeddings))
        self.seen = self.seen.after(batch, spliced)

    def advance(self, model: LanguageModel) -> bool:
        """Read up to the next line, if more than that is there; whether it was read."""
        if len(self.unread) <= LINE:
            return False
        self._go_back(model)
        self._read(model, self.unread[:LINE])
        self.unread, self.ahead = self.unread[LINE:], 0
        self._draw()
        return True

    @property
    def waiting(self) -> bool:
        """Whether there is something for `settle` to read."""
        return len(self.unread) > min(LINE, self.ahead + CELL)

    def settle(self, model: LanguageModel) -> None:
        """Read all but what the last cell may hold, so that whatever follows has little to wait for."""
        while self.advance(model):
            pass
        while self.waiting:
            self._read(model, self.unread[self.ahead : self.ahead + CELL])

    def finish(self, model: LanguageModel) -> Float[Tensor, "1 width"]:
        """Read all that is left; the last token's hidden state, from which the first new token is chosen.

        The state is then off the grid: fork before, to go on from here with other text.
        """
        if len(self.unread) == self.ahead:
            raise ValueError("prefill: no token is unread; append the question's")
        while self.advance(model):
            pass
        if len(self.unread) == LINE:  # a line's end is worth reading at once, what was settled included
            self._go_back(model)
        else:
            self.settle(model)
        return self._read(model, self.unread[self.ahead :])[-1:]

    def hand_over(self) -> None:
        """The state is another's now: what is left tells what was read."""
        self.state, self.drafter = State((), ()), None
        self.unread, self.ahead = self.unread[:0].clone(), 0
        self._draw()

    def forget(self, model: LanguageModel, first: int, stop: int) -> None:
        """Let go of the keys and values of some tokens that stand before the line (`State.forget`)."""
        self._go_back(model)
        self.state.forget(first, stop)
        self._draw()

    def fork(self) -> Prefix:
        """A copy that goes its own way."""
        drafter = self.drafter and self.drafter.fork()
        fork = Prefix(self.state.clone(), self.tokens, self.unread, drafter, self.seen, self.spent)
        fork.line, fork.ahead = self.line, self.ahead
        return fork

    @contextmanager
    def all_or_nothing(self, model: LanguageModel) -> Iterator[Prefix]:
        """Undo what is appended and read inside where anything is raised, Ctrl-C included; cells are read again."""
        tokens, unread, seen, line = self.tokens, self.unread, self.seen, self.line
        try:
            yield self
        except BaseException:
            self.tokens, self.unread, self.seen, self.line = tokens, unread, seen, line
            self._go_back(model)
            raise

    def _draw(self) -> None:
        """A line, here."""
        drafter = self.drafter and (self.drafter.state.snapshot(), self.drafter.last)
        self.line = Line(self.state.snapshot(), drafter)

    def _go_back(self, model: LanguageModel) -> None:
        """To the line."""
        self.state.restore(self.line.state)
        self.ahead = 0
        if self.drafter is not None:
            if self.line.drafter is None:
                self.drafter = Drafter.new(model)  # it came behind the line
            else:
                mark, self.drafter.last = self.line.drafter
                self.drafter.state.restore(mark)

    def _read(self, model: LanguageModel, embeddings: Tensor) -> Tensor:
        hidden = model.read(embeddings, (len(embeddings),), self.state)
        if self.drafter is not None:
            self.drafter.follow(model, embeddings, hidden)
        self.ahead += len(embeddings)
        return hidden
