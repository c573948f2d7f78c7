"""Processor: conversations with pictures, documents, videos and sounds → one packed Batch; and the plan of it
beforehand.

One path serves both: media are opened and measured from their headers, the budget is shared out, text and slots are
laid out. The plan ends there; the batch goes on to decode. So the plan equals what is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard, cast

import numpy as np
import torch

from processors.ahead import ahead
from processors.batch import Batch, Media, Slot
from processors.budget import Drawn, Overflow, Request, draw
from processors.chat import Conversation, Tokenizer
from processors.clip_items import Clip
from processors.given import Call, Given, GivenItem, How, digest, key_of, told, words
from processors.items import Layout, Pages, Place, Recording
from processors.limits import DEFAULT_LIMITS, Limits
from processors.pdf import Word
from processors.plan import Plan, PlannedItem
from processors.rules import Rules

CUT = ("frames", "evs")  # how a call was cut and pruned piece by piece; only recorded here
BUDGET = ("context", "preset", "video_pruning_rate", "overflow", "reserve", *CUT)  # the rest is the template's


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a prompt. item: the number, among all that its record names, of the item that it holds all or a part
    of (None: text alone). Of a stretch of a clip, step: how many tubelets came before; seconds: the true time of its
    last frame.
    """

    batch: Batch
    item: int | None = None
    step: int = 0
    seconds: float | None = None


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
        budget = {"context": context, "preset": preset, "video_pruning_rate": video_pruning_rate, "overflow": overflow}
        request = self._request("prompt", budget | {"enable_thinking": enable_thinking} | chat, limits)
        conversations = messages if _is_many("processor", messages) else [cast(Conversation, messages)]
        return Batch.pack([self._batch(cast(Conversation, conversation), request) for conversation in conversations])

    def ingest(
        self, messages: Conversation, *, after: Given | None = None, limits: Limits | None = None, **settings: Any
    ) -> Batch:
        """A conversation up to the end of its last message, a user's, whose turn stays open: to be read once, asked
        often.

        after: what a memory has read before; these messages go on in its open turn. settings: those of `__call__`,
        and `reserve`, the tokens that the shared budget leaves for questions (256); by default those of the call
        before. Where the last part is media, the ids of ingest and `ask` one behind the other are those of `__call__`.
        """
        before = _arguments(after) if after else {"reserve": 256}
        return self._batch(messages, self._request("ingest", {**before, **settings}, limits, after))

    def ask(
        self,
        question: str | Sequence[Any],
        *,
        after: Given,
        enable_thinking: bool = True,
        limits: Limits | None = None,
        **settings: Any,
    ) -> Batch:
        """The rest of the prompt behind what a memory has read: the question, and where the assistant answers.

        question: a text, parts of a message, or messages. settings: as in `ingest`; a context here is for this rest.
        Raises ValueError where they would have changed what was read (a system text that toggles thinking, tools).
        """
        first = question[0] if question else question
        whole = isinstance(first, Mapping) and "role" in first
        messages = question if whole else [{"role": "user", "content": question}]
        arguments = {**_arguments(after), "context": None, "reserve": 0, **settings}
        request = self._request("ask", arguments | {"enable_thinking": enable_thinking}, limits, after)
        return self._batch(cast(Conversation, messages), request)

    def words(self, item: GivenItem, page: int, thing: Any = None, password: str | None = None) -> tuple[Word, ...]:
        """What a page of `batch.given[i].items[j]` says and where, in points from its top left. See `given.words`."""
        return words(item, page, thing, password, self.limits)

    @cached_property
    def identity(self) -> str:
        """Digest of everything here that decides ids and features: vocabulary, template, rules, placeholders."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        template, special = str(self.tokenizer.chat_template), self.tokenizer.all_special_tokens
        return key_of([vocabulary, template, special, self.rules.to_dict(), self.image_token, self.audio_token])

    def _batch(self, messages: Conversation, request: Request) -> Batch:
        start = time.perf_counter()
        with ExitStack() as stack:
            drawn = draw(messages, request, stack)
            batch = self._make(drawn)
            return replace(batch, given=(self._given(drawn, request, start),))

    def _given(self, drawn: Drawn, request: Request, start: float, apart: bool = False) -> Given:
        """What was made of this call, behind what came before. apart: a sound's chunks have places of their own."""
        after = request.after or Given(processor=self.identity)
        items = [
            GivenItem(
                kind=planned.kind,
                name=planned.name,
                sha256=sha256,
                size=size,
                source=source,
                slots=sum(_slots(part, apart) for part in layout if isinstance(part, Place)),
                tokens=planned.tokens,
                text_tokens=planned.text_tokens,
                details=planned.details,
            )
            for planned, layout, item in zip(self._planned(drawn), drawn.layouts, drawn.prompt.items, strict=True)
            for sha256, size, source in [digest(item)]
        ]
        messages = told(drawn.turns, drawn.prompt.items, len(after.items))
        return Given(
            calls=(*after.calls, Call(how=request.how, messages=messages, arguments=dict(request.arguments))),
            items=(*after.items, *items),
            beginning=drawn.beginning,
            rules=request.rules.to_dict(),
            left_out=(*after.left_out, *drawn.left_out),
            processor=self.identity,
            seconds=after.seconds + time.perf_counter() - start,
        )

    def _planned(self, drawn: Drawn) -> tuple[PlannedItem, ...]:
        return tuple(
            PlannedItem(
                kind=opened.kind,
                name=opened.name,
                tokens=sum(part.tokens for part in layout if isinstance(part, Place)),
                text_tokens=sum(len(self._ids(part)) for part in layout if isinstance(part, str)),
                details=opened.details(grids),
            )
            for opened, grids, layout in zip(drawn.opened, drawn.grids, drawn.layouts, strict=True)
        )

    def plan(
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
    ) -> Plan:
        """What `__call__` with the same arguments will make: tokens an item, dpi, times, memory; reads headers only.

        Of one conversation. Raises as `__call__` where headers tell it.
        """
        budget = {"context": context, "preset": preset, "video_pruning_rate": video_pruning_rate, "overflow": overflow}
        request = self._request("prompt", budget | {"enable_thinking": enable_thinking} | chat, limits)
        if _is_many("processor.plan", messages):
            raise ValueError("processor.plan: a list of conversations came; plan them one by one")
        with ExitStack() as stack:
            drawn = draw(cast(Conversation, messages), request, stack)
            items = self._planned(drawn)
        return Plan(
            items=items,
            text_tokens=drawn.prompt.text_tokens,
            context=context,
            left_out=tuple(drawn.left_out),
            rules=request.rules.to_dict(),
            cache_bytes_a_token=self.cache_bytes_a_token,
            state_bytes=self.state_bytes,
        )

    def stream(self, messages: Conversation, **settings: Any) -> Iterator[Batch]:
        """The same prompt in pieces, to be read one after the other with one state, at bounded memory. See `pieces`."""
        return (piece.batch for piece in self.pieces(messages, **settings))

    def pieces(
        self,
        messages: Conversation,
        *,
        frames: int = 16,
        context: int | None = None,
        preset: str = "reference",
        video_pruning_rate: float | None = None,
        enable_thinking: bool = True,
        limits: Limits | None = None,
        ingest: bool = False,
        after: Given | None = None,
        scout: bool = False,
        **chat: Any,
    ) -> Iterator[Piece]:
        """The pieces of `stream`, each with what it is a part of.

        A video comes in stretches of `frames` sampled frames, a document a few pages at a time, a sound in the chunks
        that are encoded alone, each decoded while the one before is read; a picture in one piece. The pieces' ids and
        features follow one another as in `__call__`, but each stretch is pruned as a clip of its own. ingest, after:
        the pieces of what `ingest` makes. scout: only the stretches of clips that are to be pruned, for a look ahead.
        """
        budget = {"context": context, "preset": preset, "video_pruning_rate": video_pruning_rate, "frames": frames}
        how: How = "ingest" if ingest else "prompt"
        request = self._request(how, budget | {"enable_thinking": enable_thinking} | chat, limits, after)
        start = time.perf_counter()
        with ExitStack() as stack:
            drawn = draw(messages, request, stack)
            given = self._given(drawn, request, start, apart=True)
            ids: list[int] = []
            for piece in drawn.prompt.pieces:
                if isinstance(piece, list):
                    ids += piece
                    continue
                item, number = drawn.opened[piece], len(given.items) - len(drawn.opened) + piece
                if scout and not (isinstance(item, Clip) and item.rate):
                    continue
                if isinstance(item, Clip):
                    parts = item.pieces(frames, told=not scout)
                elif isinstance(item, Recording):
                    parts = item.pieces()
                elif isinstance(item, Pages):
                    parts = item.pieces(drawn.grids[piece])
                else:
                    parts = iter([(drawn.layouts[piece], item.media(drawn.grids[piece]))])
                step = 0
                for layout, media in ahead(parts):
                    end = step + media.counts["tubelet"]
                    seconds = item.seconds(end) if isinstance(item, Clip) and end > step else None
                    batch = self._piece(ids, layout, media, given)
                    yield Piece(batch=batch, item=number, step=step, seconds=seconds)
                    step, ids = end, []
            if ids and not scout:
                yield Piece(batch=self._piece(ids, [], Media(), given))

    def _piece(self, before: list[int], layout: Layout, media: Media, given: Given) -> Batch:
        """Text that came before, and one item or a part of it."""
        ids, slots = list(before), list[Slot]()
        count = {"image": 0, "tubelet": 0, "audio": 0}
        self._lay(layout, ids, slots, count)
        return Batch(
            tokens=torch.tensor(ids),
            lengths=torch.tensor([len(ids)]),
            slots=tuple(slots),
            media=media,
            given=(given,),
        )

    def _lay(self, layout: Layout, ids: list[int], slots: list[Slot], count: dict[str, int]) -> None:
        for part in layout:
            if isinstance(part, str):
                ids += self._ids(part)
                continue
            slots.append(Slot(position=len(ids), kind=part.kind, first=count[part.kind], count=part.count))
            ids.append(self._placeholder(part))
            count[part.kind] += part.count

    def _request(
        self, how: How, arguments: Mapping[str, Any], limits: Limits | None, after: Given | None = None
    ) -> Request:
        if after is not None and after.processor != self.identity:
            raise ValueError(
                "processor: what was read before was made by a processor with another tokenizer, template or rules; "
                "use that one"
            )
        # numpy's numbers as Python's, which can be written down
        arguments = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()
        }
        rules = self.rules.with_preset(arguments.get("preset", "reference"))
        rate = arguments.get("video_pruning_rate")
        return Request(
            tokenizer=self.tokenizer,
            num_kept=self.num_kept,
            how=how,
            arguments=arguments,
            after=after,
            rules=rules if rate is None else replace(rules, pruning=float(rate)),
            context=arguments.get("context"),
            overflow="refuse" if how != "prompt" else arguments.get("overflow", "refuse"),
            reserve=arguments.get("reserve", 0),
            limits=limits or self.limits,
            chat={name: value for name, value in arguments.items() if name not in BUDGET},
        )

    def _make(self, drawn: Drawn) -> Batch:
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


def _arguments(after: Given) -> dict[str, Any]:
    """Those of the call before, but for how it was cut."""
    return {name: value for name, value in after.calls[-1].arguments.items() if name not in CUT}


def _slots(place: Place, apart: bool) -> int:
    return place.count if apart and place.kind == "audio" else 1


def _is_many(where: str, messages: Conversation | Sequence[Conversation]) -> TypeGuard[Sequence[Conversation]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"{where}: {messages!r:.80} came; want a list of messages, each with its role and content")
    return bool(messages) and isinstance(messages[0], Sequence) and not isinstance(messages[0], str)
