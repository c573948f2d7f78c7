"""Codec: the text side of a model. Ids become bytes, bytes become text in whole characters, and the ids that
generation must know are named.

A byte-level tokenizer writes every token as a string of 256 letters, one a byte (GPT-2's alphabet), so a character may
be split over tokens. Here bytes are joined first and decoded then: half a character is never shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omni.config import OmniConfig

SHOWN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
MEDIA = ("<image>", "<img>", "</img>", "<video>", "<so_embedding>", "<so_start>", "<so_end>")
TAIL = 16  # ids at a prompt's end that tell whether thinking is open


def _letters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


LETTERS = _letters()


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder, its chat template included; None where there is none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


class Codec:
    """A tokenizer and what of it generation needs.

    eos: ids that end an answer. banned: ids that are never generated: those of media, and those without a token. open,
    close: the ids that write `<think>` and `</think>` (one each where the family has them as tokens).
    """

    def __init__(
        self, tokenizer: Any, *, vocabulary: int | None = None, eos: Sequence[int] = (2, 11), media: Sequence[int] = ()
    ) -> None:
        """tokenizer: transformers', byte-level. Raises ValueError for one of another kind."""
        backend = tokenizer.backend_tokenizer
        kinds = _kinds(json.loads(backend.decoder.__getstate__())) if backend.decoder else []
        if "ByteLevel" not in kinds:
            raise ValueError(
                f"codec: the tokenizer decodes by {kinds or 'nothing'}; this family's are byte-level, use the one in "
                "the model's folder"
            )
        self.tokenizer = tokenizer
        self.eos = tuple(eos)
        self.size = max(vocabulary or 0, len(tokenizer))
        known = {backend.token_to_id(name) for name in MEDIA} if media else set()
        unknown = {token for token in range(self.size) if backend.id_to_token(token) is None}
        self.banned = tuple(sorted({*media} | unknown | {token for token in known if token is not None}))
        self.open, self.close = (tuple(self.encode(text)) for text in ("<think>", "</think>"))
        self.newline = self.encode("\n")[0]
        self._added = dict(tokenizer.added_tokens_decoder)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Any, config: OmniConfig) -> Codec:
        """For a model of this config. An answer also ends where the tokenizer says that a text or a turn does: released
        configs name the first alone.
        """
        media = [config.media.image_token] if config.vision else []
        if config.audio and config.media.audio_token is not None:
            media.append(config.media.audio_token)
        named = (tokenizer.eos_token_id, tokenizer.backend_tokenizer.token_to_id("<|im_end|>"))
        eos = dict.fromkeys((*config.eos, *(token for token in named if token is not None)))
        return cls(tokenizer, vocabulary=config.backbone.vocabulary, eos=tuple(eos), media=media)

    @classmethod
    def from_folder(cls, folder: Path, config: OmniConfig) -> Codec | None:
        """From a checkpoint's folder; None where it has no tokenizer."""
        tokenizer = read_tokenizer(folder)
        return cls.of(tokenizer, config) if tokenizer else None

    def encode(self, text: str) -> list[int]:
        """Text → ids; special tokens written out become theirs."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def bytes_of(self, token: int) -> bytes:
        """What a token writes; nothing for special tokens (except thinking's and tools' marks) and for unknown ids."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        entry = self._added.get(token)
        if entry is not None:
            return b"" if entry.special and entry.content not in SHOWN else entry.content.encode()
        text = self.tokenizer.convert_ids_to_tokens(token)
        return bytes(LETTERS[letter] for letter in text) if text is not None else b""

    def decode(self, tokens: Iterable[int]) -> str:
        """Ids → text at once; bytes that are no UTF-8 become the replacement character."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")


def _kinds(decoder: dict[str, Any]) -> list[str]:
    """The types of a decoder and of those inside it."""
    return [decoder["type"], *(kind for part in decoder.get("decoders", []) for kind in _kinds(part))]


class TextStream:
    """Text that comes in pieces, shown as soon as it is certain to be shown.

    marks: strings that end the stream; neither a mark nor its beginning is ever shown. lead: leave out newlines at the
    beginning; trail: and at the end.
    """

    __slots__ = ("_held", "_lead", "_marks", "_trail", "hit", "rest", "text")

    def __init__(self, marks: Sequence[str] = (), *, lead: bool = False, trail: bool = False) -> None:
        self._marks, self._lead, self._trail, self._held = tuple(marks), lead, trail, ""
        self.text = ""  # all that was shown
        self.hit: str | None = None  # the mark that ended the stream
        self.rest = ""  # what came behind it

    @property
    def blank(self) -> bool:
        """Whether nothing but blanks came."""
        return not (self.text + self._held).strip()

    def feed(self, piece: str) -> str:
        """Take in a piece, return what can be shown now."""
        self._held += piece
        found = [(at + len(mark), at, mark) for mark in self._marks if (at := self._held.find(mark)) >= 0]
        if found:  # the one that is whole first counts, so that it does not matter how the text is cut into pieces
            _, at, self.hit = min(found)
            self.rest = self._held[at + len(self.hit) :]
            self._held = self._held[:at]
            return self.finish()
        return self._show(len(self._held) - self._doubtful())

    def finish(self) -> str:
        """Nothing more comes: what was held back is shown now."""
        if self._trail:
            self._held = self._held.rstrip("\n")
        return self._show(len(self._held))

    def _doubtful(self) -> int:
        """Letters at the end that may turn out to be a mark's beginning, or newlines at the end."""
        longest = max((len(mark) for mark in self._marks), default=1) - 1
        ends = range(max(0, len(self._held) - longest), len(self._held))
        first = next((at for at in ends if any(m.startswith(self._held[at:]) for m in self._marks)), len(self._held))
        if self._trail:
            first = len(self._held[:first].rstrip("\n"))
        return len(self._held) - first

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        if self._lead:
            shown = shown.lstrip("\n")
            self._lead = not shown
        self.text += shown
        return shown
