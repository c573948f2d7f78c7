"""Seen: what a model has read of a conversation. Where each item of media stands among the tokens, which of a clip's
tokens pruning left, and small pictures of what it looked at, made from the very numbers that it was given.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from omni.splice import Spliced
from processors.batch import Batch, Kind
from processors.given import Given

LOOKS = 48  # pictures of one conversation at most, spread evenly over its items
SIDE = 192  # of a picture, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the features of one picture, tubelet or sound stand: `tokens` of them from `start` on.

    token: the id that stands for it. items: how many tiles or chunks they come from. frames, trims: of a sound, mel
    frames of each chunk and the tokens dropped at its ends.
    """

    kind: Kind
    start: int
    tokens: int
    token: int
    items: int = 1
    frames: tuple[int, ...] = ()
    trims: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was read so far, of one sequence.

    tokens: their number. places: in order. kept: of tubelets, by the number of their place: True where pruning left the
    token. looks: JPEG pictures of some places, by their number. given: what the processor made it of (empty for batches
    made by hand). memory: of the part that a memory holds, its tokens and the seconds spent on it by stage. stored:
    where its file kept fewer bits of keys and values, how (`kv`), and how far they are off (`kv_error`).
    """

    tokens: int = 0
    places: tuple[Place, ...] = ()
    kept: Mapping[int, Bool[Tensor, "_ _"]] = field(default_factory=dict)
    looks: Mapping[int, bytes] = field(default_factory=dict)
    given: Given = field(default_factory=Given)
    memory: Mapping[str, int | float] = field(default_factory=dict)
    stored: Mapping[str, Any] = field(default_factory=dict)

    def after(self, batch: Batch, spliced: Spliced) -> Seen:
        """This and a batch of one sequence, as it was embedded."""
        given = batch.given[0] if batch.given else self.given
        frames, trims = batch.media.frames.tolist(), [(a, b) for a, b in batch.media.trims.tolist()]
        places = list(self.places)
        for slot, (start, stop) in zip(batch.slots, spliced.spans, strict=True):
            heard = slice(slot.first, slot.first + slot.count) if slot.kind == "audio" else slice(0)
            places.append(
                Place(
                    kind=slot.kind,
                    start=self.tokens + start,
                    tokens=stop - start,
                    token=int(batch.tokens[slot.position]),
                    items=slot.count,
                    frames=tuple(frames[heard]),
                    trims=tuple(trims[heard]),
                )
            )
        tubelets = [number for number in range(len(self.places), len(places)) if places[number].kind == "tubelet"]
        steps = (step.cpu() for clip in spliced.kept for step in clip)
        wanted = _wanted(given, len(self.places), len(places))
        looks = dict(_looks(batch, given, len(self.places), wanted)) if wanted else {}
        return Seen(
            tokens=self.tokens + len(spliced.tokens),
            places=tuple(places),
            kept={**self.kept, **dict(zip(tubelets, steps, strict=bool(spliced.kept)))},
            looks={**self.looks, **looks},
            given=_placed(given),
            memory=self.memory,
            stored=self.stored,
        )

    def ingested(self, seconds: Mapping[str, float]) -> Seen:
        """All of it stays in a memory, which spent so much time by stage on the last part."""
        spent = {stage: self.memory.get(stage, 0.0) + value for stage, value in seconds.items()}
        return replace(self, memory={"tokens": self.tokens, "decode media": self.given.seconds, **spent})

    def by_item(self) -> list[range]:
        """The places of each of the given items that were read."""
        ranges, start = list[range](), 0
        for item in self.given.items:
            stop = min(start + item.slots, len(self.places))
            ranges.append(range(start, stop))
            start = stop
        return ranges

    def with_looks(self, most: int) -> Seen:
        """With no more bytes of pictures than that, spread evenly."""
        every = next(n for n in range(1, len(self.looks) + 2) if sum(map(len, _each(self.looks, n).values())) <= most)
        return replace(self, looks=_each(self.looks, every))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "tokens": self.tokens,
            "places": [[p.kind, p.start, p.tokens, p.token, p.items, p.frames, p.trims] for p in self.places],
            "kept": [[number, *mask.shape, _packed(mask)] for number, mask in self.kept.items()],
            "looks": {str(number): base64.b64encode(picture).decode() for number, picture in self.looks.items()},
            "given": self.given.to_dict(),
            "memory": dict(self.memory),
            "stored": dict(self.stored),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Seen:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for what is not of its form."""
        return cls(
            tokens=values["tokens"],
            places=tuple(
                Place(
                    kind=kind,
                    start=start,
                    tokens=tokens,
                    token=token,
                    items=items,
                    frames=tuple(frames),
                    trims=tuple((a, b) for a, b in trims),
                )
                for kind, start, tokens, token, items, frames, trims in values["places"]
            ),
            kept={number: _unpacked(bits, rows, cols) for number, rows, cols, bits in values["kept"]},
            looks={int(number): base64.b64decode(picture) for number, picture in values["looks"].items()},
            given=Given.from_dict(values["given"]),
            memory=values["memory"],
            stored=values.get("stored", {}),
        )


def _placed(given: Given) -> Given:
    """Paths from the root on: whoever reads them may stand in another folder."""
    items = tuple(
        item if item.source is None else replace(item, source=str(Path(item.source).absolute())) for item in given.items
    )
    return given if items == given.items else replace(given, items=items)


def _each(looks: Mapping[int, bytes], every: int) -> dict[int, bytes]:
    kept = list(looks)[every - 1 :: every] if every > 1 else list(looks)
    return {number: looks[number] for number in kept}


def _packed(mask: Tensor) -> str:
    return base64.b64encode(np.packbits(mask.numpy()).tobytes()).decode()


def _unpacked(bits: str, rows: int, cols: int) -> Tensor:
    flat = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=rows * cols)
    return torch.from_numpy(flat.astype(bool)).view(rows, cols)


def _wanted(given: Given, first: int, stop: int) -> set[int]:
    """Of the places from `first` to `stop`, those to be pictured: the same ones however the conversation is cut."""
    pictured = [number for number, item in enumerate(given.items) if item.kind != "audio"]
    share = max(1, LOOKS // max(1, len(pictured)))
    wanted, start = set[int](), 0
    for number, item in enumerate(given.items):
        stop_item = start + item.slots
        if number in pictured[:LOOKS]:
            chosen = range(start, stop_item, max(1, -(-item.slots // share)))
            wanted.update(place for place in chosen if first <= place < stop)
        start = stop_item
    return wanted


def _looks(batch: Batch, given: Given, before: int, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Pictures of some of a batch's places: of an image, of its last tile (the whole, small), of a tubelet's first
    frame.
    """
    media = batch.media
    patches = media.patches.split(media.grids.prod(-1).tolist())
    sizes = media.clips[:, 1:].repeat_interleave(media.clips[:, 0], 0)
    tubelets = media.tubelets.split(sizes.prod(-1).tolist())
    for number, slot in enumerate(batch.slots, before):
        if number in wanted and slot.kind != "audio":
            last = slot.first + slot.count - 1
            rows, grid = (patches[last], media.grids[last]) if slot.kind == "image" else (tubelets[last], sizes[last])
            yield number, _jpeg(rows, (int(grid[0]), int(grid[1])), given.rules["image"]["pixels"])


def _jpeg(patches: Float[Tensor, "patches pixels"], grid: tuple[int, int], rule: Mapping[str, Any]) -> bytes:
    """A picture of its patches (of a tubelet: of the first frame's), small."""
    (rows, cols), side = grid, rule["patch"]
    first = patches[:, : 3 * side * side].float().cpu().view(rows, cols, 3, side, side)
    pixels = first.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * side, cols * side)
    scale = min(1.0, SIDE / max(pixels.shape[2:]))
    size = [max(1, round(length * scale)) for length in pixels.shape[2:]]
    small = F.interpolate(pixels, size, mode="area")[0].permute(1, 2, 0)
    small = small * torch.tensor(rule["std"]) + torch.tensor(rule["mean"])
    held = io.BytesIO()
    Image.fromarray((small.clamp(0, 1) * 255).round().byte().numpy()).save(held, "JPEG", quality=75)
    return held.getvalue()
