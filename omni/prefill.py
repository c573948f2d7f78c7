"""Prefill: a prompt is read cell by cell on a fixed grid of positions, at the activation memory of one cell.

Where a cell ends depends on the position alone, so a prompt that comes in any pieces (a recording first and a question
an hour later, a video by its stretches) passes through the same matrix products as one that comes whole, and leaves
the same state bit for bit. What lies behind the last line of the grid stays unread until the prompt is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.language import LanguageModel
from omni.seen import Seen
from omni.speculate import Drafter
from omni.splice import Spliced
from omni.state import State
from processors.batch import Batch

CELL = 256  # tokens


@dataclass(slots=True)
class Prefix:
    """One sequence on its way in.

    state: at the last line of the grid. tokens: all ids so far, read or not. unread: embeddings behind the line.
    drafter: what the multi-token head has read of it (None: nobody will draft). seen: what it was made of.
    spent: seconds by stage that its reading took of the answer's own time.
    """

    state: State
    tokens: Int[Tensor, " tokens"]
    unread: Float[Tensor, "unread width"]
    drafter: Drafter | None = None
    seen: Seen = field(default_factory=Seen)
    spent: Mapping[str, float] = field(default_factory=dict)

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
        """Read one cell, if more than one is there; whether one was read."""
        if len(self.unread) <= CELL:
            return False
        self._read(model, CELL)
        return True

    def finish(self, model: LanguageModel) -> Float[Tensor, "1 width"]:
        """Read all that is left; the last token's hidden state, from which the first new token is chosen.

        The state is then off the grid: fork before, to go on from here with other text.
        """
        if not len(self.unread):
            raise ValueError("prefill: no token is unread; append the question's")
        while self.advance(model):
            pass
        return self._read(model, len(self.unread))[-1:]

    def fork(self) -> Prefix:
        """A copy that goes its own way."""
        drafter = self.drafter and self.drafter.fork()
        return Prefix(self.state.clone(), self.tokens, self.unread, drafter, self.seen, self.spent)

    def _read(self, model: LanguageModel, count: int) -> Tensor:
        embeddings, self.unread = self.unread[:count], self.unread[count:]
        hidden = model.read(embeddings, (count,), self.state)
        if self.drafter is not None:
            self.drafter.follow(model, embeddings, hidden)
        return hidden
