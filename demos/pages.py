"""Pages: a document drawn for the eye, and the words of an answer marked where they stand on it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from processors.limits import Limits
from processors.pdf import Word, open_document
from processors.plan import PlannedItem
from processors.source import Source

WIDTH = 720  # pixels of a page
SHOWN = 40  # pages at most
COMMON = frozenset(
    "the a an of is are was were it in on at to for and or by from with this that there as be total no not".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """number: from 1. jpeg: its picture. size: width and height in points. words: its text layer."""

    number: int
    jpeg: bytes
    size: tuple[float, float]
    words: tuple[Word, ...]


def drawn(source: Source, limits: Limits) -> list[Page]:
    """The first pages of a document or picture. Raises MediaError for what cannot be opened."""
    with open_document(source, limits) as document:
        return [
            Page(
                number=page + 1,
                jpeg=_jpeg(Image.fromarray(document.render(page, WIDTH))),
                size=document.size(page),
                words=document.words(page),
            )
            for page in range(min(len(document), SHOWN))
        ]


def _jpeg(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=72)
    return held.getvalue()


def _bare(word: str) -> str:
    """A word as it is compared: without case, and the signs around it."""
    return re.sub(r"^\W+|\W+$", "", word.casefold())


def found(answer: str, question: str, words: Sequence[Word]) -> set[int]:
    """The words of a page that an answer says: numbers of words.

    Runs of words that follow one another in both count; a word alone only if it is long or holds a digit, and is not
    what the question said already.
    """
    wanted, asked = [bare for word in answer.split() if (bare := _bare(word))], {_bare(w) for w in question.split()}
    places: dict[str, list[int]] = {}
    for number, word in enumerate(words):
        places.setdefault(_bare(word.text), []).append(number)
    marked = set[int]()
    for at, word in enumerate(wanted):
        for place in places.get(word, []):
            length = _run(wanted[at:], words[place:])
            run = wanted[at : at + length]
            if _telling(run, asked):
                marked.update(range(place, place + length))
    return marked


def _run(wanted: Sequence[str], words: Sequence[Word]) -> int:
    """How many words agree from the first on."""
    pairs = zip(wanted, words, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != _bare(b.text)), min(len(wanted), len(words)))


def _telling(run: Sequence[str], asked: Collection[str]) -> bool:
    news = [word for word in run if word not in asked and word not in COMMON]
    return any(len(word) > 3 or any(letter.isdigit() for letter in word) for word in news) or len(news) > 1


def marked_pages(pages: Sequence[Page], answer: str, question: str) -> dict[int, set[int]]:
    """The pages on which an answer's words stand, and which words those are."""
    marks = {page.number: found(answer, question, page.words) for page in pages}
    return {number: words for number, words in marks.items() if words}


def sheet(pages: Sequence[Page], marks: Mapping[int, set[int]], item: PlannedItem | None) -> str:
    """The pages as HTML, those that are marked first seen. item: as the model was to read them."""
    more = item.details.get("pages_in_file", len(pages)) - len(pages) if item else 0
    rest = f'<p class="note">{more:,} more pages are read, but not shown.</p>' if more > 0 else ""
    return f'<div class="pages">{"".join(_figure(page, marks, item) for page in pages)}</div>{rest}'


def _figure(page: Page, marks: Mapping[int, set[int]], item: PlannedItem | None) -> str:
    used = page.number in marks
    boxes = "".join(_box(page, page.words[number]) for number in sorted(marks.get(page.number, ())))
    badge = '<b class="badge">used</b>' if used else ""
    picture = base64.b64encode(page.jpeg).decode()
    return (
        f'<figure class="page{" used" if used else ""}" tabindex="0"><div class="sheet">'
        f'<img src="data:image/jpeg;base64,{picture}" alt="Page {page.number}">{boxes}</div>'
        f"<figcaption>Page {page.number}{escape(_read_at(page.number, item))}{badge}</figcaption></figure>"
    )


def _box(page: Page, word: Word) -> str:
    (left, top, right, bottom), (width, height) = word.box, page.size
    sides = (100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height)
    return '<i class="mark" style="left:{:.2f}%;top:{:.2f}%;width:{:.2f}%;height:{:.2f}%"></i>'.format(*sides)


def _read_at(number: int, item: PlannedItem | None) -> str:
    """How the model sees a page."""
    if item is None or number not in item.details.get("pages", ()):
        return "" if item is None or "pages" not in item.details else " · not read"
    at = item.details["pages"].index(number)
    dpi = item.details.get("effective_dpi", [])
    return f" · {dpi[at]:.0f} dpi" if at < len(dpi) else ""
