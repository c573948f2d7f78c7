"""The vision tower alone once more: which name, number and bar of a chart are one entry, told patch by patch.

A backbone that sees patches in one row after the other would need to find that a name stands below its bar; a tower
that looks at the whole picture can say it at each patch. What the tower says of other pictures and of clips is held
where it was.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from omni.train import ranks
from omni.train.data import charts, documents, fonts
from omni.train.data.example import Example, Picture, Turn
from omni.train.data.page import BOUND, CLEAR, FIELDS, FINE
from omni.train.joining import Joined, bound_of, fields_of, watched
from omni.train.loop import Run, Schedule, freeze, products
from omni.train.packing import Packed, Packer
from omni.train.readers import field_accuracy, field_loss
from omni.train.stand_in import FILM_FIELDS
from omni.train.towers import some_films
from processors.batch import Media

HELD, TOLD = 2.0, 3.0  # weights: of other pictures and clips staying where they were, of what belongs together
ASKED = (Turn(question="", answer=""),)  # nothing: no backbone is there
WINDOW = 40  # steps whose charts are kept; drawing one costs as much as looking at it


class Charts:
    """Charts, each drawn once and looked at about four times: a step draws a few, and looks at any of the last steps'.

    What a step sees depends on (seed, step) alone. patches: of a step's charts, about.
    """

    def __init__(self, patches: int, seed: int) -> None:
        self.faces, self.patches, self.seed = fonts.faces(), patches, seed
        self.kept: deque[list[Picture]] = deque(maxlen=WINDOW)
        self.next: int | None = None

    def some(self, step: int) -> list[Picture]:
        """A step's charts. A first step, or one out of order, draws all that its window holds."""
        for each in range(step if self.next == step else step + 1 - WINDOW, step + 1):
            rng = Random(ranks.seed(f"{self.seed} charts {each}"))
            self.kept.append(self._until(self.patches // 4, lambda rng=rng: self._drawn(rng)))
        self.next = step + 1
        rng, every = Random(ranks.seed(f"{self.seed} looks {step}")), [chart for few in self.kept for chart in few]
        return self._until(self.patches, lambda: rng.choice(every))

    def _drawn(self, rng: Random) -> Picture:
        return charts.chart(rng, self.faces, how=rng.choice((FINE, FINE, CLEAR)))[0]

    @staticmethod
    def _until(patches: int, make: Callable[[], Picture]) -> list[Picture]:
        """Pictures, until they have so many patches."""
        made = list[Picture]()
        while patches > 0:
            made.append(make())
            patches -= made[-1].fields.shape[0] * made[-1].fields.shape[1]
        return made


def seen(joined: Joined, media: Media) -> Tensor:
    """The tower's output, (patches, width): of pictures, then of clips."""
    with watched(joined.model.vision_norm) as found:
        joined.model.encode(media)
    return found[0]


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
    packer, pool, faces = Packer(drawn=True), Charts(patches, seed), fonts.faces()

    def objective(step: int) -> dict[str, Tensor]:
        rng = Random(ranks.seed(f"{seed} binding {step}"))
        others, left = list[Picture](), patches // 4
        while left > 0:
            others.append(documents.document(rng, faces, patches=left + 200, how=CLEAR)[1])
            left -= others[-1].fields.shape[0] * others[-1].fields.shape[1]
        held = packer([Example(skill="", turns=ASKED, media=(*others, *some_films(rng, 3)))])
        bound = packer([Example(skill="", turns=ASKED, media=tuple(pool.some(step)))])
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
