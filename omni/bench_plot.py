"""Plots of benchmarks: panels side by side, of bars (of one part or of stages, one on the other) or of lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")  # told apart by colour-blind readers
MARKS = "osD^v"

Points = Sequence[tuple[int | float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One set of axes. bars: name → part → value; lines: name → points, on doubling axes. across: what x counts."""

    title: str
    bars: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lines: Mapping[str, Points] = field(default_factory=dict)
    across: str = ""


def bars(title: str, values: Mapping[str, float | None]) -> Panel:
    """A panel with one bar for each value that is there."""
    return Panel(title=title, bars={name: {"": value} for name, value in values.items() if value is not None})


def plot(panels: Sequence[Panel], out: Path, title: str = "") -> None:
    """Write a PNG or SVG. Raises ValueError where there is nothing to draw, or matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("bench: matplotlib is not installed; pip install 'omni[eval]', or leave --plot out") from None
    panels = [panel for panel in panels if panel.bars or panel.lines]
    if not panels:
        raise ValueError("bench: nothing was measured, so there is nothing to draw")
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axes, panel) if panel.bars else _lines(axes, panel)
        axes.set_title(panel.title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(out, dpi=120)


def _bars(axes: Any, panel: Panel) -> None:
    """Names from top to bottom, each bar's sum written at its end."""
    names = list(panel.bars)
    parts = list(dict.fromkeys(part for each in panel.bars.values() for part in each))
    ends = [0.0] * len(names)
    for number, part in enumerate(parts):
        values = [panel.bars[name].get(part, 0.0) for name in names]
        axes.barh(names, values, left=ends, color=COLOURS[number % len(COLOURS)], label=part or None)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for place, end in enumerate(ends):
        axes.text(end, place, f" {end:.3g}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    if any(parts):
        axes.legend(fontsize=8, frameon=False)


def _lines(axes: Any, panel: Panel) -> None:
    for number, (name, points) in enumerate(panel.lines.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)], "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=name, **look)
    places = sorted({x for points in panel.lines.values() for x, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.across, fontsize=8)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(fontsize=8, frameon=False)
