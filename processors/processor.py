"""Processor: conversations with pictures, documents, videos and sounds → one packed Batch; and the plan of it
beforehand.

One path serves both: media are opened and measured from their headers, the budget is shared out, text and slots are
laid out. The plan ends there; the batch goes on to decode. So the plan equals what is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard, cast

import torch

from processors import image
from processors.batch import Batch, Media, Slot
from processors.chat import Conversation, Message, Prompt, Tokenizer, render
from processors.clip_items import Clip
from processors.image import Grid
from processors.items import Layout, Opened, Place
from processors.limits import DEFAULT_LIMITS, Limits
from processors.opening import open_item
from processors.plan import Plan, PlannedItem
from processors.rules import Rules

Overflow = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What a caller asked beside the messages."""

    rules: Rules
    context: int | None
    overflow: Overflow
    limits: Limits
    chat: Mapping[str, Any]


@dataclass(slots=True)
class _Drawn:
    """A conversation with its media opened and its budget shared out."""

    prompt: Prompt
    opened: list[Opened]
    grids: list[list[Grid]]
    layouts: list[Layout]
    left_out: list[str]


def _all_kept(steps: int, places: int, rate: float) -> int:
    return steps * places


class Processor:
    """Turns messages into what the model takes.

    tokenizer: transformers', with the checkpoint's chat template. rules: how media become tokens. placeholders: the
    id that stands for a picture or tubelet and for a sound. cache_bytes_a_token, state_bytes: of the model, for
    plans.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rules: Rules,
        *,
        image_token: int = 18,
        audio_token: int | None = 27,
        cache_bytes_a_token: int = 0,
        state_bytes: int = 0,
        num_kept: Callable[[int, int, float], int] = _all_kept,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.tokenizer, self.rules, self.limits = tokenizer, rules, limits
        self.image_token, self.audio_token = image_token, audio_token
        self.cache_bytes_a_token, self.state_bytes, self.num_kept = cache_bytes_a_token, state_bytes, num_kept

    def __call__(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        context: int | None = None,
        preset: str = "reference",
        video_pruning_rate: float | None = None,
        enable_thinking: bool = True,
        overflow: Overflow = "refuse",
        limits: Limits | None = None,
        **chat: Any,
    ) -> Batch:
        """One conversation, or a list of them, as a packed batch.

        context: tokens that the prompt may take; pictures and pages share what text, videos and sounds leave (16384
        for them when unstated). overflow: "drop" leaves out the oldest turns, then the last pages, where the smallest
        sizes do not fit; "refuse" raises. video_pruning_rate: the EVS rate of clips that name none. Further arguments
        go to `chat.render` (tools, reasoning_budget, keep_thinking). Raises ValueError for messages, MediaError for
        files that do not fit.
        """
        request = self._request(
            context, preset, video_pruning_rate, overflow, limits, chat | {"enable_thinking": enable_thinking}
        )
        conversations = messages if _is_many(messages) else [cast(Conversation, messages)]
        return Batch.pack([self._batch(conversation, request) for conversation in conversations])

    def _batch(self, messages: Conversation, request: _Request) -> Batch:
        with ExitStack() as stack:
            return self._make(self._draw(messages, request, stack))

    def plan(
        self,
        messages: Conversation,
        *,
        context: int | None = None,
        preset: str = "reference",
        video_pruning_rate: float | None = None,
        enable_thinking: bool = True,
        overflow: Overflow = "refuse",
        limits: Limits | None = None,
        **chat: Any,
    ) -> Plan:
        """What `__call__` with the same arguments will make: tokens an item, dpi, times, memory; reads headers only."""
        request = self._request(
            context, preset, video_pruning_rate, overflow, limits, chat | {"enable_thinking": enable_thinking}
        )
        with ExitStack() as stack:
            drawn = self._draw(messages, request, stack)
            items = tuple(
                PlannedItem(
                    kind=opened.kind,
                    name=opened.name,
                    tokens=sum(part.tokens for part in layout if isinstance(part, Place)),
                    text_tokens=sum(len(self._ids(part)) for part in layout if isinstance(part, str)),
                    details=opened.details(grids),
                )
                for opened, grids, layout in zip(drawn.opened, drawn.grids, drawn.layouts, strict=True)
            )
        return Plan(
            items=items,
            text_tokens=drawn.prompt.text_tokens,
            context=context,
            left_out=tuple(drawn.left_out),
            rules=request.rules.to_dict(),
            cache_bytes_a_token=self.cache_bytes_a_token,
            state_bytes=self.state_bytes,
        )

    def stream(
        self,
        messages: Conversation,
        *,
        frames: int = 16,
        context: int | None = None,
        preset: str = "reference",
        video_pruning_rate: float | None = None,
        enable_thinking: bool = True,
        limits: Limits | None = None,
        **chat: Any,
    ) -> Iterator[Batch]:
        """The same prompt in pieces, to be read one after the other with one state, at bounded memory.

        A video comes in stretches of `frames` sampled frames, decoded when they are asked for; everything else in one
        piece. The pieces' ids and features follow one another as in `__call__`; each stretch is pruned as a clip of
        its own, and a clip's sound follows its frames.
        """
        request = self._request(
            context, preset, video_pruning_rate, "refuse", limits, chat | {"enable_thinking": enable_thinking}
        )
        with ExitStack() as stack:
            drawn = self._draw(messages, request, stack)
            ids: list[int] = []
            for piece in drawn.prompt.pieces:
                if isinstance(piece, list):
                    ids += piece
                    continue
                item = drawn.opened[piece]
                whole = (
                    iter([(drawn.layouts[piece], item.media(drawn.grids[piece]))])
                    if not isinstance(item, Clip)
                    else None
                )
                for layout, media in whole or cast(Clip, item).pieces(frames):
                    yield self._piece(ids, layout, media)
                    ids = []
            if ids:
                yield Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)]))

    def _piece(self, before: list[int], layout: Layout, media: Media) -> Batch:
        """Text that came before, and one item or a part of it."""
        ids, slots = list(before), list[Slot]()
        count = {"image": 0, "tubelet": 0, "audio": 0}
        self._lay(layout, ids, slots, count)
        return Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)]), slots=tuple(slots), media=media)

    def _lay(self, layout: Layout, ids: list[int], slots: list[Slot], count: dict[str, int]) -> None:
        for part in layout:
            if isinstance(part, str):
                ids += self._ids(part)
                continue
            slots.append(Slot(position=len(ids), kind=part.kind, first=count[part.kind], count=part.count))
            ids.append(self._placeholder(part))
            count[part.kind] += part.count

    def _request(
        self,
        context: int | None,
        preset: str,
        rate: float | None,
        overflow: Overflow,
        limits: Limits | None,
        chat: Mapping[str, Any],
    ) -> _Request:
        rules = self.rules.with_preset(preset)
        rules = rules if rate is None else replace(rules, pruning=float(rate))
        return _Request(rules=rules, context=context, overflow=overflow, limits=limits or self.limits, chat=chat)

    def _draw(self, messages: Conversation, request: _Request, stack: ExitStack) -> _Drawn:
        """Open, measure and share out; with overflow "drop", again with less until it fits."""
        turns, left_out = list(messages), list[str]()
        while True:
            prompt = render(turns, self.tokenizer, **request.chat)
            opened: list[Opened] = []
            for item in prompt.items:
                opened.append(open_item(item, request.rules, request.limits, self.num_kept))
                stack.callback(opened[-1].close)
            try:
                return self._share(prompt, opened, request, left_out)
            except _TooLong as error:
                if request.overflow == "refuse":
                    raise ValueError(f"{error}, or pass overflow='drop'") from None
                shorter = _without_oldest(turns)
                if shorter is None:
                    return self._drop_pages(prompt, opened, request, left_out, error)
                left_out.append(f"{len(turns) - len(shorter)} oldest messages")
                turns = shorter

    def _drop_pages(
        self, prompt: Prompt, opened: list[Opened], request: _Request, left_out: list[str], error: ValueError
    ) -> _Drawn:
        """Leave out the last pages of the last document, as few as must be, found by halving."""
        pages = next((item for item in reversed(opened) if item.kind == "document"), None)
        whole: list[int] = list(getattr(pages, "pages", []))
        if pages is None or len(whole) < 2:
            raise ValueError(str(error)) from None
        best, low, high = None, 1, len(whole) - 1
        while low <= high:
            middle = (low + high) // 2
            pages.pages = whole[:middle]  # pyright: ignore[reportAttributeAccessIssue]  (a document has them)
            try:
                best = self._share(prompt, opened, request, left_out), middle
                low = middle + 1
            except _TooLong:
                high = middle - 1
        if best is None:
            raise ValueError(str(error)) from None
        drawn, kept = best
        pages.pages = whole[:kept]  # pyright: ignore[reportAttributeAccessIssue]  (a document has them)
        drawn.left_out.append(f"{pages.name}: pages {whole[kept] + 1} to {whole[-1] + 1}")
        return drawn

    def _share(self, prompt: Prompt, opened: list[Opened], request: _Request, left_out: list[str]) -> _Drawn:
        """Give every picture and page its grid within what the rest leaves, and lay everything out."""
        rules, context = request.rules, request.context
        sizes = [item.sizes() for item in opened]
        flat = [size for each in sizes for size in each]
        fixed = [item.layout([(2, 2)] * len(each)) for item, each in zip(opened, sizes, strict=True)]
        text = prompt.text_tokens + sum(len(self._ids(p)) for layout in fixed for p in layout if isinstance(p, str))
        others = sum(p.tokens for layout in fixed for p in layout if isinstance(p, Place) and p.kind != "image")
        if isinstance(rules.image, image.TileRule):
            grids: list[Grid] = [(2, 2)] * len(flat)  # tiles have a size of their own
        else:
            taken = text + (others if context is not None else 0)
            try:
                grids = image.grids(flat, context, taken, rules.image)
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
        return _Drawn(prompt, opened, by_item, layouts, list(left_out))

    def _make(self, drawn: _Drawn) -> Batch:
        """Decode, and put ids and slots in order."""
        ids: list[int] = []
        slots: list[Slot] = []
        parts: list[Media] = []
        count = {"image": 0, "tubelet": 0, "audio": 0}
        for piece in drawn.prompt.pieces:
            if isinstance(piece, list):
                ids += piece
                continue
            parts.append(drawn.opened[piece].media(drawn.grids[piece]))
            self._lay(drawn.layouts[piece], ids, slots, count)
        media = Media.pack(parts) if parts else Media()
        return Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)]), slots=tuple(slots), media=media)

    def _placeholder(self, place: Place) -> int:
        token = self.audio_token if place.kind == "audio" else self.image_token
        assert token is not None, "a model that hears has an audio token"
        return token

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class _TooLong(ValueError):
    """The prompt does not fit the stated context."""


def _is_many(messages: Conversation | Sequence[Conversation]) -> TypeGuard[Sequence[Conversation]]:
    return bool(messages) and not isinstance(messages[0], Mapping)


def _without_oldest(turns: list[Message]) -> list[Message] | None:
    """Without the oldest exchange (up to the next user's turn), the system's kept; None when one exchange is left."""
    first = 1 if turns and turns[0].get("role") == "system" else 0
    for index in range(first + 1, len(turns)):
        if turns[index].get("role") == "user":
            return turns[:first] + turns[index:]
    return None
