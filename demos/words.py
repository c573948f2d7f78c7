"""What the tabs say alike: numbers and texts as HTML that cannot act, errors, times that can be clicked."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from html import escape

from demos.talk import Told
from omni.answer import Piece
from omni.receipt_page import clock_time
from omni.shell import CONTROL

PACE = 0.08  # seconds between two pictures of an answer that grows
TIME = re.compile(
    r"(?<![\d:.])(?:(?P<clock>(?:\d{1,2}:)?\d{1,3}:\d{2}(?:\.\d+)?)|(?P<number>\d+(?:\.\d+)?)\s?(?:s|sec|seconds?)\b)"
    r"(?![\d:])"
)


def plain(text: str) -> str:
    """Markdown that loads nothing: what a model writes may come from a page that wants it to."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text.translate(CONTROL)).replace("![", "!\\[")


def shown(text: str) -> str:
    """A text as HTML that is the text and nothing else."""
    return escape(text.translate(CONTROL))


def trouble(error: Exception | str) -> str:
    """An error, said where it is seen and read aloud."""
    text = str(error) if isinstance(error, str | ValueError) else "Something went wrong here. Please try again."
    return f'<div class="trouble" role="alert">{escape(_shorter(text))}</div>'


def _shorter(text: str) -> str:
    return text.removeprefix("media: ")


def said(text: str, note: str = "") -> str:
    """An answer. note: what it cost."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="answer" aria-live="polite">{shown(text) or "…"}</div>{below}'


def cost(told: Told) -> str:
    """What an answer took, in a line."""
    seconds, tokens = told.result.seconds, len(told.result.tokens)
    first = told.result.seconds["encode"] + told.result.seconds["prefill"]
    pace = f", {tokens / seconds['decode']:.0f} tokens a second" if seconds["decode"] else ""
    since = "the files were read" if told.state_tokens else "the question"
    cut = " Cut off at the length limit." if told.result.stopped == "length" else ""
    return (
        f"{told.result.prompt_tokens:,} tokens in, {tokens:,} out; first word {first:.2f} s after {since}{pace}.{cut}"
    )


def paced(pieces: Iterable[object]) -> Iterator[tuple[object, bool]]:
    """Things as they come, and whether it is time to show them: texts that grow are not drawn at every token."""
    shown = 0.0
    for piece in pieces:
        now = time.monotonic()
        due = not isinstance(piece, Piece) or now - shown >= PACE
        shown = now if due else shown
        yield piece, due


def seconds_in(text: str) -> list[tuple[int, int, float]]:
    """The times that a text names: where each starts and ends, and its seconds. 1:02:03.5, 3:05, 12.5 s, 2 seconds."""
    found = list[tuple[int, int, float]]()
    for match in TIME.finditer(text):
        if match["clock"]:
            parts = [float(part) for part in match["clock"].split(":")]
            value = sum(part * 60**i for i, part in enumerate(reversed(parts)))
        else:
            value = float(match["number"])
        found.append((match.start(), match.end(), value))
    return found


def jump(seconds: float, label: str, kind: str = "jump") -> str:
    """A button that moves the film to a second. label: HTML."""
    where = f"Go to {clock_time(seconds)}"
    return f'<button type="button" class="{kind}" data-seconds="{seconds:.3f}" title="{where}">{label}</button>'
