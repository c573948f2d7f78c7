"""Features → fewer features: pure functions, each with its num_tokens."""

from token_reduction.spatial import num_tokens, pixel_shuffle
from token_reduction.temporal import (
    changes,
    evs,
    evs_causal,
    evs_of_scores,
    evs_step,
    evs_with_floor,
    num_kept,
    num_kept_per_step,
    random_dropping,
    uniform_dropping,
)

__all__ = [
    "changes",
    "evs",
    "evs_causal",
    "evs_of_scores",
    "evs_step",
    "evs_with_floor",
    "num_kept",
    "num_kept_per_step",
    "num_tokens",
    "pixel_shuffle",
    "random_dropping",
    "uniform_dropping",
]
