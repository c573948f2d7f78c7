"""Plot of a study: a column a panel; accuracy with its 95 % interval above, seconds below: to the first token, or of
the whole answer where the setting changes how it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omni.eval.study import Kind, Measured

AXES: dict[Kind, str] = {
    "evs": "share of a clip's tokens removed",
    "dpi": "dots per inch of a page",
    "pages": "tokens that a prompt may take",
    "thinking": "tokens to think",
    "format": "weights",
}
WHOLE: tuple[Kind, ...] = ("thinking", "format")
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")  # told apart by colour-blind readers
MARKS = "osD^v"


def plot(kind: Kind, measured: Sequence[Measured], out: Path, title: str = "") -> None:
    """Write a PNG or SVG. Raises ValueError where nothing was measured."""
    if not measured:
        raise ValueError("study: nothing was measured, so there is nothing to draw")
    panels = list(dict.fromkeys(each.panel for each in measured))
    figure = Figure(figsize=(1.5 + 4.2 * len(panels), 6.4), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row")
    for column, panel in enumerate(panels):
        shown = [each for each in measured if each.panel == panel]
        _lines(axes[0][column], axes[1][column], shown, kind in WHOLE)
        axes[0][column].set_title(panel, fontsize=10)
        axes[1][column].set_xlabel(AXES[kind])
    axes[0][0].set_ylabel("right answers, 95 % interval")
    axes[1][0].set_ylabel("seconds an answer, median" if kind in WHOLE else "seconds to the first token, median")
    axes[0][0].set_ylim(-0.02, 1.02)
    axes[1][0].set_ylim(bottom=0)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(out, dpi=120)


def _lines(above: Axes, below: Axes, shown: Sequence[Measured], whole: bool) -> None:
    """One line a series, set apart a little so that intervals do not hide one another."""
    names = list(dict.fromkeys(each.series for each in shown))
    places = sorted({each.x for each in shown})
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    first = [each for each in shown if each.series == names[0]]
    for number, name in enumerate(names):
        line = [each for each in shown if each.series == name]
        if line[0].x != first[0].x:
            line.insert(0, first[0])  # where nothing is removed, all ways are one
        shift = (number - (len(names) - 1) / 2) * step * 0.06
        xs = [each.x + shift for each in line]
        spread = [[each.value - each.low for each in line], [each.high - each.value for each in line]]
        look = {"color": COLOURS[number % 5], "marker": MARKS[number % 5], "markersize": 4, "linewidth": 1.3}
        above.errorbar(xs, [each.value for each in line], spread, label=name, capsize=2, elinewidth=0.7, **look)
        below.plot(xs, [each.seconds if whole else each.first_token_seconds for each in line], **look)
    labels = {each.x: each.label for each in shown if each.label}
    below.set_xticks(places, [labels.get(x) or f"{x:g}" for x in places])
    for axis in (above, below):
        axis.grid(axis="y", linewidth=0.4, alpha=0.6)
        axis.spines[["top", "right"]].set_visible(False)
