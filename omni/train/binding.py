"""The vision tower alone once more: which name, number and bar of a chart are one entry, told patch by patch.

A backbone that sees patches in one row after the other would need to find that a name stands below its bar; a tower
that looks at the whole picture can say it at each patch. What the tower says of other pictures and of clips is held
where it was.
"""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from omni.train import ranks
from omni.train.data import charts, documents, fonts
from omni.train.data.example import Example, Picture, Turn
from omni.train.data.page import BOUND, CLEAR, FIELDS, FINE
from omni.train.joining import Joined, bound_of, fields_of
from omni.train.loop import Run, Schedule, freeze, products
from omni.train.packing import Packed, Packer
from omni.train.readers import field_accuracy, field_loss
from omni.train.stand_in import FILM_FIELDS
from omni.train.towers import some_films
from processors.batch import Media

HELD, TOLD = 2.0, 3.0  # weights: of other pictures and clips staying where they were, of what belongs together
ASKED = (Turn(question="", answer=""),)  # nothing: no backbone is there
POOL = 240  # charts that are kept; drawing one costs as much as looking at it


class Charts:
    """Charts, each drawn once and looked at about four times."""

    def __init__(self) -> None:
        self.faces, self.kept = fonts.faces(), deque[Picture](maxlen=POOL)

    def some(self, rng: Random, patches: int) -> list[Picture]:
        """Of about so many patches in all, a quarter of them new."""
        new = patches // 4 if len(self.kept) == POOL else 2 * patches
        while new > 0:
            self.kept.append(charts.chart(rng, self.faces, how=rng.choice((FINE, FINE, CLEAR)))[0])
            new -= self.kept[-1].fields.shape[0] * self.kept[-1].fields.shape[1]
        chosen, left = list[Picture](), patches
        while left > 0:
            chosen.append(rng.choice(self.kept))
            left -= chosen[-1].fields.shape[0] * chosen[-1].fields.shape[1]
        return chosen


def seen(joined: Joined, media: Media) -> Tensor:
    """The tower's output, (patches, width): of pictures, then of clips."""
    model = joined.model
    assert model.vision is not None
    assert model.vision_norm is not None
    frames = media.clips[:, 1:].repeat_interleave(media.clips[:, 0], 0)
    parts = []
    if len(media.grids):
        parts.append(model.vision.embed_images(media.patches, media.grids))
    if len(frames):
        parts.append(model.vision.embed_tubelets(media.tubelets, frames))
    return model.vision_norm(model.vision.encode(torch.cat(parts), torch.cat((media.grids, frames))))


def binding(
    joined: Joined, folder: Path, *, steps: int = 1200, patches: int = 6000, seed: int = 1, quiet: bool = False
) -> None:
    """Train the tower and its heads; patches: of charts a step, a third as many of other pictures and clips."""
    model = joined.model
    assert model.vision is not None
    assert model.vision_norm is not None
    freeze(joined, (model.vision, model.vision_norm, joined.head, joined.film_head, joined.bound_head))
    before = copy.deepcopy(joined).requires_grad_(False)
    run = Run(joined, Schedule(steps=steps, rate=1e-3, matrix_rate=1.5e-3, warmup=50, decay=0.3), folder, "binding")
    run.resume()
    packer, pool, faces = Packer(drawn=True), Charts(), fonts.faces()

    def objective(step: int) -> dict[str, Tensor]:
        rng = Random(ranks.seed(f"{seed} binding {step}"))
        others, left = list[Picture](), patches // 4
        while left > 0:
            others.append(documents.document(rng, faces, patches=left + 200, how=CLEAR)[1])
            left -= others[-1].fields.shape[0] * others[-1].fields.shape[1]
        held = packer([Example(skill="", turns=ASKED, media=(*others, *some_films(rng, 3)))])
        bound = packer([Example(skill="", turns=ASKED, media=tuple(pool.some(rng, patches)))])
        return _losses(joined, before, held, bound)

    rng = Random("binding held out")
    tests = [charts.chart(rng, fonts.faces(held_out=True), how=CLEAR)[0] for _ in range(40)]
    asked = packer([Example(skill="", turns=ASKED, media=tuple(tests))])

    def evaluate() -> dict[str, float]:
        with products():
            guessed = joined.bound_head(seen(joined, asked.batch.media)).float()
        truth = bound_of(asked.known)
        words = fields_of(asked.known.pictures)[:, 0] > 0
        found = field_accuracy(guessed[words], truth[words], BOUND)
        return {
            f"held_out_{name}": round(value, 3)
            for name, value in zip(("ranks", "halves", "colours", "last_ranks"), found, strict=True)
        }

    run.train(objective, evaluate=evaluate, evaluate_every=100, quiet=quiet)


def _losses(joined: Joined, before: Joined, held: Packed, bound: Packed) -> dict[str, Tensor]:
    """held: what the tower shall go on to see as before; bound: charts."""
    with products():
        with torch.no_grad():
            old = seen(before, held.batch.media)
        x, charted = seen(joined, held.batch.media), seen(joined, bound.batch.media)
        told = field_loss(joined.bound_head(charted), bound_of(bound.known), BOUND)
        texts, films = fields_of(held.known.pictures), fields_of(held.known.films)
        fields = field_loss(joined.head(x[: len(texts)]), texts, FIELDS)
        fields = fields + field_loss(joined.head(charted), fields_of(bound.known.pictures), FIELDS)
        filmed = field_loss(joined.film_head(x[len(texts) :]), films, FILM_FIELDS)
    moved = (x - old).float().square().mean() / old.float().var()
    loss = TOLD * told + fields + filmed + HELD * moved
    return {"loss": loss, "bound": told, "fields": fields, "films": filmed, "moved": moved}
