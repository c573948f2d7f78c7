"""The package's own suite: what the small model was taught, asked on seeds, fonts and voices that it never saw.

The questions are those of `omni.train.exam`; here each paper is a task, so that it has a spec, records and a hash.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omni.eval.item import Item, Lazy
from omni.eval.spec import Spec
from omni.eval.task import Task
from omni.eval.tasks.haystacks import needles
from omni.train import exam, marks
from omni.train.data.choir import Choir
from omni.train.data.example import Example, Picture
from omni.train.data.sounds import Voice
from omni.train.exam import Paper

DPI = 144  # at which a page of the suite, printed as a PDF, has the pixels that it was drawn with
RULES = {marks.exact: "exact", marks.near: "time", marks.edits: "plain character errors",
         marks.word_edits: "plain word errors"}  # fmt: skip
SHORT = {
    "document questions": "documents",
    "questions on pages": "pages",
    "page transcription, character errors": "transcription",
    "chart questions": "charts",
    "video questions": "video",
    "time of an event, within one tubelet": "time",
    "speech, word errors": "speech",
    "sound questions": "sounds",
    "sound and video questions": "sound-and-video",
    "video, half the tokens pruned": "video-half",
    "video, three quarters pruned": "video-quarter",
    "sums, thinking off": "sums",
    "sums, thinking on": "sums-thinking",
}
CLICKS = Paper(name="screens, clicks within the element", maker="screen", mark=marks.exact, examples=100)
BEGINNING = time.gmtime(0)  # of every PDF, so that the same page has the same bytes


@lru_cache(maxsize=1)
def voice() -> Voice:
    """The held-out voices; their speech is made once, and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Choir(cache / "omni" / "speech", held_out=True)


def _items(paper: Paper) -> Callable[[Spec], Lazy]:
    def made(spec: Spec) -> Lazy:
        count = spec.options["examples"]
        asked = exam.questions(voice(), replace(paper, examples=count), seed=spec.options["questions"])
        if paper is CLICKS:
            asked = [(example, turn) for example, turn in asked if example.turns[turn].box]
        return Lazy(asked, lambda index, pair: _item(spec, index, *pair))

    return made


def _item(spec: Spec, index: int, example: Example, number: int) -> Item:
    turn = example.turns[number]
    truth: Any = turn.answer if turn.box is None else {"box": list(turn.box), "size": [1.0, 1.0]}
    parts = _printed(example) if spec.options.get("pdf") else exam.parts_of(example.media)
    for part in parts:
        part.pop("pruning_rate", None)  # the spec's counts
    return Item(name=str(index), media=tuple(parts), fields={"question": turn.question}, truth=truth)


def _printed(example: Example) -> list[dict[str, Any]]:
    """The example's pictures as the pages of one PDF."""
    pages = [medium.image.convert("RGB") for medium in example.media if isinstance(medium, Picture)]
    file = io.BytesIO()
    pages[0].save(
        file,
        "PDF",
        save_all=True,
        append_images=pages[1:],
        resolution=DPI,
        quality=95,
        creationDate=BEGINNING,
        modDate=BEGINNING,
    )
    return [{"type": "document", "data": file.getvalue()}]


def _task(paper: Paper, name: str, rule: str) -> Task:
    pages = paper.maker in ("document", "pages", "chart", "transcription")
    return Task(
        name=f"own-{name}",
        about=paper.name,
        items=_items(paper),
        rule=rule,
        tokens=paper.longest,
        batch=16,
        shown={"evs": paper.rate},
        thinking={"enabled": paper.thinking},
        options={"examples": paper.examples, "questions": 1, **({"pdf": False} if pages else {})},
    )


NEEDLES = Task(
    name="own-needles",
    about="a number among sentences",
    items=needles,
    rule="needles",
    tokens=32,
    batch=16,
    options={"kind": "single", "text": "sentences", "form": "plain", "words": 100, "count": 1, "items": 100},
)
TASKS = (
    *(_task(paper, SHORT[paper.name], RULES[paper.mark]) for paper in exam.PAPERS if paper.prune is None),
    _task(CLICKS, "screens", "click"),
    NEEDLES,
)
