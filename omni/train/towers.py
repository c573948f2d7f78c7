"""Stages in which a tower learns alone: the vision tower to tell what each patch shows, the audio tower to spell."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from encoders.vision import RadioVit
from omni.train.data import charts, clips, documents, fonts, screens
from omni.train.data.example import Film, Picture
from omni.train.data.page import CHARS, FIELDS
from omni.train.loop import Run, Schedule
from omni.train.readers import (
    FILM_FIELDS,
    VisionReader,
    field_accuracy,
    field_loss,
    film_fields,
    film_media,
    picture_fields,
    picture_media,
)
from omni.train.shape import VISION
from processors.image import PixelRule

RULE = PixelRule()
FILMS = 12  # clips a step
READING = 6000  # steps after which small blocks full of text are most of what is seen, and clips come seldom


def some_pictures(rng: Random, faces: tuple[tuple[str, str], ...], patches: int, share: float = 1.0) -> list[Picture]:
    """Documents for the most part, charts and screens, of about so many patches in all."""
    made: list[Picture] = []
    left = patches
    while left > 0:
        kind = rng.random()
        if kind < 0.07 * share:
            picture = charts.chart(rng, faces)[0]
        elif kind < 0.15 * share:
            picture = screens.screen(rng, faces)[0]
        else:
            picture = documents.document(rng, faces, patches=640 if share else 240)[1]
        made.append(picture)
        left -= picture.fields.shape[0] * picture.fields.shape[1]
    return made


def some_blocks(rng: Random, faces: tuple[tuple[str, str], ...], patches: int) -> list[Picture]:
    """Blocks of text for the most part, of 100 patches or fewer: a third of the work a character of whole pages."""
    made = some_pictures(rng, faces, 1) if rng.random() < 0.5 else []
    left = patches - sum(picture.fields.shape[0] * picture.fields.shape[1] for picture in made)
    while left > 0:
        kinds = (documents.block,) if rng.random() < 0.85 else documents.KINDS
        picture = documents.document(rng, faces, patches=110 if len(kinds) == 1 else 200, kinds=kinds)[1]
        made.append(picture)
        left -= picture.fields.shape[0] * picture.fields.shape[1]
    return made


def some_films(rng: Random, count: int) -> list[Film]:
    """Short clips."""
    made: list[Film] = []
    for _ in range(count):
        times, size = tuple(0.5 * index for index in range(rng.choice((2, 4, 4)))), rng.choice(clips.SIZES)
        actors, _ = clips.script(rng, (*times, *(times[-1] + 0.5 * i for i in range(1, 5))), size)
        made.append(clips.film(actors, times, size, rng))
    return made


def vision(
    folder: Path, *, steps: int = 15000, patches: int = 3000, seed: int = 1, quiet: bool = False
) -> VisionReader:
    """The vision tower alone, on characters and marks in patches of pictures and of clips."""
    torch.manual_seed(seed)
    reader = VisionReader(RadioVit(VISION))
    run = Run(reader, Schedule(steps=steps, rate=2e-3, matrix_rate=2e-3, warmup=100), folder, "vision tower")
    run.resume()
    faces = fonts.faces()

    def objective(step: int) -> dict[str, Tensor]:
        rng = Random(f"{seed} vision {step}")
        if step < READING:
            pictures = some_pictures(rng, faces, patches, share=0.0 if step < 150 else 1.0)
        else:
            pictures = some_blocks(rng, faces, patches)
        loss = field_loss(reader.pictures(picture_media(pictures, RULE)), picture_fields(pictures), FIELDS)
        if step >= READING and step % 5:
            return {"loss": loss, "pictures": loss}
        films = some_films(rng, FILMS)
        seen = field_loss(reader.films(film_media(films)), film_fields(films), FILM_FIELDS)
        return {"loss": loss + seen, "pictures": loss, "films": seen}

    rng = Random(f"{seed} vision held out")
    pictures, films = some_pictures(rng, fonts.faces(held_out=True), 12000), some_films(rng, 8)

    def evaluate() -> dict[str, float]:
        right = field_accuracy(reader.pictures(picture_media(pictures, RULE)), picture_fields(pictures), FIELDS)
        seen = field_accuracy(reader.films(film_media(films)), film_fields(films), FILM_FIELDS)
        return {
            "held_out_characters": round(right[0], 4),
            "held_out_third": round(right[2], 4),
            "held_out_shapes": round(right[CHARS], 4),
            "held_out_film_shapes": round(seen[0], 4),
            "held_out_film_colours": round(seen[1], 4),
        }

    run.train(objective, evaluate=evaluate, evaluate_every=250, quiet=quiet)
    return reader
