"""Interval: how sure a mean over questions is, by drawing the questions again (bootstrap, percentile method)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000
BLOCK = 2**22  # numbers drawn at a time


def interval(marks: Sequence[tuple[float, float]], seed: int = 1, draws: int = DRAWS) -> tuple[float, float, float]:
    """(value, low, high): what was got over what could be got, and its 95 % interval over the questions.

    marks: (got, most) of each; errors over words work alike. The same marks give the same interval. Raises ValueError
    where nothing could be got.
    """
    return difference([(0.0, 1.0)] * len(marks), marks, seed, draws)


def difference(
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    seed: int = 1,
    draws: int = DRAWS,
) -> tuple[float, float, float]:
    """(value, low, high): the second ratio minus the first, over the same questions drawn in pairs."""
    if not after or not sum(most for _, most in after) or not sum(most for _, most in before):
        raise ValueError("interval: no question could be marked; pass at least one")
    table = np.array([[*a, *b] for a, b in zip(before, after, strict=True)])
    rng, count = np.random.default_rng(seed), len(table)
    found = list[float]()
    while len(found) < draws:
        block = min(draws - len(found), max(1, BLOCK // count))
        found += _ratios(table[rng.integers(0, count, (block, count))].sum(1)).tolist()
    found.sort()
    (value,) = _ratios(table.sum(0, keepdims=True)).tolist()
    return value, found[math.floor(0.025 * draws)], found[math.ceil(0.975 * draws) - 1]


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Of (draws, 4) sums; a draw in which nothing could be got counts as 0."""
    most = np.where(sums[:, 1::2] == 0, 1.0, sums[:, 1::2])
    shares = sums[:, ::2] / most
    return shares[:, 1] - shares[:, 0]
