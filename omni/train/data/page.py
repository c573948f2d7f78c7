"""Page: a picture being drawn that knows where each character and mark lies, and how paper and cameras wear it.

What the renderer knows is a dense objective for free: for each patch the characters whose centres lie in it, and the
shape and colour of the mark that covers its middle (`fields`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from omni.train.data.example import Picture

PATCH = 16
CHARS = 4  # characters told a patch; the rest of a crowded patch is left out
BLUR = (0.2, 1.2)  # px; what a tower's guess at a character's place is off by
ALPHABET = " " + "".join(map(chr, range(33, 127))) + "€£"
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "bar", "line", "slice", "button", "field", "bump")
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 210),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 170),
    "orange": (245, 130, 30),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
    "grey": (130, 130, 130),
    "brown": (120, 75, 40),
    "pink": (240, 130, 180),
    "cyan": (40, 190, 200),
}
FIELDS = (len(ALPHABET) + 1,) * CHARS + (len(SHAPES) + 1, len(COLOURS) + 1)  # classes of each field; 0 is nothing
RANKS, HALVES = 6, 12  # a chart's entries by size, and their values in halves of the axis's step
BOUND = (RANKS + 1, HALVES + 1, len(COLOURS) + 1, RANKS + 1)  # classes of what a chart's patch belongs to; 0: nothing
Ink = tuple[int, int, int]
Number = float | int
Box = tuple[Number, Number, Number, Number]  # x0, y0, x1, y1 in px
CODE = {char: index + 1 for index, char in enumerate(ALPHABET)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """How large things are drawn: the least and the largest type, px; patches that a page may take; charts, over 100
    dots an inch.
    """

    smallest: int
    largest: int
    patches: int
    charts: float


FINE = Print(smallest=12, largest=22, patches=640, charts=1.0)
CLEAR = Print(smallest=18, largest=30, patches=1024, charts=1.5)  # 9 to 15 points at 144 dpi, where pages are drawn


@lru_cache(maxsize=4096)
def font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in px."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=200_000)
def advance(path: str, size: int, char: str) -> float:
    """Width of a character in px, without kerning."""
    return font(path, size).getlength(char)


@lru_cache(maxsize=200_000)
def glyph(path: str, size: int, char: str) -> tuple[Image.Image, int, int] | None:
    """A character's mask and where it stands from the line's start and middle; None for one without ink."""
    x0, y0, x1, y1 = (round(side) for side in font(path, size).getbbox(char, anchor="lm"))
    if x1 <= x0 or y1 <= y0:
        return None
    mask = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(mask).text((-x0, -y0), char, 255, font(path, size), anchor="lm")
    return mask, x0, y0


class Written(NamedTuple):
    """A line of text as it was put on a page: where it starts, its middle's height, and its type in px."""

    x: Number
    y: Number
    text: str
    path: str
    size: int
    ink: Ink


class Page:
    """A picture of `width` x `height` px, both multiples of 32, and what is on it."""

    def __init__(self, width: int, height: int, paper: Ink = (255, 255, 255)) -> None:
        self.image = Image.new("RGB", (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.points: list[tuple[float, float]] = []
        self.chars: list[int] = []
        self.marks: list[tuple[float, float, float, float, int, int]] = []
        self.bound: list[tuple[float, float, float, float, int, int, int, int]] = []
        self.written: list[Written] = []

    def width_of(self, text: str, path: str, size: int) -> float:
        """Of a line of text, px."""
        return sum(advance(path, size, char) for char in text)

    def text(self, x: Number, y: Number, text: str, path: str, size: int, ink: Ink = (0, 0, 0)) -> float:
        """Write a line with its middle at y; returns where it ends."""
        at = x
        self.written.append(Written(x, y, text, path, size, ink))
        for char in text:
            step = advance(path, size, char)
            self.points.append((at + step / 2, y))
            self.chars.append(CODE.get(char, 0))
            drawn = glyph(path, size, char)
            if drawn is not None:
                self.image.paste(ink, (round(at) + drawn[1], round(y) + drawn[2]), drawn[0])
            at += step
        return at

    def mark(self, box: Box, shape: str, colour: str) -> None:
        """Remember a mark drawn over a box (x0, y0, x1, y1)."""
        self.marks.append((*box, SHAPES.index(shape) + 1, list(COLOURS).index(colour) + 1))

    def bind(self, box: Box, rank: int, halves: int, colour: str, last: int) -> None:
        """Remember that a box shows, names or tells a chart's entry: from 1 the largest, so many halves of the axis's
        step (0: there is none). last: its rank from the smallest.
        """
        self.bound.append((*box, rank, halves, list(COLOURS).index(colour) + 1, last))

    def picture(self, rng: Random, drawn: bool = True) -> Picture:
        """The page as a picture; where nobody looks at its pixels, with guesses at what a tower would see."""
        guesses: tuple[np.ndarray, ...] = ()
        if not drawn:
            spread = rng.uniform(*BLUR)
            guesses = (self.fields(rng, spread), self.fields(rng, spread))
        bound = np.zeros((self.image.height // PATCH, self.image.width // PATCH, len(BOUND)), np.int16)
        self._cover(bound, self.bound)
        return Picture(image=self.image, fields=self.fields(), blurred=guesses, bound=bound if self.bound else None)

    def fields(self, rng: Random | None = None, spread: float = 0.0) -> np.ndarray:
        """What each patch shows, (rows, cols, fields): characters in reading order, then shape and colour.

        With rng, each character is thought to lie elsewhere by about `spread` px across and half of it down.
        """
        rows, cols = self.image.height // PATCH, self.image.width // PATCH
        out = np.zeros((rows, cols, len(FIELDS)), np.int16)
        if self.points:
            points = np.array(self.points)
            codes = np.array(self.chars, np.int16)
            guessed = points
            if rng is not None:
                normal = np.random.default_rng(rng.getrandbits(32)).standard_normal(points.shape)
                guessed = points + normal * (spread, spread / 2)
            cell = np.floor(guessed / PATCH).astype(int)
            inside = (cell >= 0).all(1) & (cell[:, 0] < cols) & (cell[:, 1] < rows) & (codes > 0)
            points, codes, cell = points[inside], codes[inside], cell[inside]
            index = cell[:, 1] * cols + cell[:, 0]
            order = np.lexsort((points[:, 0], np.round(points[:, 1] / 5), index))
            index, codes = index[order], codes[order]
            rank = np.arange(len(index)) - np.searchsorted(index, index)
            keep = rank < CHARS
            out[index[keep] // cols, index[keep] % cols, rank[keep]] = codes[keep]
        self._cover(out[..., CHARS:], self.marks)
        return out

    @staticmethod
    def _cover(out: np.ndarray, boxes: Sequence[tuple[Number, ...]]) -> None:
        """Write what each box (x0, y0, x1, y1, numbers) tells into the patches whose middles it covers."""
        middles_y, middles_x = (np.arange(n)[:, None] * PATCH + PATCH / 2 for n in out.shape[:2])
        for x0, y0, x1, y1, *told in boxes:
            hit = ((middles_y >= y0) & (middles_y <= y1)) & ((middles_x >= x0) & (middles_x <= x1)).T
            out[hit] = told

    def wear(self, rng: Random, strength: Number, drawn: bool = True) -> None:
        """Paper, camera and file formats: rotation and perspective, light, blur, noise, JPEG; at strength 0 nothing.

        drawn: False moves what is known and leaves the pixels alone, for who does not look at them.
        """
        if strength <= 0:
            return
        if rng.random() < 0.5 * strength:
            self._warp(rng, strength, drawn)
        if not drawn:
            return
        image = self.image
        if rng.random() < 0.4 * strength:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8) * strength))
        pixels = np.array(image, np.float32)
        if rng.random() < 0.6 * strength:
            pixels *= self._light(rng, strength)
        if rng.random() < 0.6 * strength:
            pixels += grain(rng, rng.uniform(1, 14) * strength, *pixels.shape[:2])[..., None]
        self.image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        if rng.random() < 0.4 * strength:
            data = io.BytesIO()
            self.image.save(data, "JPEG", quality=rng.randint(35, 92))
            self.image = Image.open(data).convert("RGB")

    def _light(self, rng: Random, strength: float) -> np.ndarray:
        """A smooth shade over the picture."""
        height, width = self.image.height, self.image.width
        angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35) * strength
        ramp = np.cos(angle) * np.linspace(-1, 1, width)[None] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
        tint = np.array([rng.uniform(0.92, 1.05) for _ in range(3)], np.float32)
        return ((1 - depth / 2 + depth / 2 * ramp)[..., None] * tint).astype(np.float32)

    def _warp(self, rng: Random, strength: float, drawn: bool) -> None:
        """Turn, scale and tilt, with characters and marks."""
        width, height = self.image.size
        angle = rng.gauss(0, 1.6) * strength * math.pi / 180
        on_table = rng.random() < 0.3  # the paper's edge and what it lies on are seen
        scale = rng.uniform(0.84, 0.97) if on_table else 1 + rng.uniform(-0.05, 0.03) * strength
        tilt_x, tilt_y = (rng.gauss(0, 0.04) * strength for _ in range(2))
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]])
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [tilt_x / width, tilt_y / height, 1]])
        forward = middle @ turn @ np.linalg.inv(middle)
        back = np.linalg.inv(forward)
        back = back / back[2, 2]
        if drawn:
            paper = tuple(rng.randint(10, 200) for _ in range(3)) if on_table else self.image.getpixel((1, 1))
            self.image = self.image.transform(
                self.image.size,
                Image.Transform.PERSPECTIVE,
                tuple(back.flatten()[:8]),
                Image.Resampling.BICUBIC,
                fillcolor=paper if isinstance(paper, tuple) else None,
            )
        self.points = [tuple(point) for point in _moved(forward, self.points)] if self.points else []
        self.marks = [(*_moved_box(forward, mark[:4]), *mark[4:]) for mark in self.marks]
        self.bound = [(*_moved_box(forward, each[:4]), *each[4:]) for each in self.bound]


def grain(rng: Random, spread: float, rows: int, cols: int) -> np.ndarray:
    """A sensor's noise, (rows, cols): normal, of a standard deviation in grey levels."""
    return np.random.default_rng(rng.getrandbits(32)).standard_normal((rows, cols), np.float32) * np.float32(spread)


def _moved_box(matrix: np.ndarray, box: Box) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = _moved(matrix, [box[:2], box[2:]]).tolist()
    return x0, y0, x1, y1


def _moved(matrix: np.ndarray, points: Sequence[tuple[Number, Number]]) -> np.ndarray:
    flat = np.c_[np.array(points, dtype=float), np.ones(len(points))] @ matrix.T
    return flat[:, :2] / flat[:, 2:]
