"""Budget: a conversation rendered, its media opened and measured from their headers, and the tokens shared out.

What does not fit is refused, or left out when told so: the oldest turns first, then a document's last pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from processors import image
from processors.chat import Conversation, Message, Prompt, Tokenizer, render
from processors.clip_items import Clip
from processors.given import Given, How, continued, rest, settled
from processors.image import Grid
from processors.items import Layout, Opened, Place
from processors.limits import Limits
from processors.opening import open_item
from processors.rules import Rules

Overflow = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asked beside the messages, and the processor's own way.

    how, arguments, after: the call. reserve: tokens that the shared budget leaves for a question to come. chat: the
    template's arguments. num_kept: tokens that pruning leaves of (tubelets, tokens of one, rate).
    """

    tokenizer: Tokenizer
    num_kept: Callable[[int, int, float], int]
    how: How
    arguments: Mapping[str, Any]
    after: Given | None
    rules: Rules
    context: int | None
    overflow: Overflow
    reserve: int
    limits: Limits
    chat: Mapping[str, Any]

    def ids(self, text: str) -> list[int]:
        """Of text that stands around media."""
        return self.tokenizer.encode(text, add_special_tokens=False)


@dataclass(slots=True)
class Drawn:
    """A conversation with its media opened and its budget shared out."""

    turns: Conversation
    prompt: Prompt
    beginning: str
    opened: list[Opened]
    grids: list[list[Grid]]
    layouts: list[Layout]
    left_out: list[str]


def draw(messages: Conversation, request: Request, stack: ExitStack) -> Drawn:
    """Open, measure and share out; with overflow "drop", again with less until it fits."""
    turns = list(messages)
    while True:
        open_end = request.how == "ingest"
        conversation = continued(turns, request.after, open_end) if turns else turns
        prompt = render(conversation, request.tokenizer, **request.chat)
        prompt, beginning = rest(prompt, request.after, open_end)
        prompt = replace(prompt, items=tuple(settled(item, request.limits) for item in prompt.items))
        opened: list[Opened] = []
        for item in prompt.items:
            opened.append(open_item(item, request.rules, request.limits, request.num_kept))
            stack.callback(opened[-1].close)
        drawn = Drawn(turns, prompt, beginning, opened, [], [], _left_out(len(messages) - len(turns), opened))
        try:
            return _share(drawn, request)
        except _TooLong as error:
            if request.overflow == "refuse":
                less = _without_oldest(turns) is not None or any(len(getattr(i, "pages", [])) > 1 for i in opened)
                hint = ", or pass overflow='drop'" if request.how == "prompt" and less else ""
                raise ValueError(f"{error}{hint}") from None
            shorter = _without_oldest(turns)
            if shorter is None:
                return _drop_pages(drawn, request, error)
            turns = shorter


def _drop_pages(drawn: Drawn, request: Request, error: ValueError) -> Drawn:
    """Leave out the last pages of the last document, as few as must be, found by halving."""
    documents = [item for item in drawn.opened if item.kind == "document" and len(getattr(item, "pages", [])) > 1]
    if not documents:
        raise ValueError(str(error)) from None
    *others, pages = documents
    whole: list[int] = list(getattr(pages, "pages", []))
    best, low, high = None, 1, len(whole) - 1
    while low <= high:
        middle = (low + high) // 2
        pages.pages = whole[:middle]  # pyright: ignore[reportAttributeAccessIssue]  (a document has them)
        try:
            best = _share(drawn, request), middle
            low = middle + 1
        except _TooLong:
            high = middle - 1
    if best is None:  # its first page alone, and less of the document before it
        if not others:
            raise ValueError(str(error)) from None
        pages.pages = whole[:1]  # pyright: ignore[reportAttributeAccessIssue]  (a document has them)
        drawn.left_out.append(_pages_left_out(pages.name, whole[1:]))
        return _drop_pages(drawn, request, error)
    drawn, kept = best
    pages.pages = whole[:kept]  # pyright: ignore[reportAttributeAccessIssue]  (a document has them)
    drawn.left_out.append(_pages_left_out(pages.name, whole[kept:]))
    return drawn


def _left_out(turns: int, opened: list[Opened]) -> list[str]:
    """Of the oldest turns, and what the rules pass over in those that stay."""
    told = [f"{turns} oldest messages" if turns > 1 else "the oldest message"] if turns else []
    return told + [note for item in opened if isinstance(item, Clip) for note in item.left_out]


def _pages_left_out(name: str, pages: list[int]) -> str:
    if len(pages) > 1 and pages == list(range(pages[0], pages[-1] + 1)):
        return f"{name}: pages {pages[0] + 1} to {pages[-1] + 1}"
    return f"{name}: page{'s' if len(pages) > 1 else ''} {', '.join(str(page + 1) for page in pages)}"


def _share(drawn: Drawn, request: Request) -> Drawn:
    """Give every picture and page its grid within what the rest leaves, and lay everything out."""
    rules, context, opened = request.rules, request.context, drawn.opened
    sizes = [item.sizes() for item in opened]
    flat = [size for each in sizes for size in each]
    fixed = [item.layout([(2, 2)] * len(each)) for item, each in zip(opened, sizes, strict=True)]
    text = request.reserve + drawn.prompt.text_tokens
    text += sum(len(request.ids(p)) for layout in fixed for p in layout if isinstance(p, str))
    others = sum(p.tokens for layout in fixed for p in layout if isinstance(p, Place) and p.kind != "image")
    try:
        grids = image.grids(flat, context, text + (others if context is not None else 0), rules.image)
    except ValueError as error:
        raise _TooLong(str(error)) from None
    spread = iter(grids)
    by_item = [[next(spread) for _ in each] for each in sizes]
    layouts = [item.layout(own) for item, own in zip(opened, by_item, strict=True)]
    total = text + sum(p.tokens for layout in layouts for p in layout if isinstance(p, Place))
    if context is not None and total > context:
        raise _TooLong(
            f"processor: the prompt takes {total} tokens ({text} of text, {total - text} of media), the context is "
            f"{context}; state a larger one, send fewer or shorter media"
        )
    return replace(drawn, grids=by_item, layouts=layouts, left_out=list(drawn.left_out))


class _TooLong(ValueError):
    """The prompt does not fit the stated context."""


def _without_oldest(turns: list[Message]) -> list[Message] | None:
    """Without the oldest exchange (up to the next user's turn), the system's kept; None when one exchange is left."""
    first = 1 if turns and turns[0].get("role") in ("system", "developer") else 0
    for index in range(first + 1, len(turns)):
        if turns[index].get("role") == "user":
            return turns[:first] + turns[index:]
    return None
