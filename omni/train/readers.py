"""Towers trained alone, on what the renderer knows: characters and marks in patches, letters in sound (CTC).

A tower that reads before it is joined to a language model saves most of the training (dense objectives teach with
every patch, answers with a few tokens a page). The heads are dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.vision import RadioVit
from omni.train.data.example import Film, Picture
from omni.train.data.page import CHARS, FIELDS, SHAPES
from omni.train.loop import products
from omni.train.packing import paired
from omni.train.stand_in import FILM_FIELDS
from processors import image
from processors.batch import Media
from processors.video import REFERENCE, VideoRule, tubelets

BLANK = 0.4  # weight of a patch's empty slots, which are most


def picture_media(pictures: Sequence[Picture], rule: image.PixelRule) -> Media:
    """Pictures that lie on whole patches already → packed patches."""
    parts, grids = [], []
    for picture in pictures:
        grid = (picture.image.height // 16, picture.image.width // 16)
        parts.append(image.patches(np.asarray(picture.image), grid, rule))
        grids.append(grid)
    return Media(patches=torch.cat(parts), grids=torch.tensor(grids))


class VisionReader(nn.Module):
    """A vision tower with a head for the fields of each patch, and one for those of each tubelet patch."""

    def __init__(self, tower: RadioVit) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(tower.width, eps=1e-6)
        self.head = nn.Linear(tower.width, sum(FIELDS))
        self.film_head = nn.Linear(tower.width, sum(FILM_FIELDS))

    def pictures(self, media: Media) -> Tensor:
        """Logits of all fields, (patches, classes)."""
        with products():
            x = self.tower.encode(self.tower.embed_images(media.patches, media.grids), media.grids)
            return self.head(self.norm(x))

    def films(self, media: Media) -> Tensor:
        """The same for the patches of tubelets."""
        grids = media.clips[:, 1:].repeat_interleave(media.clips[:, 0], 0)
        with products():
            x = self.tower.encode(self.tower.embed_tubelets(media.tubelets, grids), grids)
            return self.film_head(self.norm(x))


def field_loss(logits: Tensor, fields: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy over all fields; empty ones weigh less."""
    total, weight = torch.zeros(()), torch.zeros(())
    for part, target in zip(logits.float().split(list(sizes), -1), fields.T, strict=True):
        each = F.cross_entropy(part, target, reduction="none")
        weights = torch.where(target > 0, 1.0, BLANK)
        total, weight = total + (each * weights).sum(), weight + weights.sum()
    return total / weight


def field_accuracy(logits: Tensor, fields: Tensor, sizes: Sequence[int]) -> list[float]:
    """Share of the non-empty entries that are right, a field."""
    shares = []
    for part, target in zip(logits.split(list(sizes), -1), fields.T, strict=True):
        seen = target > 0
        shares.append(float((part.argmax(-1) == target)[seen].float().mean()) if bool(seen.any()) else float("nan"))
    return shares


def picture_fields(pictures: Sequence[Picture]) -> Tensor:
    """(patches, fields) of all, packed as their patches are."""
    return torch.from_numpy(np.concatenate([p.fields.reshape(-1, len(FIELDS)) for p in pictures])).long()


def film_media(films: Sequence[Film], rule: VideoRule = REFERENCE) -> Media:
    """Films whose frames lie on whole patches → packed tubelets."""
    parts, clips = [], []
    for film in films:
        grid = (film.frames.shape[1] // 16, film.frames.shape[2] // 16)
        made = tubelets(film.frames, grid, rule)
        parts.append(made)
        clips.append((len(made) // (grid[0] * grid[1]), *grid))
    return Media(tubelets=torch.cat(parts), clips=torch.tensor(clips))


def film_fields(films: Sequence[Film]) -> Tensor:
    """(patches, fields) of all tubelets: shape and colour in the first frame, then in the second."""
    parts = [paired(film.fields).reshape(-1, len(FILM_FIELDS)) for film in films]
    return torch.from_numpy(np.concatenate(parts)).long()


assert len(SHAPES) < FIELDS[CHARS]
