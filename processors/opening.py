"""Opening: an item of a conversation, by its stated kind or its content, as something that can be measured and made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from processors.chat import OPTIONS, Item
from processors.clip_items import NumKept, open_clip, open_recording
from processors.clips import is_animation
from processors.container import probe
from processors.items import Opened, Pages, Picture, Recording, Samples, positive
from processors.limits import Limits, MediaError
from processors.media import is_pixels, picture_headers
from processors.pdf import open_document
from processors.rules import Rules
from processors.source import Kind, open_source, sniff


def open_item(item: Item, rules: Rules, limits: Limits, kept: NumKept) -> Opened:
    """Open an item by its kind, told by its content where that is not stated. Raises MediaError for a bad file."""
    kind = item.kind
    if kind == "file" and is_pixels(item.thing):
        raise ValueError(f"media: {item.name}: no file came, but pixels or samples; pass them as image or audio")
    array = isinstance(item.thing, np.ndarray | Tensor)
    if kind == "audio" and array:
        rate = item.options.get("rate")
        if rate is None:
            raise ValueError("audio: an array of samples came without its rate; pass 'rate': samples a second")
        return Recording(item.name, rules, _samples(item, rate, limits))
    if kind == "image":
        return Picture(item, rules, limits)
    if kind in ("file", "audio", "video") and not item.options.get("frames"):
        source = open_source(item.thing, limits)
        item = Item(kind=kind, thing=source, name=item.name, options=item.options)
        told = sniff(source)
        if kind == "file":
            kind = told
            if kind == "image" and sum(1 for _ in picture_headers(source, limits)) > 1:
                kind = "document"  # a TIFF of several pages
            if kind == "video" and not probe(source, limits).has_video:
                kind = "audio"  # an MP4 or WebM that holds sound alone
            _check_options(item, kind)
            if kind == "image":
                return Picture(item, rules, limits)
        elif kind == "video" and told == "image" and is_animation(source, limits):
            return open_clip(item, rules, limits, kept)
        elif told in ("image", "document"):
            raise MediaError(f"media: {item.name}: holds {told}, not {kind}; pass it as {told}")
    if kind == "document":
        password = item.options.get("password")
        if not isinstance(password, str | None):
            raise ValueError(f"document: {item.name}: a password of type {type(password).__name__} came; want a text")
        document = open_document(item.thing, limits, password)
        try:
            return Pages(item, rules, document)
        except ValueError:
            document.close()
            raise
    return open_clip(item, rules, limits, kept) if kind == "video" else open_recording(item, rules, limits)


def unlocked(parts: Sequence[dict[str, Any]], password: str | None) -> list[dict[str, Any]]:
    """Parts of a message, with the password where they are documents."""

    def locked(part: dict[str, Any]) -> bool:
        return part["type"] == "document" or (part["type"] == "file" and sniff(open_source(part["path"])) == "document")

    return [{**part, "password": password} if password is not None and locked(part) else part for part in parts]


def _samples(item: Item, rate: Any, limits: Limits) -> Samples:
    if (number := positive(f"audio: {item.name}", "rate", rate)) != int(number):
        raise ValueError(f"audio: {item.name}: rate {rate!r} came; want whole samples a second")
    samples = Samples(item.thing, int(number), name=item.name)
    if samples.samples > limits.max_seconds * 16000:
        raise MediaError(
            f"audio: {item.name}: {samples.samples / 16000:.0f} s of sound, the limit is {limits.max_seconds} s; "
            "send a part or raise Limits.max_seconds"
        )
    return samples


def _check_options(item: Item, kind: Kind) -> None:
    """Raise ValueError for an option of a file that does not fit what it holds."""
    unfit = sorted(set(item.options) - set(OPTIONS[kind]))
    if unfit:
        fit = ", ".join(name for name in OPTIONS[kind] if name != "frames") or "no options"
        raise ValueError(f"{kind}: {item.name}: {', '.join(unfit)} came with a file that holds {kind}; want {fit}")
