"""Curves of a training's log: the loss of each stage, and the held-out measures, over steps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

OWN = {"stage", "step", "seconds", "norm", "worst_load"}  # of a line, beside losses and measures


def curves(log: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Stage → name → (step, value), in the order of the log. Raises ValueError where the log is missing or empty."""
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(log.read_text().splitlines() if log.is_file() else [], 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise ValueError(f"plot: line {number} of {log} is no JSON; remove it, and draw again") from None
    if not lines:
        raise ValueError(f"plot: {log} holds nothing; train a stage first")
    found: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, value in line.items():
            if name not in OWN:
                found[line["stage"]][name].append((line["step"], value))
    return {stage: dict(names) for stage, names in found.items()}


def plot(log: Path, out: Path) -> None:
    """One row a stage: losses on the left (logarithmic), measures between 0 and 1 on the right. Writes a PNG or SVG."""
    stages = curves(log)
    figure = Figure(figsize=(12, 3.2 * len(stages)), layout="constrained")
    axes = figure.subplots(len(stages), 2, squeeze=False)
    for row, (stage, names) in zip(axes, stages.items(), strict=True):
        measures = {name for name in names if name.startswith(("exact", "held_out", "wer", "right", "pitch"))}
        for axis, chosen in ((row[0], names.keys() - measures), (row[1], measures)):
            for name in sorted(chosen):
                steps, values = zip(*names[name], strict=True)
                axis.plot(steps, values, label=name.removeprefix("exact ").removeprefix("held_out_"), linewidth=1.2)
            axis.set_xlabel("step")
            if chosen:
                axis.legend(fontsize=6, ncols=2)
        row[0].set_yscale("log")
        row[0].set_title(f"{stage}: losses", fontsize=9)
        row[1].set_ylim(0, 1.02)
        row[1].set_title(f"{stage}: measures", fontsize=9)
    figure.savefig(out, dpi=110)
