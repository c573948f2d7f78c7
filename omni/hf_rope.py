"""Rotary positions in a config.json ↔ ours: plain, Llama 3's scaling, YaRN's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omni.attention import RopeConfig
from omni.fields import Fields


def read_rope(f: Fields, theta: float = 10000.0) -> RopeConfig:
    """From `rope_theta` and `rope_scaling`, or `rope_parameters`; `theta` where none is given.

    Raises ValueError for a kind of scaling that is not built.
    """
    given = [f.take(name, default={}, kind=Mapping) for name in ("rope_scaling", "rope_parameters")]
    rope = Fields({**given[0], **given[1]}, f"{f.where}: rope_scaling")
    theta = float(f.take("rope_theta", default=0.0) or rope.take("rope_theta", default=theta))
    rope.used.add("rope_theta")
    kind = rope.take("rope_type", "type", default="default")
    match kind:
        case "default":
            return RopeConfig(theta=theta)
        case "llama3":
            made = RopeConfig(
                theta=theta,
                factor=float(rope.take("factor", kind=float)),
                low=float(rope.take("low_freq_factor", kind=float)),
                high=float(rope.take("high_freq_factor", kind=float)),
                original=rope.take("original_max_position_embeddings"),
            )
        case "yarn":
            made = RopeConfig(
                theta=theta,
                factor=float(rope.take("factor", kind=float)),
                low=float(rope.take("beta_slow", default=1.0)),
                high=float(rope.take("beta_fast", default=32.0)),
                original=rope.take("original_max_position_embeddings"),
                yarn=True,
            )
            if rope.take("truncate", default=True):
                raise ValueError(
                    f"{rope.where}: truncate is true; only YaRN without it is supported (as gpt-oss has it)"
                )
            if not math.isclose(rope.take("attention_factor", default=made.amplitude), made.amplitude):
                raise ValueError(f"{rope.where}: attention_factor; only {made.amplitude:.6g} is supported here")
        case _:
            raise ValueError(f"{f.where}: rope type {kind!r}; known are 'default', 'llama3' and 'yarn'")
    rope.done()
    return made


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """As transformers, vLLM and older configs read it."""
    scaling: dict[str, Any] = {"factor": rope.factor, "original_max_position_embeddings": rope.original}
    if rope.yarn:
        scaling |= {"rope_type": "yarn", "beta_slow": rope.low, "beta_fast": rope.high, "truncate": False}
    else:
        scaling |= {"rope_type": "llama3", "low_freq_factor": rope.low, "high_freq_factor": rope.high}
    return {"rope_theta": rope.theta, "rope_scaling": scaling if rope.original else None}
