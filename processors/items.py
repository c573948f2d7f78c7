"""Items: each kind of media opened for a conversation: measured from its header, laid out, then made into tensors.

An opened item answers three questions in turn. `sizes`: which images share the budget. `layout`: its text and slots,
once the grids are given. `media`: its numbers; only this decodes. The layout has as many tokens as what is then made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from processors import audio, image
from processors.batch import Kind as SlotKind
from processors.batch import Media
from processors.chat import Item
from processors.image import Grid
from processors.limits import Limits, MediaError
from processors.media import open_picture, picture_size
from processors.pdf import Document
from processors.rules import Rules
from processors.sound import SoundSource, Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A slot to be: `count` items of a kind that become `tokens` features (after pruning, in sum over a clip)."""

    kind: SlotKind
    count: int
    tokens: int


Layout = list[str | Place]
PIECE = 4096  # patches of pages that are drawn together, at least: a thousand tokens


@runtime_checkable
class Opened(Protocol):
    """An item of media, opened and measured."""

    @property
    def kind(self) -> str:
        """image, document, video or audio."""
        ...

    @property
    def name(self) -> str:
        """For messages and plans."""
        ...

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) in pixels of the pictures and pages that share the budget."""
        ...

    def layout(self, grids: Sequence[Grid]) -> Layout:
        """Text and slots in order, given a grid for each size."""
        ...

    def details(self, grids: Sequence[Grid]) -> dict[str, Any]:
        """What a plan says of it."""
        ...

    def media(self, grids: Sequence[Grid]) -> Media:
        """The numbers, decoded now."""
        ...

    def close(self) -> None:
        """Free what is open."""
        ...


def image_place(grid: Grid, rules: Rules) -> Place:
    """The slot of one picture: one item, or its tiles."""
    if isinstance(rules.image, image.TileRule):
        count = image.tile_count(grid, rules.image)
        each = (rules.image.size // rules.pixels.patch // rules.pixels.shuffle) ** 2
        return Place(kind="image", count=count, tokens=count * each)
    return Place(kind="image", count=1, tokens=grid[0] * grid[1] // rules.pixels.shuffle**2)


def image_media(pixels: np.ndarray, grid: Grid, rules: Rules) -> Media:
    """Patches of one picture, or of its tiles."""
    if isinstance(rules.image, image.TileRule):
        side, count = rules.image.size // rules.pixels.patch, image.tile_count(grid, rules.image)
        return Media(patches=image.tiles(pixels, rules.image, grid), grids=torch.tensor([[side, side]] * count))
    return Media(patches=image.patches(pixels, grid, rules.pixels), grids=torch.tensor([grid]))


@dataclass(slots=True)
class Picture:
    """One picture."""

    item: Item
    rules: Rules
    limits: Limits
    kind: str = "image"

    @property
    def name(self) -> str:
        return self.item.name

    def sizes(self) -> list[tuple[int, int]]:
        return [picture_size(self.item.thing, self.limits)]

    def layout(self, grids: Sequence[Grid]) -> Layout:
        return ["<img>", image_place(grids[0], self.rules), "</img>"]

    def details(self, grids: Sequence[Grid]) -> dict[str, Any]:
        width, height = self.sizes()[0]
        return {"width": width, "height": height, "grid": grids[0]}

    def media(self, grids: Sequence[Grid]) -> Media:
        return image_media(open_picture(self.item.thing, self.limits), grids[0], self.rules)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Pages:
    """A document: its pages in order, each drawn at the size that the budget gives it."""

    item: Item
    rules: Rules
    document: Document
    pages: list[int] = field(default_factory=list)
    kind: str = "document"

    def __post_init__(self) -> None:
        count = len(self.document)
        asked = self.item.options.get("pages", range(1, count + 1))
        listed: list[Any] = list(asked) if isinstance(asked, list | tuple | range | np.ndarray) else [None]
        if any(isinstance(page, bool) or not isinstance(page, int | np.integer) for page in listed):
            raise ValueError(f"document: {self.name}: pages {asked!r:.80} came; want their numbers from 1, as [1, 3]")
        self.pages = [int(page) - 1 for page in listed]
        wrong = [page + 1 for page in self.pages if not 0 <= page < count]
        if wrong or not self.pages:
            raise ValueError(f"document: {self.name}: pages {wrong or 'none'} asked for; it has 1 to {count}")

    @property
    def name(self) -> str:
        return self.item.name

    def sizes(self) -> list[tuple[int, int]]:
        scale = self.rules.page_dpi / 72
        sizes = list[tuple[int, int]]()
        for page in self.pages:
            width, height = self.document.size(page)
            drawn, own = (max(1, round(width * scale)), max(1, round(height * scale))), self.document.pixels(page)
            sizes.append(own if own and own[0] * own[1] < drawn[0] * drawn[1] else drawn)  # never enlarged
        return sizes

    def layout(self, grids: Sequence[Grid]) -> Layout:
        patch = self.rules.pixels.patch
        for page, (rows, cols) in zip(self.pages, grids, strict=True):
            self.document.check_pixels(page, cols * patch, rows * patch)
        return [part for number, grid in enumerate(grids) for part in self._told(number, grid)]

    def _told(self, number: int, grid: Grid) -> Layout:
        page = self.pages[number]
        own = self.document.label(page)
        own = own if re.fullmatch(r"[\w .,:/()-]{1,32}", own) else str(page + 1)  # a file may write <|im_end|> there
        label = self.rules.page_label.format(label=own, number=page + 1)
        return [("\n" if number else "") + label + "<img>", image_place(grid, self.rules), "</img>"]

    def details(self, grids: Sequence[Grid]) -> dict[str, Any]:
        patch = self.rules.pixels.patch
        widths = [self.document.size(page)[0] for page in self.pages]
        dpi = [round(grid[1] * patch * 72 / width, 1) for grid, width in zip(grids, widths, strict=True)]
        pages = [page + 1 for page in self.pages]
        return {"pages": pages, "pages_in_file": len(self.document), "grids": list(grids), "effective_dpi": dpi}

    def media(self, grids: Sequence[Grid]) -> Media:
        return Media.pack([self._drawn(number, grid) for number, grid in enumerate(grids)])

    def _drawn(self, number: int, grid: Grid) -> Media:
        patch = self.rules.pixels.patch
        pixels = self.document.render(self.pages[number], grid[1] * patch, grid[0] * patch)
        return image_media(pixels, grid, self.rules)

    def pieces(self, grids: Sequence[Grid]) -> Iterator[tuple[Layout, Media]]:
        """A few pages at a time, each with its label, drawn when they are asked for."""
        layout, drawn, patches = list[str | Place](), list[Media](), 0
        for number, grid in enumerate(grids):
            layout += self._told(number, grid)
            drawn.append(self._drawn(number, grid))
            patches += len(drawn[-1].patches)
            if patches >= PIECE or number == len(grids) - 1:
                yield layout, Media.pack(drawn)
                layout, drawn, patches = [], [], 0

    def close(self) -> None:
        self.document.close()


@dataclass(slots=True)
class Recording:
    """A sound: whole, or in overlapping chunks where it is long."""

    name: str
    rules: Rules
    source: SoundSource
    kind: str = "audio"

    def __post_init__(self) -> None:
        if self.rules.audio is None:
            raise ValueError(f"audio: {self.name}: this model hears nothing; leave sounds out")

    @property
    def rule(self) -> audio.AudioRule:
        assert self.rules.audio
        return self.rules.audio

    def sizes(self) -> list[tuple[int, int]]:
        return []

    def layout(self, grids: Sequence[Grid]) -> Layout:
        with told_of(self.name):
            tokens = audio.num_tokens(self.source.samples, self.rule)
        energy = torch.zeros(-(-self.source.samples // self.rule.mel.block))
        chunks = audio.chunks(self.source.samples, energy, self.rule)  # their number depends on the length alone
        return ["<so_start>", Place(kind="audio", count=len(chunks), tokens=tokens), "<so_end>"]

    def details(self, grids: Sequence[Grid]) -> dict[str, Any]:
        return {"seconds": round(self.source.samples / self.rule.mel.rate, 2)}

    def media(self, grids: Sequence[Grid]) -> Media:
        samples = self.source.read()
        with told_of(self.name):
            return sound_media(samples, self.rule)

    def pieces(self) -> Iterator[tuple[Layout, Media]]:
        """The recording chunk by chunk, decoded as they are asked for; holds one at a time."""
        with told_of(self.name):
            yield from sound_pieces(self.source, Tape(self.source), 0, self.source.samples, self.rule)

    def close(self) -> None:
        pass


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Errors about samples say whose they are; those about files do already."""
    try:
        yield
    except MediaError:
        raise
    except ValueError as error:
        raise ValueError(f"audio: {name}: {error}") from None


def sound_media(samples: Tensor, rule: audio.AudioRule) -> Media:
    """Mel frames of a recording's chunks, and what each shares with its neighbours."""
    made = list(audio.features(samples, rule))
    return Media(
        mels=torch.cat([mels for _, mels in made]),
        frames=torch.tensor([len(mels) for _, mels in made]),
        trims=torch.tensor([[chunk.trim_start, chunk.trim_end] for chunk, _ in made]),
    )


def sound_pieces(
    source: SoundSource, tape: Tape, start: int, stop: int, rule: audio.AudioRule
) -> Iterator[tuple[Layout, Media]]:
    """`sound_media` of samples start to stop chunk by chunk, with its text; decoded twice to be cut at quiet points."""
    energy = None
    if rule.chunk.quiet and rule.is_long(stop - start):
        ahead, step = Tape(source), 1024 * rule.mel.block
        parts = (ahead.read(at, min(at + step, stop)) for at in range(start, stop, step))
        energy = torch.cat([audio.block_energy(part, rule.mel) for part in parts])
    chunks = audio.chunks(stop - start, energy, rule)
    for number, chunk in enumerate(chunks):
        mels = audio.mel_features(tape.read(start + chunk.start, start + chunk.end), rule.mel)
        trims = (chunk.trim_start, chunk.trim_end)
        tokens = -(-len(mels) // audio.STRIDE) - sum(trims)
        layout: Layout = [Place(kind="audio", count=1, tokens=tokens)]
        layout = ["<so_start>", *layout] if number == 0 else layout
        layout = [*layout, "<so_end>"] if number == len(chunks) - 1 else layout
        yield layout, Media(mels=mels, frames=torch.tensor([len(mels)]), trims=torch.tensor([trims]))


_RANGES = {torch.int16: 2.0**15, torch.int32: 2.0**31, torch.uint8: 2.0**7}  # uint8 has its silence at 128


@dataclass(slots=True)
class Samples:
    """Sound given as an array at a rate: mono, or two axes of which the shorter holds the channels.

    Floats in -1..1 as they are, int16, int32 and uint8 over their whole range. Raises ValueError for others, for
    samples that are no numbers, and for a rate that is not above 0.
    """

    array: Any
    rate: int
    samples: int = 0
    name: str = "samples"

    def __post_init__(self) -> None:
        positive(f"audio: {self.name}", "rate", self.rate)
        array, form = self.array, getattr(self.array, "dtype", type(self.array).__name__)
        try:
            if not isinstance(array, Tensor):
                array = np.array(array)
                array = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
            array = array.detach().cpu()
        except TypeError:
            array = torch.zeros(0, 0, 0)  # of text or objects
        if array.ndim not in (1, 2) or not (array.dtype.is_floating_point or array.dtype in _RANGES):
            raise ValueError(
                f"audio: an array of shape {np.shape(self.array)} and {form} came; want floats in -1..1, int16, int32 "
                "or uint8, (samples,) or (channels, samples)"
            )
        if not array.dtype.is_floating_point:
            array = (array.double() - (128 if array.dtype == torch.uint8 else 0)) / _RANGES[array.dtype]
        if array.ndim == 2:
            array = array.float().mean(0 if array.shape[0] < array.shape[1] else 1)
        self.array = array.float()
        if not bool(self.array.isfinite().all()):
            raise ValueError(f"audio: {self.name}: samples that are no numbers (NaN, inf) came; leave them out")
        self.samples = -(-len(self.array) * 16000 // self.rate)

    def read(self) -> Tensor:
        if self.rate == 16000:
            return self.array
        from torchaudio.functional import resample

        return resample(self.array, self.rate, 16000)

    def stream(self) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.read()


def positive(where: str, name: str, value: object) -> float:
    """A finite number above 0. Raises ValueError that says where which number was wanted."""
    number = float(value) if isinstance(value, int | float | np.number) else 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{where}: {name} {value!r:.80} came; want a number above 0")
    return number
