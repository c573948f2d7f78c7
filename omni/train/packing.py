"""Examples → packed batches with the tokens to learn marked, laid out as the processor lays them out.

The text around media (labels, brackets, frames' lines) and the turns are those of the chat template and of
`processors`; a test holds the two together. Media may be given by what the renderer knows of them instead of by their
pixels and samples: then the batch holds their sizes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from omni.train.data.example import Example, Film, Medium, Picture, Recording
from omni.train.data.page import CHARS
from omni.train.tokens import tokenizer
from processors import audio, image, video
from processors.batch import Batch, Kind, Media, Slot

PIXELS = image.PixelRule()
SOUND = audio.REFERENCE
START, END, THINK, THOUGHT = 10, 11, 12, 13
IMAGE, IMAGE_START, IMAGE_END, SOUND_TOKEN, SOUND_START, SOUND_END = 18, 21, 22, 27, 28, 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the renderer knows, one entry an item in the batch's order.

    pictures: (rows, cols, fields) of each; blurred: guesses at the same, (guesses, rows, cols, fields); films:
    (tubelets, rows, cols, fields of both frames); sounds: (tokens, fields). bound: of a picture that is a chart, what
    each patch belongs to.
    """

    pictures: tuple[np.ndarray, ...] = ()
    blurred: tuple[np.ndarray, ...] = ()
    films: tuple[np.ndarray, ...] = ()
    sounds: tuple[np.ndarray, ...] = ()
    bound: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch, which of its ids are to be learnt, what is known of its media, and each answer's skill in order."""

    batch: Batch
    learnt: Bool[Tensor, " ids"]
    known: Known
    skills: tuple[str, ...]


@dataclass(slots=True)
class _Parts:
    """A batch in the making."""

    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    count: dict[str, int] = field(default_factory=lambda: {"image": 0, "tubelet": 0, "audio": 0})
    pictures: list[np.ndarray] = field(default_factory=list)
    blurred: list[np.ndarray] = field(default_factory=list)
    films: list[np.ndarray] = field(default_factory=list)
    sounds: list[np.ndarray] = field(default_factory=list)
    bound: list[np.ndarray | None] = field(default_factory=list)

    def write(self, ids: Sequence[int], learnt: bool = False) -> None:
        self.ids += ids
        self.learnt += [learnt] * len(ids)

    def slot(self, kind: str, token: int) -> None:
        self.slots.append(Slot(position=len(self.ids), kind=kind, first=self.count[kind]))  # pyright: ignore[reportArgumentType]  (one of the kinds)
        self.count[kind] += 1
        self.write([token])


class Packer:
    """Lays examples out. drawn: media as pixels and samples; else only as what is known of them. rate: of EVS."""

    def __init__(self, drawn: bool, rate: float = 0.0) -> None:
        self.tokenizer = tokenizer()
        self.drawn, self.rate = drawn, rate
        self.texts: dict[str, list[int]] = {}  # ids of what comes again and again

    def ids(self, text: str) -> list[int]:
        """Ids of a plain text."""
        if text not in self.texts:
            if len(self.texts) > 50_000:
                self.texts.clear()
            self.texts[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.texts[text]

    def __call__(self, examples: Sequence[Example]) -> Packed:
        """One sequence an example, packed."""
        parts, lengths, skills = _Parts(), list[int](), list[str]()
        for example in examples:
            before = len(parts.ids)
            self._example(example, parts)
            lengths.append(len(parts.ids) - before)
            skills += [turn.skill or example.skill for turn in example.turns]
        return Packed(
            batch=Batch(
                tokens=torch.tensor(parts.ids),
                lengths=torch.tensor(lengths),
                slots=tuple(parts.slots),
                media=Media.pack(parts.media) if parts.media else Media(),
            ),
            learnt=torch.tensor(parts.learnt),
            known=Known(
                pictures=tuple(parts.pictures),
                blurred=tuple(parts.blurred),
                films=tuple(parts.films),
                sounds=tuple(parts.sounds),
                bound=tuple(parts.bound),
            ),
            skills=tuple(skills),
        )

    def _example(self, example: Example, parts: _Parts) -> None:
        parts.write([START, *self.ids("system\n"), END, *self.ids("\n")])
        for number, turn in enumerate(example.turns):
            parts.write([START, *self.ids("user\n")])
            for place, medium in enumerate(example.media if number == 0 else ()):
                self._medium(medium, place, parts)
            parts.write([*self.ids(turn.question), END, *self.ids("\n"), START, *self.ids("assistant\n"), THINK])
            last = number == len(example.turns) - 1
            if turn.thinking and last:  # earlier turns' thinking is forgotten, as the template does
                parts.write(self.ids("\n"))
                parts.write([*self.ids(f"{turn.thinking}\n"), THOUGHT, *self.ids("\n")], True)
            else:
                parts.write([THOUGHT])
            parts.write([*self.ids(turn.answer), END], True)
            parts.write(self.ids("\n"))

    def _medium(self, medium: Medium, place: int, parts: _Parts) -> None:
        match medium:
            case Picture():
                label = ("\n" if medium.label and place else "") + medium.label
                parts.write([*self.ids(label), IMAGE_START])
                parts.slot("image", IMAGE)
                parts.write([IMAGE_END])
                parts.pictures.append(medium.fields)
                parts.bound.append(medium.bound)
                parts.blurred.append(np.stack(medium.blurred or (medium.fields,)))
                parts.media.append(self._picture(medium))
            case Film():
                for line in video.tubelet_lines(range(len(medium.times)), None, times=medium.times):
                    parts.write([*self.ids(line), IMAGE_START])
                    parts.slot("tubelet", IMAGE)
                    parts.write([IMAGE_END])
                parts.films.append(paired(medium.fields))
                parts.media.append(self._film(medium))
                if medium.sound is not None:
                    self._medium(medium.sound, place, parts)
            case Recording():
                assert medium.fields is not None
                parts.write([SOUND_START])
                parts.slot("audio", SOUND_TOKEN)
                parts.write([SOUND_END])
                parts.sounds.append(medium.fields)
                parts.media.append(self._sound(medium))

    def _picture(self, picture: Picture) -> Media:
        rows, cols = picture.fields.shape[:2]
        if self.drawn:
            patches = image.patches(np.asarray(picture.image), (rows, cols), PIXELS)
        else:
            patches = torch.empty(rows * cols, 0)
        return Media(patches=patches, grids=torch.tensor([[rows, cols]]))

    def _film(self, film: Film) -> Media:
        steps, rows, cols = -(-len(film.times) // 2), *film.fields.shape[1:3]
        made = video.tubelets(film.frames, (rows, cols)) if self.drawn else torch.empty(steps * rows * cols, 0)
        return Media(
            tubelets=made,
            clips=torch.tensor([[steps, rows, cols]]),
            rates=torch.tensor([self.rate], dtype=torch.float64),
        )

    def _sound(self, sound: Recording) -> Media:
        if self.drawn:
            mels = audio.mel_features(torch.from_numpy(sound.samples))
        else:
            mels = torch.empty(audio.num_frames(len(sound.samples)), 0)
        return Media(mels=mels, frames=torch.tensor([len(mels)]))


def paired(fields: np.ndarray) -> np.ndarray:
    """Fields of frames → shape and colour of both frames of each tubelet, (tubelets, rows, cols, 4)."""
    marks = fields[..., CHARS:]
    if len(marks) % 2:
        marks = np.concatenate((marks, marks[-1:]))
    return np.concatenate((marks[0::2], marks[1::2]), -1)


def expanded(packed: Packed, counts: dict[Kind, list[int]]) -> Bool[Tensor, " tokens"]:
    """Which of the spliced tokens are to be learnt, given the features that arrived for each item."""
    repeats: Int[Tensor, " ids"] = torch.ones(len(packed.learnt), dtype=torch.long)
    for slot in packed.batch.slots:
        repeats[slot.position] = sum(counts[slot.kind][slot.first : slot.first + slot.count])
    return packed.learnt.repeat_interleave(repeats)
