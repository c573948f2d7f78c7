"""What is asked of an answer, and what an answer is: Settings, Piece, Result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from random import SystemRandom
from typing import Any, Literal

from omni.sampling import Sampling

Stopped = Literal["eos", "stop", "length", "grammar", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one answer is to be written.

    seed: of its random numbers (None: a fresh one, which the result names). stop: strings and ids that end the answer,
    themselves not shown (thinking goes on past them). thinking_budget: tokens after which thinking ends at a newline,
    0: no thinking; after `grace` more it is cut (None: a sixteenth of the budget, at least 16). schema, choices: what
    the answer must satisfy. logprobs: keep each token's.
    """

    max_new_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    stop: tuple[str | int, ...] = ()
    thinking_budget: int | None = None
    grace: int | None = None
    logprobs: bool = False
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens is {self.max_new_tokens!r}; want at least 1, a whole number")
        if self.seed is not None and not isinstance(self.seed, Integral):
            raise ValueError(f"generate: the seed is {self.seed!r}; want a whole number, or None for a fresh one")
        wrong = [mark for mark in self.stop if not isinstance(mark, str | Integral)]
        if wrong:
            raise ValueError(f"generate: {wrong[0]!r} came among `stop`; want strings and token ids")
        if "" in self.stop:
            raise ValueError("generate: an empty stop string came; leave it out")

    def seeded(self, sequence: int = 0) -> Settings:
        """With a seed of its own: the caller's plus the number of the sequence, or a fresh one."""
        return replace(self, seed=SystemRandom().getrandbits(48) if self.seed is None else self.seed + sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of text as it comes. sequence: which of the batch it belongs to."""

    text: str
    thinking: bool = False
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer.

    tokens: all ids written, thinking, marks and the end included; logprobs: of each under the model's distribution,
    banned ids left out (None: not asked for). thinking_tokens: without the marks. rounds: passes of the backbone that
    wrote them. seconds: by stage (encode, prefill, decode, and all from the request on). settings: with the seed used.
    """

    text: str
    thinking: str
    tokens: tuple[int, ...]
    stopped: Stopped
    prompt_tokens: int
    thinking_tokens: int
    rounds: int
    seconds: Mapping[str, float]
    settings: Settings
    logprobs: tuple[float, ...] | None = None
    receipt: Any = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the receipt."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["receipt"]
        return values | {"settings": asdict(self.settings), "seconds": dict(self.seconds)}
