"""Receipt: what a model was really given, how it was run and what it answered; as JSON and as one HTML page.

Everything is recorded where it happened: the files' hashes where they were decoded, the masks where tokens were
pruned, the ids as they were read. `omni.replay` makes the same answer again from the JSON, or says what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

from jaxtyping import Int
from torch import Tensor

from omni.answer import Result, Settings
from omni.codec import Codec
from omni.identity import Identity
from omni.receipt_page import page
from omni.sampling import Sampling
from omni.seen import Seen

FORMAT, VERSION = "omni receipt", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """seen: items, files, places, masks, pictures. ids: of the prompt, one a place. pieces: its text, and between the
    texts the numbers of places. settings: of the answer, the seed and the drafts included. answer: text, thinking,
    tokens and why it stopped. seconds: by stage. when: the answer was done, UTC.
    """

    seen: Seen
    ids: tuple[int, ...]
    pieces: tuple[str | int, ...]
    identity: Identity
    settings: Mapping[str, Any]
    answer: Mapping[str, Any]
    seconds: Mapping[str, float]
    when: str

    @classmethod
    def of(
        cls,
        seen: Seen,
        tokens: Int[Tensor, " tokens"],
        codec: Codec,
        identity: Identity,
        result: Result,
        draft: int | str | None,
    ) -> Receipt:
        """tokens: of the whole prompt, as it was read."""
        edges = [0, *(edge for place in seen.places for edge in (place.start, place.start + place.tokens)), len(tokens)]
        ids, pieces = list[int](), list[str | int]()
        for number, (start, stop) in enumerate(pairwise(edges)):
            run = tokens[start:stop].tolist()
            place = number // 2
            if number % 2:
                ids.append(seen.places[place].token)
                pieces.append(place)
            elif run:
                ids += run
                pieces.append(codec.tokenizer.decode(run, clean_up_tokenization_spaces=False))
        answer = {
            "text": result.text,
            "thinking": result.thinking,
            "tokens": list(result.tokens),
            "stopped": result.stopped,
            "thinking_tokens": result.thinking_tokens,
            "rounds": result.rounds,
            "logprobs": None if result.logprobs is None else list(result.logprobs),
        }
        return cls(
            seen=seen,
            ids=tuple(ids),
            pieces=tuple(pieces),
            identity=identity,
            settings={**asdict(result.settings), "draft": draft},
            answer=answer,
            seconds={"decode media": seen.given.seconds - seen.memory.get("decode media", 0.0), **result.seconds},
            when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "when": self.when,
            "answer": dict(self.answer),
            "prompt": {"ids": list(self.ids), "pieces": list(self.pieces)},
            "seen": self.seen.to_dict(),
            "settings": dict(self.settings),
            "model": asdict(self.identity),
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Receipt:
        """The inverse of `to_dict`. Raises ValueError for what is no receipt, or one of another version."""
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise ValueError(
                f"receipt: {values.get('format')!r} of version {values.get('version')} came; want {FORMAT!r} of "
                f"version {VERSION}, as --receipt receipt.json writes it"
            )
        missing = _missing(values)
        if missing:
            raise ValueError(
                f"receipt: it has no {', '.join(missing)}; pass the file as --receipt receipt.json wrote it"
            )
        try:
            return cls(
                seen=Seen.from_dict(values["seen"]),
                ids=tuple(values["prompt"]["ids"]),
                pieces=tuple(values["prompt"]["pieces"]),
                identity=Identity(**values["model"]),
                settings=values["settings"],
                answer=values["answer"],
                seconds=values["seconds"],
                when=values["when"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"receipt: it is damaged ({error!r}); write it again") from None

    @classmethod
    def load(cls, path: str | Path) -> Receipt:
        """From a JSON file. Raises ValueError for a file that is missing, or no receipt."""
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"receipt: {path}: {error}; pass what --receipt receipt.json wrote") from None
        return cls.from_dict(values if isinstance(values, dict) else {})

    def to_html(self) -> str:
        """One page that needs nothing else: no script, no font, no file."""
        return page(self.seen, self.ids, self.pieces, self.to_dict())

    def save(self, path: str | Path) -> None:
        """By its suffix, .json or .html. Written whole or not at all. Raises ValueError for another suffix, or
        where it cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".json", ".html"):
            raise ValueError(f"receipt: {path} ends in {path.suffix or 'nothing'}; want .json or .html")
        text = self.to_html() if path.suffix == ".html" else json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        part = path.with_name(f".{path.name}.{token_hex(4)}.part")
        try:
            part.write_bytes(
                text.encode(errors="backslashreplace")
            )  # a file's name may be no UTF-8; JSON reads it back
            part.replace(path)
        except OSError as error:
            raise ValueError(f"receipt: {path} cannot be written ({error.strerror}); choose another place") from None
        finally:
            part.unlink(missing_ok=True)


def _missing(values: Mapping[str, Any]) -> list[str]:
    """Fields that a receipt needs and these values lack, by dotted names."""
    settings = [field.name for field in fields(Settings)]
    wanted = {
        "": ("seen", "prompt", "model", "settings", "answer", "seconds", "when"),
        "prompt.": ("ids", "pieces"),
        "answer.": ("text", "thinking", "tokens", "stopped"),
        "settings.": (*settings, "draft"),
        "settings.sampling.": tuple(field.name for field in fields(Sampling)),
    }
    found = list[str]()
    for stem, names in wanted.items():
        part: Any = values
        for name in stem.split(".")[:-1]:
            part = part.get(name, {}) if isinstance(part, Mapping) else {}
        if not any(stem.startswith(f"{gone}.") for gone in found):
            found += [f"{stem}{name}" for name in names if not isinstance(part, Mapping) or name not in part]
    return found
