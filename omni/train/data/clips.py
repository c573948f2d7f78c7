"""Clips of moving and changing shapes: what, how many, which way, in which order, at what time; with camera noise.

Each clip has a small script (who is there, how it moves, what happens when) from which both frames and answers come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from omni.train.data import sounds
from omni.train.data.example import Example, Film, Recording, Turn
from omni.train.data.page import COLOURS, FIELDS, PATCH, Page, grain
from omni.train.data.sounds import Voice
from processors.video import training_times

FORMS = ("circle", "square", "triangle", "star", "cross", "ring")
PAINTS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZES = ((128, 128), (160, 96), (96, 160))  # width, height: 64 or 60 patches, as the clip rule gives them


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A shape: where it starts (px), how it moves (px a frame), which colours it has from which frame, when it is
    there (frames first to last, last excluded)."""

    form: str
    radius: float
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0
    paints: tuple[tuple[int, str], ...]
    first: int = 0
    last: int = 10**6

    def paint(self, frame: int) -> str:
        """Its colour in a frame."""
        return [name for start, name in self.paints if start <= frame][-1]

    def at(self, frame: int, ox: float = 0.0, oy: float = 0.0) -> tuple[float, float]:
        """Where its middle is in a frame, under a camera moved by (ox, oy)."""
        moved = frame - self.first
        return self.x + self.dx * moved + ox, self.y + self.dy * moved + oy

    def way(self) -> str | None:
        """The direction it moves in, None where it stands."""
        for name, (x, y) in WAYS.items():
            if self.dx * x + self.dy * y > 0:
                return name
        return None


def polygon(form: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corners of a form around its middle."""
    match form:
        case "square":
            s = r * 0.86
            return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
        case "triangle":
            return [(x, y - r), (x + r * 0.95, y + r * 0.8), (x - r * 0.95, y + r * 0.8)]
        case "star":
            angles = [(math.pi * i / 5 - math.pi / 2, r if i % 2 == 0 else r * 0.42) for i in range(10)]
            return [(x + math.cos(a) * q, y + math.sin(a) * q) for a, q in angles]
        case _:  # cross
            a, b = r, r * 0.36
            plus = [
                (-b, -a),
                (b, -a),
                (b, -b),
                (a, -b),
                (a, b),
                (b, b),
                (b, a),
                (-b, a),
                (-b, b),
                (-a, b),
                (-a, -b),
                (-b, -b),
            ]
            return [(x + u, y + v) for u, v in plus]


def draw_form(draw: ImageDraw.ImageDraw, form: str, x: float, y: float, r: float, ink: tuple[int, ...]) -> None:
    """Paint a form; a ring is a circle's outline."""
    if form in ("circle", "ring"):
        box = (x - r, y - r, x + r, y + r)
        if form == "circle":
            draw.ellipse(box, ink)
        else:
            draw.ellipse(box, None, ink, width=max(3, round(r * 0.36)))
        return
    draw.polygon(polygon(form, x, y, r), ink)


def film(actors: list[Actor], times: tuple[float, ...], size: tuple[int, int], rng: Random, drawn: bool = True) -> Film:
    """Play a script: a frame at each time. drawn: False leaves the pixels out, for who does not look at them."""
    count = len(times)
    noise = np.random.default_rng(rng.getrandbits(32))
    level = rng.choice((rng.randint(15, 60), rng.randint(190, 250), rng.randint(90, 140)))
    backdrop = np.full((size[1], size[0], 3), level, np.float32) + noise.normal(0, 6, 3)
    if rng.random() < 0.5:
        small = noise.normal(0, rng.uniform(2, 14), (size[1] // 16, size[0] // 16)).astype(np.float32)
        backdrop += np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))[..., None]
    still = Image.fromarray(backdrop.clip(0, 255).astype(np.uint8))
    spread, shake, drift = rng.uniform(0, 9), rng.choice((0, 0, 1.2)), rng.uniform(-0.012, 0.012)
    soft = rng.random() < 0.4
    frames, fields = [], []
    for index in range(count):
        scene = Page(*size)
        shown = [actor for actor in actors if actor.first <= index < actor.last]
        ox, oy = rng.gauss(0, shake), rng.gauss(0, shake)
        for actor in shown:
            x, y = actor.at(index, ox, oy)
            reach = max(actor.radius * 0.8, PATCH / 2)
            scene.mark((x - reach, y - reach, x + reach, y + reach), actor.form, actor.paint(index))
        fields.append(scene.fields())
        if not drawn:
            continue
        big = still.resize((size[0] * 2, size[1] * 2), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(big)
        for actor in shown:
            x, y = actor.at(index, ox, oy)
            draw_form(pen, actor.form, 2 * x, 2 * y, 2 * actor.radius, COLOURS[actor.paint(index)])
        picture = big.resize(size, Image.Resampling.BOX)
        picture = picture.filter(ImageFilter.GaussianBlur(0.7)) if soft else picture
        pixels = np.asarray(picture, np.float32) * (1 + drift * index)
        pixels += grain(rng, spread, *pixels.shape[:2])[..., None]
        frames.append(pixels.clip(0, 255).astype(np.uint8))
    assert fields[0].shape[-1] == len(FIELDS)
    pixels = np.stack(frames) if drawn else np.zeros((count, size[1], size[0], 3), np.uint8)
    return Film(frames=pixels, times=times, fields=np.stack(fields))


def cast(rng: Random, size: tuple[int, int], count: int, number: int) -> list[Actor]:
    """So many actors that do not touch, of different forms and colours, some of them moving."""
    while True:
        actors: list[Actor] = []
        forms, paints = rng.sample(FORMS, number), rng.sample(PAINTS, number)
        for form, paint in zip(forms, paints, strict=True):
            r = rng.uniform(13, 21 if number > 2 else 25)
            way = rng.choice((None, *WAYS))
            ux, uy = WAYS[way] if way else (0, 0)
            room = (size[0] - 2 * r - 4, size[1] - 2 * r - 4)
            path = rng.uniform(0.55, 1.0) * (room[0] if ux else room[1])
            x0, x1 = r + 2 + max(0.0, -ux * path), size[0] - r - 2 - max(0.0, ux * path)
            y0, y1 = r + 2 + max(0.0, -uy * path), size[1] - r - 2 - max(0.0, uy * path)
            step = path / max(1, count - 1)
            actors.append(
                Actor(
                    form=form,
                    radius=r,
                    x=rng.uniform(x0, x1),
                    y=rng.uniform(y0, y1),
                    dx=ux * step,
                    dy=uy * step,
                    paints=((0, paint),),
                )
            )
        if not any(_touch(a, b, count) for i, a in enumerate(actors) for b in actors[:i]):
            return actors


def _touch(a: Actor, b: Actor, count: int) -> bool:
    reach = (a.radius + b.radius) ** 2
    return any(
        (a.x + a.dx * i - b.x - b.dx * i) ** 2 + (a.y + a.dy * i - b.y - b.dy * i) ** 2 < reach for i in range(count)
    )


def spelled_time(seconds: float) -> str:
    """As in the frames' own lines."""
    return f"{seconds:.2f} seconds"


def script(
    rng: Random, times: tuple[float, ...], size: tuple[int, int]
) -> tuple[list[Actor], list[tuple[str, str, str, str]]]:
    """Actors, and questions as (skill, question, answer, what is seen)."""
    count, number = len(times), rng.choice((1, 1, 2, 2, 3))
    actors = cast(rng, size, count, number)
    asked: list[tuple[str, str, str, str]] = []
    plot = rng.choice(("still", "turn", "turn", "appear", "vanish", "order"))
    if plot == "turn":
        index = rng.randrange(number)
        old = actors[index]
        changes = (
            sorted(rng.sample(range(2, count - 1), rng.choice((1, 1, 2)))) if count > 5 else [rng.randint(1, count - 1)]
        )
        names = [old.paint(0)]
        for _ in changes:
            names.append(rng.choice([p for p in PAINTS if p not in names and all(p != a.paint(0) for a in actors)]))
        actors[index] = new = replace(old, paints=tuple(zip([0, *changes], names, strict=True)))
        for frame, name in zip(changes, names[1:], strict=True):
            when = spelled_time(times[frame])
            seen = f"{new.form} {name} from {when}"
            asked.append(("time", f"When does the {new.form} turn {name}?", when, seen))
            asked.append(("time", f"At what time does the {new.form} become {name}?", when, seen))
        asked.append(
            (
                "video",
                f"Which colours does the {new.form} have, in order?",
                ", ".join(names),
                f"{new.form}: {', '.join(names)}",
            )
        )
        asked.append(("video", f"What colour is the {new.form} at the end?", names[-1], f"{new.form} {names[-1]}"))
        asked.append(("video", f"What colour is the {new.form} at the start?", names[0], f"{new.form} {names[0]}"))
    elif plot in ("appear", "vanish"):
        index = rng.randrange(number)
        frame = rng.randint(2, count - 2)
        key = "first" if plot == "appear" else "last"
        actors[index] = new = replace(actors[index], **{key: frame})
        when = spelled_time(times[frame])
        asked += [
            (
                "time",
                f"When does the {new.form} {plot if plot == 'appear' else 'disappear'}?",
                when,
                f"{new.form} {when}",
            )
        ] * 2
    elif plot == "order" and number > 1:
        starts = sorted(rng.sample(range(count - 1), number))
        actors = [replace(actor, first=start) for actor, start in zip(actors, starts, strict=True)]
        names = ", ".join(actor.form for actor in actors)
        asked += [("video", "In which order do the shapes appear?", names, names)] * 2
        asked.append(("video", "Which shape appears first?", actors[0].form, names))
        asked.append(("video", "Which shape appears last?", actors[-1].form, names))
        asked.append(("time", f"When does the {actors[-1].form} appear?", spelled_time(times[starts[-1]]), names))
    every = ", ".join(f"{actor.paint(0)} {actor.form}" for actor in actors)
    asked.append(
        ("video", rng.choice(("How many shapes are there?", "How many shapes can be seen?")), str(number), every)
    )
    for actor in actors:
        if len(actor.paints) == 1:
            asked.append(("video", f"What colour is the {actor.form}?", actor.paint(0), every))
            asked.append(("video", f"Which shape is {actor.paint(0)}?", actor.form, every))
        way = actor.way()
        path = math.hypot(actor.dx, actor.dy) * (min(count, actor.last) - actor.first - 1)
        if way and path > 20:
            asked += [("video", q.format(actor.form), way, f"{actor.form} {way}") for q in DIRECTIONS]
        elif not way:
            asked.append(("video", f"Does the {actor.form} move?", "no", every))
    movers = [actor for actor in actors if actor.way()]
    if len(movers) == 1 and number > 1:
        asked.append(("video", "Which shape moves?", movers[0].form, every))
    return actors, asked


DIRECTIONS = ("In which direction does the {} move?", "Which way does the {} go?", "Where does the {} move to?")
CLOCKS = (None, None, 10.0, 24.0, 25.0, 30.0)  # frames a second of the file, None where frames come with own times


def told_times(rng: Random, count: int) -> tuple[float, ...]:
    """Times of frames half a second or a second apart, as the frames' lines tell them: the training clock's."""
    step, fps = rng.choice((0.5, 0.5, 1.0)), rng.choice(CLOCKS)
    if fps is None:
        return tuple(index * step for index in range(count))
    return tuple(training_times([round(index * step * fps) for index in range(count)], fps))


def questions(
    rng: Random, *, turns: int = 4, frames: tuple[int, int] = (8, 16), skill: str | None = None, drawn: bool = True
) -> Example:
    """A clip and questions about it; of one skill ("video" or "time") when it is named."""
    while True:
        times, size = told_times(rng, rng.randint(*frames)), rng.choice(SIZES)
        actors, asked = script(rng, times, size)
        asked = [each for each in asked if skill is None or each[0] == skill]
        if asked:
            break
    chosen = rng.sample(asked, min(turns, len(asked)))
    thinks = rng.random() < 0.15
    return Example(
        skill=skill or chosen[0][0],
        media=(film(actors, times, size, rng, drawn),),
        turns=tuple(
            Turn(question=q, answer=a, thinking=seen if thinks else "", skill=kind) for kind, q, a, seen in chosen
        ),
    )


def spoken(rng: Random, voice: Voice, *, turns: int = 3, drawn: bool = True) -> Example:
    """A clip in which a word is said at each change of colour: what was said when, and what was seen then."""
    count, seconds, size = rng.randint(8, 14), 0.5, rng.choice(SIZES)
    times = tuple(index * seconds for index in range(count))
    actor = cast(rng, size, count, 1)[0]
    changes = [frame for frame in (rng.randint(2, 4), rng.randint(6, 8), rng.randint(10, 12)) if frame < count - 1]
    paints = rng.sample(PAINTS, len(changes) + 1)
    actor = replace(actor, paints=tuple(zip([0, *changes], paints, strict=True)))
    told = rng.sample([word for word in sounds.SPOKEN if word not in COLOURS], len(changes))
    sound = np.zeros(int(count * seconds * sounds.RATE), np.float32)
    asked, chars = [], []
    for frame, paint, word in zip(changes, paints[1:], told, strict=True):
        said = voice.say(rng, word)
        start = frame * seconds + rng.uniform(0, 0.1)
        part = said.samples[: len(sound) - int(start * sounds.RATE)]
        sound[int(start * sounds.RATE) :][: len(part)] += part
        chars += [(start + time, char) for time, char in zip(said.times, word, strict=True)]
        asked.append((f"What was said when the {actor.form} turned {paint}?", word))
        asked.append((f"What colour did the {actor.form} turn when {word} was said?", paint))
    pairs = [f"{paint} {word}" for paint, word in zip(paints[1:], told, strict=True)]
    chosen = rng.sample(asked, min(turns, len(asked)))
    made = film([actor], times, size, rng, drawn)
    heard = Recording(samples=sound, text=" ".join(told), fields=sounds.fields(len(sound), chars))
    return Example(
        skill="sound and video",
        media=(replace(made, sound=heard),),
        turns=tuple(Turn(question=q, answer=a) for q, a in chosen),
        lists=(Turn(question="List what was said at each colour.", answer=", ".join(pairs), skill="lists"),),
    )
