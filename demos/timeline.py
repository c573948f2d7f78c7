"""Timeline: a film as the model was given it. Its frames with what was pruned dimmed, what was kept of each, what is
said, and the readings so far side by side.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demos.words import jump, seconds_in, shown
from omni.listen import Line
from omni.memory import Memory
from omni.receipt_page import clock_time, outline
from omni.seen import Seen
from omni.shell import size

NEAR = 1.5  # steps around a time of the answer in which frames are marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one reading of a film came to. rate: asked to remove. kept, every: visual tokens. seconds: by stage."""

    rate: float
    kept: int
    every: int
    tokens: int
    seconds: dict[str, float]
    state_bytes: int

    @classmethod
    def of(cls, memory: Memory, rate: float) -> Reading:
        """As a memory has it."""
        masks, spent = memory.seen.kept.values(), memory.seen.memory
        return cls(
            rate=rate,
            kept=sum(int(mask.sum()) for mask in masks),
            every=sum(mask.numel() for mask in masks),
            tokens=memory.tokens,
            seconds={stage: float(spent.get(stage, 0.0)) for stage in ("decode media", "encode", "prefill")},
            state_bytes=memory.nbytes,
        )

    @property
    def all_seconds(self) -> float:
        """Of the whole reading."""
        return sum(self.seconds.values())

    def expected(self, tokens: int) -> float:
        """Seconds that a reading of so many tokens will take: only the backbone's share grows with them."""
        return self.all_seconds + self.seconds["prefill"] * (tokens / max(1, self.tokens) - 1)


def clocks(seen: Seen) -> tuple[list[float], list[float]]:
    """Seconds of the film's frames: true ones, and those that the model was told."""
    details: dict[str, Any] = seen.given.items[0].details if seen.given.items else {}
    return details.get("true_seconds", []), details.get("told_seconds", [])


def true_time(told: float, seen: Seen) -> float:
    """The true second of a time that the model names, whose clock may run slow."""
    true, heard = clocks(seen)
    return float(np.interp(told, heard, true)) if len(heard) > 1 else told


def linked(text: str, seen: Seen) -> str:
    """An answer as HTML: each time a button that moves the film there."""
    parts, at = list[str](), 0
    for start, stop, second in seconds_in(text):
        parts += [shown(text[at:start]), jump(true_time(second, seen), shown(text[start:stop]))]
        at = stop
    return "".join([*parts, shown(text[at:])])


def steps(seen: Seen) -> list[tuple[int, float, float]]:
    """Of each tubelet read so far: the number of its place, the second of its first frame, the share that was kept."""
    true, _ = clocks(seen)
    frames = seen.given.rules.get("video", {}).get("tubelet_frames", 1)
    places = [number for number, place in enumerate(seen.places) if place.kind == "tubelet"]
    found = list[tuple[int, float, float]]()
    for step, number in enumerate(places):
        second = true[min(step * frames, len(true) - 1)] if true else float(step)
        kept = float(seen.kept[number].float().mean()) if number in seen.kept else 1.0
        found.append((number, second, kept))
    return found


def film(seen: Seen, lines: Sequence[Line], length: float, answer: str = "") -> str:
    """The timeline as HTML. lines: what is said. length: of the film in seconds. answer: whose times are marked."""
    every = steps(seen)
    if not every:
        return '<p class="hint">The film strip appears while the film is read.</p>'
    apart = length / max(1, len(every))
    named = [true_time(second, seen) for _, _, second in seconds_in(answer)]
    strip = "".join(
        _frame(seen, number, second, kept, any(abs(second - time) < NEAR * apart for time in named))
        for number, second, kept in every
        if number in seen.looks
    )
    return f'<div class="strip" tabindex="0" aria-label="Film strip">{strip}</div>{_axis(every, lines, length)}'


def _frame(seen: Seen, number: int, second: float, kept: float, named: bool) -> str:
    mask = seen.kept.get(number)
    rows, cols = mask.shape if mask is not None else (1, 1)
    dimmed = f'<path class="pruned" d="{outline(~mask)}"/>' if mask is not None else ""
    picture = base64.b64encode(seen.looks[number]).decode()
    drawn = (
        f'<svg viewBox="0 0 {cols} {rows}" preserveAspectRatio="none" aria-hidden="true"><image width="{cols}" '
        f'height="{rows}" preserveAspectRatio="none" href="data:image/jpeg;base64,{picture}"/>{dimmed}</svg>'
    )
    label = f"<span><b>{clock_time(second)}</b> {kept:.0%} kept</span>"
    return jump(second, drawn + label, "frame named" if named else "frame")


def _axis(every: Sequence[tuple[int, float, float]], lines: Sequence[Line], length: float) -> str:
    """Time from left to right: bars of what was kept, and what is said below."""
    length, ends = max(length, 0.01), [second for _, second, _ in every[1:]]
    bars = "".join(
        f'<rect x="{100 * start / length:.2f}" y="{1 - kept:.3f}" height="{kept:.3f}" '
        f'width="{max(0.2, 100 * (end - start) / length - 0.3):.2f}"/>'
        for (_, start, kept), end in zip(every, [*ends, max(length, every[-1][1])], strict=True)
    )
    spoken = "".join(
        f"<li>{jump(line.start, f'{clock_time(line.start)} – {clock_time(line.end)}')} {shown(line.text)}</li>"
        for line in lines
        if line.text
    )
    heard = "".join(
        f'<i style="left:{100 * line.start / length:.2f}%;width:{100 * (line.end - line.start) / length:.2f}%"></i>'
        for line in lines
        if line.text
    )
    speech = f'<div class="heard">{heard}</div><ul class="speech">{spoken}</ul>' if spoken else ""
    return (
        f'<div class="axis"><svg viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="Share of visual tokens kept over time">{bars}</svg>'
        f"<p><span>0:00</span><span>share of visual tokens kept</span><span>{clock_time(length)}</span></p>"
        f"{speech}</div>"
    )


def readings(made: Sequence[Reading]) -> str:
    """The readings so far as a table: what each rate cost."""
    if not made:
        return ""
    rows = "".join(
        f"<tr><td>{each.rate:.0%}</td><td>{each.kept:,} of {each.every:,}</td><td>{each.tokens:,}</td>"
        f"<td>{each.all_seconds:.2f}</td><td>{size(each.state_bytes)}</td></tr>"
        for each in made
    )
    heads = "".join(f"<th>{head}</th>" for head in ("removed", "visual tokens", "all tokens", "seconds", "state"))
    return f'<table class="figures"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
