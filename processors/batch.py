"""Batch: the one packed type that the processor makes and the model takes.

Sequences lie one behind the other (`tokens`, `lengths`); so do the patches of all images, the tubelets of all clips
and the mel frames of all sounds. Each item of media has one `Slot`: the position of its placeholder in `tokens` and
the run of items whose features it stands for. A slot is found by its position, never by its id, so a placeholder's
text typed by a user stays text; and it is as long as the features that arrive, so pruning never disagrees with the
ids.

Plain tensors and no model: `processors` makes it, `omni.splice` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from processors.given import Given

Kind = Literal["image", "tubelet", "audio"]
KINDS: tuple[Kind, ...] = ("image", "tubelet", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One placeholder: which features go to which position.

    position: index into the batch's packed `tokens`; that id is replaced by the features. kind: image (an item is one
    image or tile), tubelet (one step of a clip) or audio (one sound or chunk). first, count: the items of that kind
    whose features stand here, in order (a tiled image is one slot of several items).
    """

    position: int
    kind: Kind
    first: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Pixels and sound of a batch, packed. Empty tensors where a kind is absent.

    patches: images' patches, row-major, each (channel, y, x) flattened; grids: (rows, cols) of each image, in patches.
    tubelets: clips' patches, frames of a tubelet concatenated; clips: (steps, rows, cols) of each clip, in patches;
    rates: the share of each clip's tokens that EVS removes (0: none).
    mels: log-mel frames of all sounds; frames: how many each has; trims: encoder tokens to drop at the (start, end) of
    each, where chunks of one recording overlap. Rates and trims default to zeros.
    """

    patches: Float[Tensor, "patches pixels"] = field(default_factory=lambda: torch.zeros(0, 768))
    grids: Int[Tensor, "images 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    tubelets: Float[Tensor, "tubelets pixels2"] = field(default_factory=lambda: torch.zeros(0, 1536))
    clips: Int[Tensor, "clips 3"] = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.long))
    rates: Float[Tensor, " clips"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    mels: Float[Tensor, "frames mels"] = field(default_factory=lambda: torch.zeros(0, 128))
    frames: Int[Tensor, " sounds"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    trims: Int[Tensor, "sounds 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))

    def __post_init__(self) -> None:
        if not len(self.rates):
            object.__setattr__(self, "rates", torch.zeros(len(self.clips), dtype=torch.float64))
        if not len(self.trims):
            object.__setattr__(self, "trims", torch.zeros(len(self.frames), 2, dtype=torch.long))
        for items, values, name in (
            (self.grids, self.patches, "patches"),
            (self.clips, self.tubelets, "tubelets"),
        ):
            wanted = int(items.prod(-1).sum())
            if wanted != len(values):
                raise ValueError(
                    f"Media.{name}: {len(values)} rows came, the grids {items.tolist()} want {wanted}; "
                    "pass each item's patches row-major, one item behind the other"
                )
        if int(self.frames.sum()) != len(self.mels):
            raise ValueError(
                f"Media.mels: {len(self.mels)} frames came, `frames` {self.frames.tolist()} want "
                f"{int(self.frames.sum())}; "
                "pass each sound's frames, one sound behind the other"
            )
        if len(self.rates) != len(self.clips):
            raise ValueError(
                f"Media.rates: {len(self.rates)} rates came for {len(self.clips)} clips; give each clip its own"
            )
        if len(self.trims) != len(self.frames):
            raise ValueError(
                f"Media.trims: {len(self.trims)} pairs came for {len(self.frames)} sounds; use zeros where nothing "
                "overlaps"
            )

    @property
    def counts(self) -> dict[Kind, int]:
        """How many items of each kind there are (a clip has one tubelet a step)."""
        return {"image": len(self.grids), "tubelet": int(self.clips[:, 0].sum()), "audio": len(self.frames)}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Media:
        """Move to a device; `dtype` for pixels and mels only."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        if dtype is not None:
            moved |= {name: moved[name].to(dtype) for name in ("patches", "tubelets", "mels")}
        return Media(**moved)

    @classmethod
    def pack(cls, items: Sequence[Media]) -> Media:
        """Put media one behind the other; empty kinds adapt to the widths of the others."""
        packed = {}
        for f in fields(cls):
            parts = [getattr(item, f.name) for item in items]
            parts = [part for part in parts if len(part)] or parts[:1]
            if parts:
                packed[f.name] = torch.cat(parts)
        return cls(**packed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed conversations, ready for the model.

    tokens: ids of all sequences, one behind the other, one placeholder a slot (the features' number is not known here).
    lengths: ids of each sequence. slots: in order of position. media: what the slots stand for, in the slots' order.
    given: what each sequence was made of; empty for a batch made by hand.
    """

    tokens: Int[Tensor, " ids"]
    lengths: Int[Tensor, " sequences"]
    slots: tuple[Slot, ...] = ()
    media: Media = field(default_factory=Media)
    given: tuple[Given, ...] = ()

    def __post_init__(self) -> None:
        if self.given and len(self.given) != len(self.lengths):
            raise ValueError(
                f"Batch.given: {len(self.given)} records came for {len(self.lengths)} sequences; want one each, or none"
            )
        if int(self.lengths.sum()) != len(self.tokens):
            raise ValueError(
                f"Batch.tokens: {len(self.tokens)} ids came, the lengths {self.lengths.tolist()} want "
                f"{int(self.lengths.sum())}; pass the sequences one behind the other"
            )
        if len(self.lengths) and int(self.lengths.min()) < 1:
            raise ValueError(
                f"Batch.lengths: {self.lengths.tolist()} holds an empty sequence; give each at least one id"
            )
        positions = [slot.position for slot in self.slots]
        if any(b <= a for a, b in pairwise(positions)):
            raise ValueError(f"Batch.slots: positions {positions} do not rise; give one slot a position, in order")
        if positions and not (positions[0] >= 0 and positions[-1] < len(self.tokens)):
            raise ValueError(
                f"Batch.slots: positions {positions} lie outside the {len(self.tokens)} ids; count in packed ids"
            )
        for kind, wanted in self.media.counts.items():
            runs = [(slot.first, slot.count) for slot in self.slots if slot.kind == kind]
            expected = 0
            for first, count in runs:
                if first != expected or count < 1:
                    raise ValueError(
                        f"Batch.slots: {kind} runs {runs} leave a gap or overlap at item {expected}; "
                        "let each slot take the items that follow the slot before"
                    )
                expected = first + count
            if expected != wanted:
                raise ValueError(
                    f"Batch.slots: {kind} slots take {expected} items, the media hold {wanted}; give every item a slot"
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; `dtype` for pixels and mels only."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            lengths=self.lengths.to(device),
            media=self.media.to(device, dtype),
        )

    @classmethod
    def pack(cls, batches: Sequence[Batch]) -> Batch:
        """Put batches one behind the other; the inverse of iterating."""
        if not batches:
            raise ValueError("Batch.pack: no batch came; pass at least one")
        slots: list[Slot] = []
        offset, items = 0, dict.fromkeys(KINDS, 0)
        for batch in batches:
            slots += [
                replace(slot, position=slot.position + offset, first=slot.first + items[slot.kind])
                for slot in batch.slots
            ]
            offset += len(batch.tokens)
            items = {kind: items[kind] + count for kind, count in batch.media.counts.items()}
        return cls(
            tokens=torch.cat([batch.tokens for batch in batches]),
            lengths=torch.cat([batch.lengths for batch in batches]),
            slots=tuple(slots),
            media=Media.pack([batch.media for batch in batches]),
            given=tuple(given for batch in batches for given in batch.given or [Given()] * len(batch))
            if any(batch.given for batch in batches)
            else (),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Each sequence as a batch of its own. Clips are taken whole: a clip's tubelets belong to one sequence."""
        ends = self.lengths.cumsum(0).tolist()
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            yield self._between(start, end, self.given[i : i + 1])

    def _between(self, start: int, end: int, given: tuple[Given, ...]) -> Batch:
        mine = [slot for slot in self.slots if start <= slot.position < end]
        spans = {}
        for kind in KINDS:
            runs = [slot for slot in mine if slot.kind == kind]
            spans[kind] = (runs[0].first, runs[-1].first + runs[-1].count) if runs else (0, 0)
        media = self.media
        image, audio = slice(*spans["image"]), slice(*spans["audio"])
        steps = media.clips[:, 0].cumsum(0).tolist()
        first_clip = sum(end <= spans["tubelet"][0] for end in steps)
        last_clip = sum(end <= spans["tubelet"][1] for end in steps)
        clip = slice(first_clip, last_clip) if spans["tubelet"][1] else slice(0, 0)
        first = {kind: span[0] for kind, span in spans.items()}
        return Batch(
            tokens=self.tokens[start:end],
            lengths=torch.tensor([end - start], device=self.lengths.device),
            slots=tuple(replace(s, position=s.position - start, first=s.first - first[s.kind]) for s in mine),
            media=Media(
                patches=_rows(media.patches, media.grids.prod(-1), image),
                grids=media.grids[image],
                tubelets=_rows(media.tubelets, media.clips.prod(-1), clip),
                clips=media.clips[clip],
                rates=media.rates[clip],
                mels=_rows(media.mels, media.frames, audio),
                frames=media.frames[audio],
                trims=media.trims[audio],
            ),
            given=given,
        )


def _rows(values: Tensor, sizes: Tensor, items: slice) -> Tensor:
    """The rows of the chosen items out of a packed tensor."""
    edges = [0, *sizes.cumsum(0).tolist()]
    return values[edges[items.start] : edges[items.stop]]
