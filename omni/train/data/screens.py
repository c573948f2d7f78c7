"""Screens: windows with buttons, fields and icons; where to click, as a share of the picture's width and height."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from omni.train.data import words
from omni.train.data.clips import FORMS, draw_form
from omni.train.data.example import Example, Picture, Turn
from omni.train.data.page import COLOURS, Ink, Number, Page

BUTTONS = """Save Open Close Cancel Send Print Share Edit Copy Paste Delete Search Start Stop Next Back Help Login
Apply Reset Export Import Refresh Submit Accept Decline Upload Download Add Remove Play Pause""".split()
PAINTS = ("red", "green", "blue", "yellow", "purple", "orange", "grey", "pink", "cyan")


def _point(page: Page, box: tuple[float, float, float, float]) -> str:
    x = (box[0] + box[2]) / 2 / page.image.width
    y = (box[1] + box[3]) / 2 / page.image.height
    return f"{x:.2f}, {y:.2f}"


def screen(
    rng: Random, faces: tuple[tuple[str, str], ...], *, wear: float = 0.3, drawn: bool = True
) -> tuple[Picture, list[tuple[str, str, tuple[float, float, float, float] | None]]]:
    """A window; what can be asked: (question, answer, the box in which a click is right, as shares; None: no click)."""
    width, height = 32 * rng.randint(7, 11), 32 * rng.randint(5, 9)
    dark = rng.random() < 0.25
    grey = rng.randint(30, 60) if dark else rng.randint(225, 255)
    back: Ink = (grey, grey, grey)
    ink: Ink = (235, 235, 235) if dark else (20, 20, 20)
    page = Page(width, height, back)
    page.draw = ImageDraw.Draw(page.image)
    face, size = rng.choice(faces)[0], rng.randint(11, 15)
    asked: list[tuple[str, str, tuple[float, float, float, float] | None]] = []
    bar = size + rng.randint(6, 12)
    page.draw.rectangle(
        (0, 0, width, bar), COLOURS[rng.choice(PAINTS)] if rng.random() < 0.5 else tuple(max(0, c - 25) for c in back)
    )
    title = rng.choice(words.TOPICS + words.NOUNS).capitalize()
    page.text(8, bar / 2, title, face, size, ink)
    asked.append(("What is the title of the window?", title, None))
    taken = [(0.0, 0.0, float(width), float(bar + 4))]

    def place(w: Number, h: Number) -> tuple[float, float, float, float] | None:
        for _ in range(40):
            x, y = rng.uniform(4, max(5, width - w - 4)), rng.uniform(bar + 4, max(bar + 5, height - h - 4))
            box = (x, y, x + w, y + h)
            free = all(box[2] < t[0] - 4 or box[0] > t[2] + 4 or box[3] < t[1] - 4 or box[1] > t[3] + 4 for t in taken)
            if free and box[2] < width - 2 and box[3] < height - 2:
                taken.append(box)
                return box
        return None

    def remember(question: str, box: tuple[float, float, float, float]) -> None:
        share = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        asked.append((question, _point(page, box), share))

    for name in rng.sample(BUTTONS, rng.randint(2, 6)):
        length = page.width_of(name, face, size)
        box = place(length + rng.randint(12, 24), size + rng.randint(8, 14))
        if box is None:
            continue
        paint = rng.choice(PAINTS)
        page.draw.rounded_rectangle(box, rng.choice((0, 4, 8)), COLOURS[paint] if rng.random() < 0.6 else None, ink)
        page.mark(box, "button", paint)
        page.text((box[0] + box[2] - length) / 2, (box[1] + box[3]) / 2, name, face, size, ink)
        remember(
            rng.choice((f"Where is the {name} button?", f"Where do I click to {name.lower()}?", f"Click {name}.")), box
        )
    for key in rng.sample(words.KEYS, rng.randint(0, 2)):
        length = page.width_of(key, face, size)
        box = place(length + rng.randint(50, 80), size + 10)
        if box is None:
            continue
        page.text(box[0], (box[1] + box[3]) / 2, key, face, size, ink)
        inner = (box[0] + length + 6, box[1], box[2], box[3])
        page.draw.rectangle(inner, None if dark else (255, 255, 255), ink)
        page.mark(inner, "field", "white")
        remember(f"Where is the {key} field?", inner)
    for form in rng.sample(FORMS, rng.randint(0, 2)):
        r = rng.uniform(9, 14)
        box = place(2 * r, 2 * r)
        if box is None:
            continue
        paint = rng.choice(PAINTS)
        draw_form(page.draw, form, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, r, COLOURS[paint])
        page.mark(box, form, paint)
        remember(rng.choice((f"Where is the {form}?", f"Where is the {paint} {form}?")), box)
    page.wear(rng, 0.0 if rng.random() < 0.5 else wear * 0.4, drawn)
    return page.picture(rng, drawn), asked


def questions(rng: Random, faces: tuple[tuple[str, str], ...], *, turns: int = 4, drawn: bool = True) -> Example:
    """A screen and where its parts are."""
    picture, asked = screen(rng, faces, drawn=drawn)
    chosen = rng.sample(asked, min(turns, len(asked)))
    made = tuple(Turn(question=q, answer=a, box=box) for q, a, box in chosen)
    return Example(skill="screen", media=(picture,), turns=made)
