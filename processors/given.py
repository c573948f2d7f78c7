"""Given: the record of what a prompt was made of. A batch carries it, a receipt tells it, a memory keeps it.

Plain values: the messages with a number in place of each item of media, the items with the hashes of their bytes, and
the settings; so what was made can be made again. A memory's conversation grows by calls: `open_end` marks where it
stops for now, `rest` is what a further call adds behind that mark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from processors import video
from processors.chat import Conversation, Item, Message, Prompt
from processors.limits import DEFAULT_LIMITS, Limits
from processors.media import is_pixels
from processors.pdf import Word, open_document
from processors.source import Source, open_source

How = Literal["prompt", "ingest", "ask"]
END = Item(kind="mark", thing=None, name="end")
POLICIES: dict[str, Any] = {
    policy.__name__: policy for policy in (video.Rate, video.Count, video.Keyframes, video.Moments)
}
SECRET = ("password",)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenItem:
    """One item of media as it was made.

    sha256, size: of the bytes it was decoded from, or of an array with its shape and dtype. source: its path, where it
    has one. slots: how many places it takes in the prompt, one behind the other. tokens, text_tokens, details: as
    planned.
    """

    kind: str
    name: str
    sha256: str
    size: int
    source: str | None
    slots: int
    tokens: int
    text_tokens: int
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the processor. messages: with {"item": number} in place of media; arguments: those of the call."""

    how: How
    messages: list[dict[str, Any]]
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A conversation up to the end of a batch.

    calls: one, or a memory's ingests and the question. beginning: digest of the text's ids up to the open end. rules:
    of the last call. processor: its identity. seconds: spent on opening and decoding, in all calls.
    """

    calls: tuple[Call, ...] = ()
    items: tuple[GivenItem, ...] = ()
    beginning: str = ""
    rules: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    processor: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Given:
        """The inverse of `to_dict`. Raises TypeError for other fields."""
        calls = tuple(Call(**call) for call in values["calls"])
        items = tuple(GivenItem(**item) for item in values["items"])
        return cls(**{**values, "calls": calls, "items": items, "left_out": tuple(values["left_out"])})

    @property
    def key(self) -> str:
        """SHA-256 over settings, messages and the media's content, not their names: the key of any cache."""
        items = [item.sha256 for item in self.items]
        return key_of([[asdict(call) for call in self.calls], items, self.rules, self.processor])

    def follows(self, before: Given) -> bool:
        """Whether this call goes on from there."""
        count = len(before.calls)
        calls = [[asdict(call) for call in given.calls[:count]] for given in (self, before)]
        items = [[item.sha256 for item in given.items[: len(before.items)]] for given in (self, before)]
        return len(self.calls) == count + 1 and key_of([calls[0], items[0]]) == key_of([calls[1], items[1]])


def key_of(values: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def settled(item: Item, limits: Limits) -> Item:
    """The item with its bytes at hand: a path, URL, data URI or file becomes a Source, opened or fetched once."""

    def settle(thing: Any) -> Any:
        return thing if is_pixels(thing) else open_source(thing, limits)

    if _is_folder(item):
        return item
    many = isinstance(item.thing, list | tuple)
    return replace(item, thing=[settle(thing) for thing in item.thing] if many else settle(item.thing))


def digest(item: Item) -> tuple[str, int, str | None]:
    """SHA-256, size in bytes and path (where there is one) of what a settled item is decoded from."""
    if _is_folder(item):
        files = sorted(path for path in Path(item.thing).iterdir() if path.is_file())
        return *_digest([Source(name=path.name, path=path) for path in files]), str(item.thing)
    source = item.thing
    return *_digest(source), str(source.path) if isinstance(source, Source) and source.path is not None else None


def _digest(thing: Any) -> tuple[str, int]:
    if isinstance(thing, Source):
        with thing.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), thing.size
    if isinstance(thing, list):
        parts = [_digest(part) for part in thing]
        return key_of([sha for sha, _ in parts]), sum(size for _, size in parts)
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu()
        thing = (thing.float() if thing.dtype == torch.bfloat16 else thing).numpy()  # which NumPy does not have
    array = np.ascontiguousarray(thing)
    made = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    made.update(array.tobytes())
    return made.hexdigest(), array.nbytes


def _is_folder(item: Item) -> TypeGuard[Item]:
    return bool(item.options.get("frames")) and isinstance(item.thing, str | Path)


def words(
    item: GivenItem, page: int, thing: Any = None, password: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[Word, ...]:
    """The text layer of a document's page (from 1, as `details["pages"]` counts) with its boxes, for citations.

    The document is opened again: from `thing`, or from the path it had. Raises ValueError where that is no longer what
    was read, or where there is none, MediaError for what cannot be opened.
    """
    thing = thing if thing is not None else item.source
    if item.kind != "document" or thing is None:
        why = f"holds {item.kind}, not pages" if item.kind != "document" else "came without a path; pass the document"
        raise ValueError(f"given.words: {item.name} {why}")
    pictures = isinstance(thing, list | tuple)
    again = settled(Item(kind="document", thing=thing, name=item.name), limits)
    if digest(again)[0] != item.sha256:
        raise ValueError(f"given.words: {item.name} has changed since it was read; pass the document as it was")
    with open_document(list(again.thing) if pictures else again.thing, limits, password) as document:
        return document.words(page - 1)


def told(messages: Conversation, items: Sequence[Item], first: int) -> list[dict[str, Any]]:
    """The messages as plain values; media, whose items were read in order, become {"item": number from `first`}."""
    rest = iter(enumerate(items, first))

    def part(value: Any) -> dict[str, Any]:
        if isinstance(value, str) or value.get("type") == "text":
            return {"type": "text", "text": value if isinstance(value, str) else value["text"]}
        number, item = next(rest)
        options = {name: _plain(option) for name, option in item.options.items() if name not in SECRET}
        return {"type": item.kind, "item": number, **options}

    return [{**message, "content": [part(value) for value in _parts(message)]} for message in messages]


def untold(messages: Sequence[Mapping[str, Any]], things: Sequence[Any]) -> list[dict[str, Any]]:
    """The inverse of `told`: messages for the processor again, with these things as the items."""

    def part(value: Mapping[str, Any]) -> dict[str, Any]:
        if "item" not in value:
            return dict(value)
        options = {name: _unplain(option) for name, option in value.items() if name not in ("type", "item", "frames")}
        source = "frames" if value.get("frames") else "path" if value["type"] == "file" else value["type"]
        return {"type": value["type"], source: things[value["item"]], **options}

    return [{**message, "content": [part(value) for value in message["content"]]} for message in messages]


def _plain(option: Any) -> Any:
    if type(option).__name__ in POLICIES:
        return {type(option).__name__: asdict(option)}
    if isinstance(option, list | tuple | range):
        return [_plain(part) for part in option]
    if isinstance(option, Mapping):
        return {str(name): _plain(part) for name, part in option.items()}
    return option.tolist() if isinstance(option, np.ndarray | np.generic | Tensor) else option


def _unplain(option: Any) -> Any:
    name = next(iter(option), None) if isinstance(option, dict) else None
    return POLICIES[name](**option[name]) if name in POLICIES else option


def _parts(message: Message) -> list[Any]:
    content = message.get("content")
    return [content] if isinstance(content, str | Mapping) else list(content or [])


def continued(messages: Conversation, after: Given | None, open_end: bool) -> list[Message]:
    """The whole conversation to render: what was read before (its media as marks), then these messages.

    Each earlier call stopped in an open user's turn; a user's message that follows goes on in it. Raises ValueError
    where an open end has no user's turn to stand in.
    """
    calls = [([{**m, "content": _marked(m)} for m in call.messages], True) for call in after.calls] if after else []
    turns: list[Message] = []
    for own, ends in [*calls, (list(messages), open_end)]:
        first = own[0].get("role") if own and isinstance(own[0], Mapping) else None
        if turns and first == "user":
            turns[-1] = {**turns[-1], "content": [*_parts(turns[-1]), *_parts(own[0])]}
            own = own[1:]
        turns += own
        if ends:
            if not turns or turns[-1].get("role") != "user":
                raise ValueError("processor.ingest: the last message is not the user's; end with a user's message")
            turns[-1] = {**turns[-1], "content": [*_parts(turns[-1]), END]}
    return turns


def _marked(message: Mapping[str, Any]) -> list[Any]:
    mark = Item(kind="mark", thing=None, name="item")
    return [mark if "item" in part else part for part in message["content"]]


def rest(prompt: Prompt, after: Given | None, open_end: bool) -> tuple[Prompt, str]:
    """What a call adds of the whole conversation's prompt, and the digest of its beginning up to the open end.

    Raises ValueError where the prompt does not begin as what was read.
    """
    ends = [i for i, piece in enumerate(prompt.pieces) if isinstance(piece, int) and prompt.items[piece] is END]
    start = ends[len(after.calls) - 1] + 1 if after else 0
    stop = ends[-1] if open_end else len(prompt.pieces)
    if after and _beginning(prompt, start) != after.beginning:
        raise ValueError(
            "processor: the conversation would begin otherwise than what was read; pass the tools, the thinking and "
            "the other settings of the template as they were when it was ingested"
        )
    pieces, items = list[list[int] | int](), list[Item]()
    for piece in prompt.pieces[start:stop]:
        if isinstance(piece, int):
            items.append(prompt.items[piece])
            piece = len(items) - 1
        pieces.append(piece)
    return Prompt(pieces=tuple(pieces), items=tuple(items)), _beginning(prompt, stop + 1) if open_end else ""


def _beginning(prompt: Prompt, stop: int) -> str:
    return key_of([piece if isinstance(piece, list) else "-" for piece in prompt.pieces[:stop]])
