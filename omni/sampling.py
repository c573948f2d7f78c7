"""Sampling: logits → a distribution → a token, and the test that a drafted token must pass.

The order is transformers': repetition penalty (CTRL, arXiv 1909.05858), temperature, top-k, top-p (arXiv 1904.09751),
min-p (arXiv 2407.01082). A draft is accepted so that what comes out is distributed as without drafts (speculative
sampling, arXiv 2211.17192, theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen. temperature 0: the likeliest. None leaves a filter out.

    top_k: of the k likeliest; top_p: of the likeliest that together reach p; min_p: of those at least min_p times as
    likely as the likeliest. repetition_penalty: by how much logits of tokens that were read or written are lowered.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        fits = (
            0 <= self.temperature < math.inf
            and (self.top_k is None or self.top_k >= 1)
            and (self.top_p is None or 0 < self.top_p <= 1)
            and (self.min_p is None or 0 <= self.min_p <= 1)
            and self.repetition_penalty > 0
        )
        if not fits:
            raise ValueError(
                f"{self}: want 0 <= temperature < inf, top_k >= 1, 0 < top_p <= 1, 0 <= min_p <= 1, "
                "repetition_penalty > 0"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken always."""
        return self.temperature == 0 or self.top_k == 1


def penalise(
    logits: Float[Tensor, " vocabulary"], seen: Bool[Tensor, " vocabulary"], penalty: float
) -> Float[Tensor, " vocabulary"]:
    """Lower the logits of tokens that were seen: positive ones are divided by the penalty, negative ones multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def distribution(logits: Float[Tensor, " vocabulary"], sampling: Sampling) -> Float[Tensor, " vocabulary"]:
    """Probabilities from which the next token is drawn; one token's is 1 when greedy. The penalty is not applied here.

    Raises ValueError when every token is ruled out.
    """
    best = int(logits.argmax())
    if logits[best] == -torch.inf:
        raise ValueError("sampling: every token is ruled out; a grammar and the banned ids leave nothing to write")
    if sampling.greedy:
        return torch.zeros_like(logits).index_fill_(0, torch.tensor([best], device=logits.device), 1.0)
    scaled = (logits.double() - logits[best].double()) / sampling.temperature  # however small: the best one's stays 0
    logits = scaled.to(logits.dtype)
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = logits.masked_fill(~_nucleus(logits.softmax(-1), sampling.top_p), -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.min_p:
        probabilities = torch.where(probabilities >= sampling.min_p * probabilities.max(), probabilities, 0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


def _nucleus(probabilities: Tensor, p: float) -> Tensor:
    """The likeliest tokens whose predecessors' sum is below p. Only as many are sorted as are needed."""
    count = min(256, len(probabilities))
    values, order = probabilities.topk(count)
    while float(values.sum()) < p and count < len(probabilities):
        count = min(16 * count, len(probabilities))
        values, order = probabilities.topk(count)
    kept = order[values.cumsum(0) - values < p]
    return torch.zeros_like(probabilities, dtype=torch.bool).index_fill_(0, kept, True)


def draw(probabilities: Float[Tensor, " vocabulary"], random: Random) -> int:
    """A token, by one number from `random`: the first whose cumulative probability exceeds it."""
    cumulative = probabilities.double().cumsum(0)
    aim = cumulative.new_tensor(random.random()) * cumulative[-1]
    token = int(torch.searchsorted(cumulative, aim, right=True))
    return token if token < len(probabilities) else int(probabilities.nonzero()[-1])  # aim was rounded up to the sum


@dataclass(frozen=True, slots=True)
class Draft:
    """A token that was guessed, and the distribution it was drawn from (None: it was taken as the likeliest).

    chance: that it is right, as far as whoever guesses wants it to decide whether to go on.
    """

    token: int
    drawn_from: Float[Tensor, " vocabulary"] | None = None
    chance: float = 1.0


def keep_or_redraw(wanted: Float[Tensor, " vocabulary"], draft: Draft, random: Random) -> int:
    """The drafted token, or another: distributed as `wanted`.

    Kept with probability min(1, wanted / drawn from); else drawn from what `wanted` has more.
    """
    drawn_from = draft.drawn_from
    if drawn_from is None:
        drawn_from = torch.zeros_like(wanted)
        drawn_from[draft.token] = 1
    if random.random() * float(drawn_from[draft.token]) < float(wanted[draft.token]):
        return draft.token
    more = (wanted - drawn_from).clamp(min=0)
    return draw(more if bool(more.any()) else wanted, random)
