"""Charts by matplotlib: read a value, find the largest, compare. What is drawn is known patch by patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from omni.train.data import words
from omni.train.data.example import Example, Picture, Turn
from omni.train.data.page import CODE, COLOURS, FINE, PATCH, Page, Print

PAINTS = ("red", "green", "blue", "yellow", "purple", "orange", "grey", "brown", "pink", "cyan")


def _labels(rng: Random, count: int) -> list[str]:
    if rng.random() < 0.35:
        first = rng.randint(0, 12 - count)
        return [month[:3] for month in words.MONTHS[first : first + count]]
    if rng.random() < 0.2:
        first = rng.randint(2008, 2025)
        return [str(first + i) for i in range(count)]
    return rng.sample(rng.choice((words.FIRST, words.CITIES, words.GOODS)), count)


def _values(rng: Random, count: int) -> tuple[list[int], int]:
    """Different values, and the axis's step; a value is a multiple of half a step."""
    step = rng.choice((2, 10, 20, 50, 100))
    halves = rng.sample(range(1, rng.randint(count + 1, 13)), count)
    return [half * step // 2 for half in halves], step


def _note(page: Page, text: Text, figure: Figure) -> None:
    """Remember where the characters of a drawn text lie."""
    content = text.get_text()
    if not content or not text.get_visible():
        return
    box = text.get_window_extent()
    height = figure.bbox.height
    sizes = np.array([0.5 if char in "ilI.,:'| 1" else 1.0 for char in content])
    middles = (sizes.cumsum() - sizes / 2) / sizes.sum()
    for char, middle in zip(content, middles, strict=True):
        page.points.append((box.x0 + middle * box.width, height - (box.y0 + box.y1) / 2))
        page.chars.append(CODE.get(char, 0))


def _mark_line(page: Page, points: np.ndarray, colour: str) -> None:
    for (x0, y0), (x1, y1) in pairwise(points):
        for t in np.linspace(0, 1, 1 + int(math.hypot(x1 - x0, y1 - y0) / 4)):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            cell = (x // PATCH * PATCH, y // PATCH * PATCH)
            page.mark((cell[0], cell[1], cell[0] + PATCH, cell[1] + PATCH), "line", colour)


def _mark_slice(page: Page, centre: tuple[float, float], radius: float, start: float, stop: float, colour: str) -> None:
    for y in range(PATCH // 2, page.image.height, PATCH):
        for x in range(PATCH // 2, page.image.width, PATCH):
            dx, dy = x - centre[0], centre[1] - y
            if math.hypot(dx, dy) <= radius and (math.degrees(math.atan2(dy, dx)) - start) % 360 < stop - start:
                page.mark((x - 1, y - 1, x + 1, y + 1), "slice", colour)


def chart(
    rng: Random, faces: tuple[tuple[str, str], ...], *, wear: float = 1.0, drawn: bool = True, how: Print = FINE
) -> tuple[Picture, list[tuple[str, str, str]], list[tuple[str, str]]]:
    """A bar, line or pie chart, what can be asked (question, answer, what is seen), and lists of all that it shows."""
    kind = rng.choice(("bar", "bar", "rows", "line", "pie"))
    count = rng.randint(2, 6)
    dpi, sides = 100 * how.charts, (rng.randint(7, 10), rng.randint(5, 8))
    width, height = (32 * round(how.charts * side) for side in sides)
    names, (values, step) = _labels(rng, count), _values(rng, count)
    face = font_manager.FontProperties(fname=rng.choice(faces)[0], size=rng.uniform(7.5, 10))
    figure = Figure(
        figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=rng.choice(("white", "white", "#f4f1ea", "#eef2f7"))
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(figure.get_facecolor())
    one = rng.random() < 0.5 and kind != "pie"
    paints: list[str] = [rng.choice(PAINTS)] * count if one or kind == "line" else rng.sample(PAINTS, count)
    inks = [(red / 255, green / 255, blue / 255) for red, green, blue in (COLOURS[paint] for paint in paints)]
    printed = rng.random() < 0.5
    total = sum(values)
    shares = [round(100 * value / total) for value in values]
    labels: Sequence[Text] = ()
    tellers: Sequence[Text] = ()
    match kind:
        case "bar":
            bars = axes.bar(names, values, color=inks, width=rng.uniform(0.5, 0.85))
            if printed:
                tellers = axes.bar_label(bars, [str(value) for value in values], fontproperties=face)
        case "rows":
            bars = axes.barh(names, values, color=inks, height=rng.uniform(0.5, 0.85))
            if printed:
                tellers = axes.bar_label(bars, [str(value) for value in values], fontproperties=face, padding=2)
        case "line":
            bars = ()
            axes.plot(names, values, color=inks[0], marker=rng.choice(("o", "s", "")), linewidth=rng.uniform(1.5, 3))
            if printed:
                tellers = [
                    axes.annotate(
                        str(value), (index, value), (0, 5), textcoords="offset points", ha="center", fontproperties=face
                    )
                    for index, value in enumerate(values)
                ]
        case _:
            bars = ()
            printed = True
            wedges, labels, tellers = axes.pie(
                values, labels=names, colors=inks, startangle=rng.choice((0, 90)), labeldistance=1.12,
                autopct=lambda share: f"{round(share)}%", pctdistance=0.6, textprops={"fontproperties": face},
            )  # fmt: skip
    if kind != "pie":
        along = axes.xaxis if kind == "rows" else axes.yaxis
        along.set_major_locator(_steps(step))
        (axes.set_xlim if kind == "rows" else axes.set_ylim)(
            0, (max(values) // step + (1 if printed or max(values) % step else 0.3)) * step * 1.04
        )
        axes.grid(visible=True, axis="x" if kind == "rows" else "y", linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_fontproperties(face)
        for side in ("top", "right"):
            axes.spines[side].set_visible(rng.random() < 0.3)
    title = rng.choice(("", "Sales", "Visitors", "Output", "Budget", "Users", "Votes", "Rain"))
    if title:
        axes.set_title(title, fontproperties=face)
    figure.tight_layout(pad=0.5)
    canvas.draw()
    page = Page(width, height)
    page.image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    for text in figure.findobj(Text):
        _note(page, text, figure)
    for bar, paint in zip(bars, paints, strict=False):
        box = bar.get_window_extent()
        page.mark((box.x0, height - box.y1, box.x1, height - box.y0), "bar", paint)
    if kind != "pie":
        written = axes.get_yticklabels() if kind == "rows" else axes.get_xticklabels()
        labels = [label for name in names for label in written if label.get_text() == name]
    order = sorted(values, reverse=True)
    for index, (value, paint) in enumerate(zip(values, paints, strict=True)):
        boxes = [text.get_window_extent() for texts in (labels, tellers) for text in texts[index : index + 1]]
        boxes += [bar.get_window_extent() for bar in bars[index : index + 1]]
        halves = 0 if kind == "pie" else 2 * value // step
        for box in boxes:
            rank, around = order.index(value), (box.x0 - 4, height - box.y1, box.x1 + 4, height - box.y0)
            page.bind(around, 1 + rank, halves, paint, count - rank)
    if kind == "line":
        points = axes.transData.transform(list(enumerate(values)))
        _mark_line(page, np.c_[points[:, 0], height - points[:, 1]], paints[0])
    elif kind == "pie":
        x, y = axes.transData.transform((0, 0))
        radius = axes.transData.transform((1, 0))[0] - x
        for wedge, paint in zip(wedges, paints, strict=True):
            _mark_slice(page, (x, height - y), radius, wedge.theta1, wedge.theta2, paint)
    page.wear(rng, wear * rng.random() * 0.7, drawn)
    picture = page.picture(rng, drawn)
    asked = _asked(rng, kind, names, values, shares, paints, title, one)
    told = [f"{share}%" for share in shares] if kind == "pie" else [str(value) for value in values]
    return picture, asked, _listed(kind, list(zip(names, values, told, paints, strict=True)))


def _steps(step: int):
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(step)


def _listed(kind: str, rows: list[tuple[str, int, str, str]]) -> list[tuple[str, str]]:
    """Questions whose answers go over the whole chart. rows: (name, value, value as told, colour)."""
    if kind == "rows":
        rows = rows[::-1]  # as they are read, from the top
    order = sorted(rows, key=lambda row: -row[1])
    listed = [
        ("List all values.", ", ".join(f"{name} {told}" for name, _, told, _ in rows)),
        ("List all from the largest to the smallest.", ", ".join(name for name, *_ in order)),
    ]
    if kind != "line":
        listed.append(("List all colours.", ", ".join(f"{name} {paint}" for name, _, _, paint in rows)))
    return listed


def _asked(
    rng: Random,
    kind: str,
    names: list[str],
    values: list[int],
    shares: list[int],
    paints: list[str],
    title: str,
    one: bool,
) -> list[tuple[str, str, str]]:
    asked = []
    order = sorted(range(len(names)), key=lambda i: values[i])
    told = [f"{names[i]} {shares[i] if kind == 'pie' else values[i]}" for i in order]
    for index, name in enumerate(names):
        value = f"{shares[index]}%" if kind == "pie" else str(values[index])
        asked.append(
            (
                rng.choice((f"What is the value of {name}?", f"What is {name}?", f"How much is {name}?")),
                value,
                f"{name} {value}",
            )
        )
        if not one and kind != "line":
            asked.append((f"What colour is {name}?", paints[index], f"{name} {paints[index]}"))
    asked += [
        (q, names[order[-1]], told[-1])
        for q in ("Which is the largest?", "Which one is the highest?", "What has the largest value?")
    ]
    asked += [(q, names[order[0]], told[0]) for q in ("Which is the smallest?", "Which one is the lowest?")]
    a, b = rng.sample(range(len(names)), 2)
    asked.append(
        (
            f"Is {names[a]} larger than {names[b]}?",
            "yes" if values[a] > values[b] else "no",
            f"{names[a]} {values[a]}, {names[b]} {values[b]}",
        )
    )
    if title:
        asked.append((rng.choice(("What is the title?", "What is shown?")), title, title))
    return asked


def questions(
    rng: Random,
    faces: tuple[tuple[str, str], ...],
    *,
    turns: int = 4,
    wear: float = 1.0,
    drawn: bool = True,
    how: Print = FINE,
) -> Example:
    """A chart and questions about it."""
    picture, asked, listed = chart(rng, faces, wear=wear, drawn=drawn, how=how)
    chosen = rng.sample(asked, min(turns, len(asked)))
    thinks = rng.random() < 0.15
    return Example(
        skill="chart",
        media=(picture,),
        turns=tuple(Turn(question=q, answer=a, thinking=seen if thinks else "") for q, a, seen in chosen),
        lists=tuple(Turn(question=q, answer=a, skill="lists") for q, a in listed),
    )
