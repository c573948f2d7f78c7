"""Chat: messages in OpenAI's parts or in short forms → the family's prompt, with a place for each item of media.

The checkpoint's own chat template writes the prompt. Media are marked by strings that occur in no message, so what a
user typed stays text: a literal `<image>` or `<|im_end|>` in a message, a tool's description or a call's arguments is
tokenised as plain characters. Of an assistant's turn the marks of thinking and of calls keep their meaning.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Kind = Literal["image", "document", "video", "audio", "file", "mark"]
Message = Mapping[str, Any]
Conversation = Sequence[Message]

EFFORTS = ("low", "medium", "high")

ROLES = ("system", "developer", "user", "assistant", "tool")  # developer: OpenAI's newer name of system
FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
OWN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")  # an assistant's
SHORT = ("image", "document", "video", "audio")
WRAPPED = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
OPTIONS: dict[str, tuple[str, ...]] = {  # what may stand beside a short form's source
    "image": (),
    "document": ("pages", "password"),
    "video": ("frames", "times", "fps", "sampling", "pruning_rate", "sound"),
    "audio": ("rate",),
}
SOURCES = ("file_data", "path", "data", "url")  # of a file, whose options are those of the kind that it holds
HALF = re.compile(r"[\ud800-\udfff]")
ANY = tuple(dict.fromkeys(name for names in OPTIONS.values() for name in names if name != "frames"))


@runtime_checkable
class Tokenizer(Protocol):
    """What of a transformers tokenizer is used."""

    all_special_tokens: list[str]
    chat_template: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def encode(self, text: str, **kwargs: Any) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def get_added_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of media in a conversation: its kind ("file": told by its content), its source and its options.

    A "mark" is no media: it only keeps its place among the ids.
    """

    kind: Kind
    thing: Any = field(repr=False)
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered conversation: runs of token ids, and between them the index of an item among `items`."""

    pieces: tuple[list[int] | int, ...]
    items: tuple[Item, ...]

    @property
    def text_tokens(self) -> int:
        """Ids of the conversation's own text."""
        return sum(len(piece) for piece in self.pieces if isinstance(piece, list))


def render(
    messages: Conversation,
    tokenizer: Tokenizer,
    *,
    enable_thinking: bool = True,
    reasoning_budget: int | None = None,
    effort: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    keep_thinking: bool = False,
) -> Prompt:
    """The conversation as the checkpoint's template writes it, up to where the assistant answers.

    reasoning_budget: a hint in the prompt, where the template has one (the hard budget is generation's). effort: low,
    medium or high, where the template has that. tools: functions that may be called. keep_thinking: of earlier turns.
    Raises ValueError naming the message and the part that does not fit.
    """
    items: list[Item] = []
    said = [{**message, "content": _said(message)} for message in messages if isinstance(message, Mapping)]
    texts = _texts([*said, *(tools or [])])
    if half := next((text for text in texts if HALF.search(text)), None):
        raise ValueError(f"chat: {half!r:.80} holds half a character (a lone surrogate); leave it out")
    marks = _Marks(texts, tokenizer)
    turns = [_turn(index, message, items, marks) for index, message in enumerate(messages)]
    if not turns:
        raise ValueError("chat: no message came; pass at least one user message")
    turns, extra = _toggle(turns, tokenizer, enable_thinking)
    if reasoning_budget is not None:
        extra["reasoning_budget"] = reasoning_budget
    if effort is not None:
        extra |= _effort(str(tokenizer.chat_template), effort)
    text = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=True,
        tools=[marks.within(tool) for tool in tools] if tools else None,
        truncate_history_thinking=not keep_thinking,
        **extra,
    )
    return Prompt(pieces=tuple(marks.tokenize(text)), items=tuple(items))


def _toggle(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, thinking: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each family's way: an argument of the template, a word in the system text, or a system prompt."""
    template = str(tokenizer.chat_template)
    if "enable_thinking" in template:
        return turns, {"enable_thinking": thinking}
    if "/no_think" in template:
        word, joint = "/think" if thinking else "/no_think", "\n"
    elif "detailed thinking" in template or "eot_id" in template:
        word, joint = f"detailed thinking {'on' if thinking else 'off'}", "\n\n"
    else:
        return turns, {"enable_thinking": thinking}
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": word}, *turns], {}
    own = turns[0]["content"]
    if re.search(r"/(no_)?think\b|detailed thinking (on|off)", own):
        return turns, {}  # the caller has said it
    return [{**turns[0], "content": f"{own}{joint}{word}" if own else word}, *turns[1:]], {}


def _effort(template: str, effort: str) -> dict[str, Any]:
    """One argument that takes the word, or a flag for each word but the usual "high"."""
    if effort not in EFFORTS:
        raise ValueError(f"chat: effort {effort!r}; want one of {', '.join(EFFORTS)}")
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    flags = [word for word in EFFORTS if f"{word}_effort" in template]
    if effort in flags:
        return {f"{effort}_effort": True}
    if flags and effort == "high":
        return {}
    known = f"knows {', '.join(flags)} and high" if flags else "has none"
    raise ValueError(f"chat: effort {effort!r} is asked for, this model's template {known}; leave it out")


class _Marks:
    """Strings that stand for media and for typed special tokens, in private-use characters that no message holds."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer) -> None:
        joined = "".join(texts).replace("\ue000", "e000")
        self.nonce = next(str(n) for n in range(len(joined) + 2) if f"e000{n}:" not in joined)
        self.tokenizer, self.added = tokenizer, tokenizer.get_added_vocab()
        # Runs of blanks that a tokenizer adds are ordinary text.
        tokens = {token for token in (*tokenizer.all_special_tokens, *self.added) if token.strip()}
        self.special = _any_of(tokens)
        self.foreign = _any_of(tokens - set(OWN))
        self.typed: list[str] = []

    def media(self, index: int) -> str:
        return f"\ue000{self.nonce}:m{index}\ue001"

    def plain(self, text: str, own: bool = False) -> str:
        """Put aside special tokens that were typed; own: but for those that an assistant's turn is written with."""

        def aside(found: re.Match[str]) -> str:
            self.typed.append(found[0])
            return f"\ue000{self.nonce}:t{len(self.typed) - 1}\ue001"

        return (self.foreign if own else self.special).sub(aside, text)

    def within(self, value: Any) -> Any:
        """The same of every text in plain values, keys included."""
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(inner) for key, inner in value.items()}
        return [self.within(inner) for inner in value] if isinstance(value, list | tuple) else value

    def tokenize(self, text: str) -> list[list[int] | int]:
        pieces: list[list[int] | int] = [[]]
        first, last = r"(?:\ue000|\\ue000)", r"(?:\ue001|\\ue001)"  # as they are, or as a template's JSON escapes them
        for i, part in enumerate(re.split(f"{first}{self.nonce}:([mt]\\d+){last}", text)):
            run = pieces[-1]
            if i % 2 == 0:
                ids = self.tokenizer.encode(part, add_special_tokens=False) if part else []
            elif part[0] == "t":
                ids = self._spelled(self.typed[int(part[1:])])
            else:
                pieces += [int(part[1:]), []]
                continue
            assert isinstance(run, list)
            run += ids
        return [piece for piece in pieces if piece != []]

    def _spelled(self, typed: str) -> list[int]:
        """Ids of the characters; tokenizers do not split an added token that they do not call special."""
        ids = self.tokenizer.encode(typed, add_special_tokens=False, split_special_tokens=True)
        if len(typed) > 1 and not {*self.added.values()}.isdisjoint(ids):
            return self._spelled(typed[:1]) + self._spelled(typed[1:])
        return ids


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """The longest that fits; of no tokens, nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _texts(value: Any) -> list[str]:
    """Every text in plain values, keys included; media and other objects have none."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() for text in (*_texts(key), *_texts(inner))]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list | tuple) else []


def _said(message: Message) -> list[Any]:
    """The parts of a message that are text."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    return [part for part in parts if not isinstance(part, Mapping) or part.get("type") == "text"]


def _turn(index: int, message: Message, items: list[Item], marks: _Marks) -> dict[str, Any]:
    where = f"chat: message {index}"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(f"{where}: {message!r:.80} has no role; want one of {', '.join(ROLES)}")
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    # Answers of OpenAI's API, sent again, hold empty fields of other abilities.
    unknown = {str(name) for name, value in message.items() if name not in FIELDS and value is not None and value != []}
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}; want role, content, tool_calls")
    if content is None and not message.get("tool_calls"):
        raise ValueError(f"{where}: no content came; want a text or a list of parts")
    if content is not None and not isinstance(content, str | Mapping | list | tuple):
        raise ValueError(f"{where}: content {content!r:.80} came; want a text or a list of parts")
    parts = [content] if isinstance(content, str | Mapping) else list(content or [])
    text = ""
    for number, part in enumerate(parts):
        if isinstance(part, Item):
            text += marks.media(len(items))
            items.append(part)
            continue
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") == "text"):
            typed = part if isinstance(part, str) else part.get("text")
            if not isinstance(typed, str):
                raise ValueError(
                    f"{where}, part {number}: a text part without text; want {{'type': 'text', 'text': …}}"
                )
            text += typed
            continue
        if role == "assistant":
            raise ValueError(f"{where}, part {number}: an assistant's turn holds media; put them in a user's turn")
        if not isinstance(part, Mapping):
            raise ValueError(f"{where}, part {number}: {part!r:.80} came; want a text or {{'type': …}}")
        text += marks.media(len(items))
        items.append(read_part(part, f"{where}, part {number}"))
    kept: dict[str, Any] = {}
    if message.get("reasoning_content"):
        kept["reasoning_content"] = marks.within(message["reasoning_content"])
    if message.get("tool_calls"):
        kept["tool_calls"] = [marks.within(_call(call, where)) for call in message["tool_calls"]]
    return {"role": role, "content": marks.plain(text, own=role == "assistant"), **kept}


def _call(call: Any, where: str) -> Mapping[str, Any]:
    """A tool call with its arguments as a mapping; OpenAI writes them as JSON."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(
            f"{where}: the tool call {call!r:.80} came; want {{'function': {{'name': …, 'arguments': …}}}}"
        )
    given = arguments = inner.get("arguments")
    if isinstance(given, str):
        try:
            arguments = json.loads(given or "{}")
        except ValueError:
            arguments = None
    if given is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: a tool call's arguments {given!r:.80} came; want a JSON object")
    inner = {**inner, "arguments": arguments or {}}
    return {**call, "function": inner} if "function" in call else inner


def read_part(part: Mapping[str, Any], where: str = "chat") -> Item:
    """One part of a message that is not text. Raises ValueError for an unknown type or field."""
    kind = part.get("type")
    fields = {name: value for name, value in part.items() if name not in ("type", "cache_control")}
    if kind in WRAPPED:
        inner = fields.pop(kind, None)
        thing = inner.get("url") if isinstance(inner, Mapping) else inner
        _check(not fields and thing is not None, where, part, f"{{'type': '{kind}', '{kind}': {{'url': …}}}}")
        return _item(WRAPPED[kind], thing, {})
    if kind == "input_audio":
        inner = fields.pop("input_audio", None)
        _check(
            isinstance(inner, Mapping) and "data" in inner,
            where,
            part,
            "{'input_audio': {'data': base64, 'format': …}}",
        )
        assert isinstance(inner, Mapping)
        return _item("audio", _decoded(inner["data"], f"{where}: input_audio's data"), {})
    if kind == "file":
        inner = fields.pop("file", {})
        _check(isinstance(inner, Mapping), where, part, "{'file': {'file_data': a data: URI}} or {'path': …}")
        told = {name: value for name, value in {**fields, **inner}.items() if value is not None}
        sources = [name for name in SOURCES if name in told]
        _check(len(sources) == 1, where, part, f"exactly one of {', '.join(SOURCES)}")
        unknown = sorted(set(map(str, told)) - {*sources, "filename", "format", *ANY})
        if unknown:
            raise ValueError(f"{where}: file with {', '.join(unknown)} came; want beside its source {', '.join(ANY)}")
        thing = told[sources[0]]
        if sources == ["file_data"] and isinstance(thing, str) and not re.match(r"data:|https?://", thing):
            thing = _decoded(thing, f"{where}: file_data")
        return _item("file", thing, {name: told[name] for name in ANY if name in told}, told.get("filename"))
    if kind in SHORT:
        sources = [name for name in (kind, "path", "url", "data", "frames") if fields.get(name) is not None]
        _check(
            len(sources) == 1, where, part, f"exactly one of {kind}, path, url, data" + (", frames" * (kind == "video"))
        )
        thing = fields.pop(sources[0])
        unknown = set(fields) - set(OPTIONS[kind]) - {kind, "path", "url", "data"}
        _check(not unknown, where, part, f"beside its source only {', '.join(OPTIONS[kind]) or 'nothing'}")
        options = {name: fields[name] for name in OPTIONS[kind] if fields.get(name) is not None}
        if sources[0] == "frames":
            _check("times" in options or "fps" in options, where, part, "the frames' times (seconds) or their fps")
            return Item(kind="video", thing=thing, name="frames", options={**options, "frames": True})
        return _item(kind, thing, options)
    known = ", ".join(("text", *WRAPPED, "input_audio", "file", *SHORT))
    raise ValueError(f"{where}: type {kind!r} is unknown; want one of {known}")


def _decoded(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{where} is not base64; encode the file's bytes") from None


def _check(fits: bool, where: str, part: Mapping[str, Any], wanted: str) -> None:
    if not fits:
        raise ValueError(f"{where}: {part.get('type')} with {sorted(set(part) - {'type'})} came; want {wanted}")


def _item(kind: str, thing: Any, options: dict[str, Any], name: str | None = None) -> Item:
    if name is None:
        short = isinstance(thing, str) and not thing.startswith("data:")
        own = thing.rsplit("/", 1)[-1] if short else getattr(thing, "name", None)  # a tensor's is None
        name = own if isinstance(own, str) and own else f"<{type(thing).__name__}>"
    return Item(kind=kind, thing=thing, name=name, options=options)  # pyright: ignore[reportArgumentType]  (checked)
