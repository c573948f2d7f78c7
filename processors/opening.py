"""Opening: an item of a conversation, by its stated kind or its content, as something that can be measured and made."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from processors.chat import Item
from processors.clip_items import NumKept, open_clip, open_recording
from processors.container import probe
from processors.items import Opened, Pages, Picture, Recording, Samples
from processors.limits import Limits, MediaError
from processors.media import picture_headers
from processors.pdf import open_document
from processors.rules import Rules
from processors.source import open_source, sniff


def open_item(item: Item, rules: Rules, limits: Limits, kept: NumKept) -> Opened:
    """Open an item by its kind, told by its content where that is not stated. Raises MediaError for a bad file."""
    kind = item.kind
    array = isinstance(item.thing, np.ndarray | Tensor)
    if kind == "audio" and array:
        rate = item.options.get("rate")
        if rate is None:
            raise ValueError("audio: an array of samples came without its rate; pass 'rate': samples a second")
        return Recording(item.name, rules, Samples(item.thing, int(rate)))
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
            if kind == "image":
                return Picture(item, rules, limits)
            if kind == "video" and not probe(source, limits).has_video:
                kind = "audio"  # an MP4 or WebM that holds sound alone
        elif told in ("image", "document"):
            raise MediaError(f"media: {item.name}: holds a {told}, not {kind}; pass it as {told}")
    if kind == "document":
        document = open_document(item.thing, limits, item.options.get("password"))
        try:
            return Pages(item, rules, document)
        except ValueError:
            document.close()
            raise
    return open_clip(item, rules, limits, kept) if kind == "video" else open_recording(item, rules, limits)
