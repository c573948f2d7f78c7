"""Speculation: the multi-token head drafts a few tokens, one pass of the backbone checks them all.

Drafting applies the head again and again to its own output (Nemotron 3 Super, arXiv 2604.12374, section 2). Whatever
it drafts, what is written is distributed as without it (`sampling.keep_or_redraw`), and equals it when greedy. Drafts
that fail are taken back along the trail that a short read leaves (`State.rewind`): restoring a snapshot instead would
cost a second pass over the accepted ones, as much time as a step without drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from omni.language import LanguageModel
from omni.mamba import SHORT
from omni.ops import Lengths
from omni.sampling import Draft
from omni.state import State

LONGEST = SHORT - 1  # a draft and the token before it make one short read


@dataclass(slots=True)
class Drafter:
    """The multi-token head's own memory of some sequences.

    last: of each sequence read by `follow`, the hidden state whose next token is not known yet.
    """

    state: State
    last: Float[Tensor, "sequences width"] | None = None

    @classmethod
    def new(cls, model: LanguageModel) -> Drafter:
        """Nothing read yet, one sequence. Raises ValueError when the model has no such head."""
        if model.mtp is None:
            raise ValueError("speculate: this model has no multi-token head; leave out `draft`")
        return cls(model.mtp.new_state())

    @classmethod
    def join(cls, drafters: Sequence[Drafter]) -> Drafter:
        """Side by side; the parts must not be used afterwards."""
        return cls(State.join([drafter.state for drafter in drafters]))

    def take(self, sequences: Sequence[int]) -> Drafter:
        """Just these; the whole must not be used afterwards."""
        return Drafter(self.state.take(sequences))

    def fork(self) -> Drafter:
        """A copy that goes its own way."""
        return Drafter(self.state.clone(), self.last)

    def follow(
        self, model: LanguageModel, embeddings: Float[Tensor, "tokens width"], hidden: Float[Tensor, "tokens width"]
    ) -> None:
        """Read along with a prompt: each hidden state with the token after it."""
        assert model.mtp is not None
        if self.last is None:
            following, before = embeddings[1:], hidden[:-1]
        else:
            following, before = embeddings, torch.cat((self.last, hidden[:-1]))
        if len(following):
            model.mtp(following, before, (len(following),), self.state)
        self.last = hidden[-1:]

    def draft(
        self,
        model: LanguageModel,
        tokens: list[int],
        hidden: Float[Tensor, "tokens width"],
        lengths: Lengths,
        depth: Depth,
        most: int,
        choose: Callable[[Float[Tensor, "sequences vocabulary"]], list[Draft]],
    ) -> list[list[Draft]]:
        """Draft at most `most` tokens for each sequence, one list a step; fewer where their chances are too low.

        tokens, hidden, lengths: each sequence's tokens since the last draft, packed, and the hidden states before
        them. They are remembered, the drafts are not.
        """
        assert model.mtp is not None
        drafts, chances = list[list[Draft]](), [1.0] * len(lengths)
        read = model.mtp(model.look_up(torch.tensor(tokens)), hidden, lengths, self.state)
        last = torch.cat([rows[-1:] for rows in read.split(lengths)])
        mark = self.state.snapshot()
        while True:
            chosen = choose(model.score(last))
            chances = [chance * draft.chance for chance, draft in zip(chances, chosen, strict=True)]
            right = sum(chances) / len(chances)
            if not depth.worth_checking(right):
                if not drafts:
                    depth.learn(1, 0)  # it has cost time too
                break
            drafts.append(chosen)
            if len(drafts) == most or not depth.worth_going_on(right):
                break
            following = model.look_up(torch.tensor([draft.token for draft in chosen]))
            last = model.mtp(following, last, (1,) * len(lengths), self.state)
        self.state.restore(mark)
        return drafts


@dataclass(slots=True)
class Depth:
    """How many tokens to draft: a number, or "auto": as long as the tokens that a draft brings are worth its time, by
    what was accepted so far and by the head's own certainty.

    cost: of drafting a token, and row: of checking it, in units of a pass of the backbone over one token. No clock
    decides, so a run can be repeated.
    """

    wanted: int | Literal["auto"] | None
    cost: float = 0.15
    row: float = 0.2  # measured on a CPU, where operators count more than bytes
    rates: list[float] = field(default_factory=lambda: [0.7])  # of places that were tried; others are like the last

    def __post_init__(self) -> None:
        number = self.wanted if isinstance(self.wanted, int) else -1
        if self.wanted not in ("auto", None) and not 0 <= number <= LONGEST:
            raise ValueError(f"speculate: a draft of {self.wanted!r} tokens; want 0 to {LONGEST}, 'auto' or None")

    @classmethod
    def of(cls, wanted: int | Literal["auto"] | None, model: LanguageModel) -> Depth:
        """For this model, whose head has so many of the backbone's layers. Raises ValueError where it has none."""
        depth = cls(wanted)
        if depth.any:
            head = Drafter.new(model)
            depth.cost = len(head.state.layers) / len(model.config.backbone.blocks)
        return depth

    @property
    def any(self) -> bool:
        """Whether drafts may be asked for."""
        return self.wanted not in (0, None)

    def __int__(self) -> int:
        if self.wanted != "auto":
            return self.wanted or 0
        best, best_speed, tokens, chance = 0, 1.0, 1.0, 1.0
        for depth in range(1, LONGEST + 1):
            chance *= self.rates[min(depth, len(self.rates)) - 1]
            tokens += chance
            speed = tokens / (1 + depth * (self.cost + self.row))
            if speed > best_speed:
                best, best_speed = depth, speed
        return best

    def worth_checking(self, chance: float) -> bool:
        """Whether tokens that are right with this chance, as the head says, are worth a row each."""
        return self.wanted != "auto" or chance >= self.row

    def worth_going_on(self, chance: float) -> bool:
        """Whether to draft one more behind tokens that are right with this chance."""
        return self.wanted != "auto" or chance >= self.cost + self.row

    def learn(self, drafted: int, accepted: int) -> None:
        """Remember how far a draft went: the rate of acceptance at each place, given that those before were. Without
        drafts hope grows, so that one is tried again.
        """
        for place in range(min(accepted + 1, drafted)):
            if place == len(self.rates):
                self.rates.append(self.rates[-1])
            self.rates[place] += 0.1 * ((place < accepted) - self.rates[place])
        if not drafted:
            self.rates[0] += 0.01 * (0.5 - self.rates[0])
