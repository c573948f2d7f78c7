"""Harness: what the plug-ins for lmms-eval and for lm-eval share: a task's settings, and which requests go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

KNOWN = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def settings(values: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """A harness's generation settings as `generate` has them; greedy unless a task samples. longest: tokens, where it
    says nothing.
    """
    found = {name: values[name] for name in KNOWN if values.get(name) is not None}
    found.setdefault("max_new_tokens", values.get("max_gen_toks", longest))
    if values.get("do_sample"):
        found.setdefault("temperature", 1.0)
    if not values.get("do_sample", found.get("temperature", 0.0) > 0):
        found = {name: value for name, value in found.items() if name in ("max_new_tokens", "repetition_penalty")}
    until = values.get("until") or ()
    return {**found, "stop": (until,) if isinstance(until, str) else tuple(until)}


def flag(name: str, value: bool | str) -> bool:
    """A switch as a harness's command line hands it over. Raises ValueError for another word."""
    said = str(value).lower()
    if said not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError(f"omni: {name} {value!r} came; want true or false")
    return said in ("true", "1", "yes")


def together(settings: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """The numbers of requests that have the same settings, at most `size` at a time."""
    order = sorted(range(len(settings)), key=lambda i: repr(settings[i]))
    for _, group in groupby(order, key=lambda i: repr(settings[i])):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))
