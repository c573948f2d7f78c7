"""What the renderer knows, as features: it stands in for the towers while the language model learns to use them.

A language model that learns from exact fields needs no pixels drawn and no tower run, which is most of the cost, and
its towers' projectors can then be taught these same features directly. Each token's feature is the sum of learned
vectors: one for every character, shape and colour in each of its four patches, one for its row and one for its column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omni.splice import Features
from omni.train.data import sounds
from omni.train.data.page import CHARS, FIELDS
from omni.train.packing import Known

FILM_FIELDS = FIELDS[CHARS:] * 2  # shape and colour in both frames of a tubelet
SIDE = 48  # rows and columns of tokens told apart


class Table(nn.Module):
    """Sums of learned vectors for several fields; 0 in a field is nothing."""

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self.register_buffer("offsets", torch.from_numpy(starts), persistent=False)
        self.embed = nn.Parameter(torch.empty(int(sum(sizes)), width).normal_(std=0.25))

    def forward(self, fields: Int[Tensor, "tokens fields"]) -> Float[Tensor, "tokens width"]:
        """The sum of the vectors of all fields that hold something."""
        there = (fields > 0).to(self.embed.dtype)
        return F.embedding_bag(fields + self.offsets, self.embed, mode="sum", per_sample_weights=there)


class StandIn(nn.Module):
    """Features of pictures, films and sounds from what is known of them.

    noise: share of the characters that are misread, in training, so that a tower's mistakes are no surprise; for the
    same reason a picture's feature is the mean of several guesses at what lies in each patch.
    """

    def __init__(self, width: int, noise: float = 0.03) -> None:
        super().__init__()
        self.noise = noise
        self.picture = Table(FIELDS * 4, width)
        self.film = Table(FILM_FIELDS * 4, width)
        self.sound = Table(sounds.FIELDS, width)
        self.row = nn.Parameter(torch.empty(SIDE, width).normal_(std=0.25))
        self.col = nn.Parameter(torch.empty(SIDE, width).normal_(std=0.25))

    def forward(self, known: Known) -> Features:
        """Features of all items, packed as the towers' are."""
        pictures = [shuffled(fields) for fields in known.blurred]
        films = [shuffled(fields) for fields in known.films]
        guesses = [
            self._grids(self.picture, [each[k : k + 1] for each in pictures], FIELDS) for k in range(_guesses(pictures))
        ]
        image = torch.stack(guesses).mean(0)
        tubelet = self._grids(self.film, films, None)
        heard = [torch.from_numpy(np.ascontiguousarray(fields)).long() for fields in known.sounds]
        audio = self.sound(self._misread(torch.cat(heard), sounds.FIELDS, 1)) if heard else self._nothing()
        return Features(
            image=image,
            tubelet=tubelet,
            audio=audio,
            counts={
                "image": [grid.shape[1] * grid.shape[2] for grid in pictures],
                "tubelet": [step.numel() // step.shape[-1] for film in films for step in film],
                "audio": [len(fields) for fields in heard],
            },
        )

    def _grids(self, table: Table, grids: list[Tensor], sizes: tuple[int, ...] | None) -> Tensor:
        if not grids:
            return self._nothing()
        flat = torch.cat([grid.flatten(0, 2) for grid in grids])
        if sizes is not None:
            flat = self._misread(flat, sizes, 4)
        places = torch.cat([positions(*grid.shape[:3]) for grid in grids])
        return table(flat) + self.row[places[:, 0]] + self.col[places[:, 1]]

    def _misread(self, fields: Tensor, sizes: tuple[int, ...], patches: int) -> Tensor:
        """Replace a share of the characters by others, or by nothing."""
        if not self.training or not self.noise:
            return fields
        chars = torch.tensor([index < len(sizes) - (2 if patches > 1 else 1) for index in range(len(sizes))] * patches)
        hit = (torch.rand(fields.shape) < self.noise) & chars & (fields > 0)
        return torch.where(hit, torch.randint(0, sizes[0], fields.shape), fields)

    def _nothing(self) -> Tensor:
        return self.row.new_zeros(0, self.row.shape[1])


def _guesses(grids: Sequence[Tensor]) -> int:
    """Of every picture in a batch; one batch has as many of each."""
    counts = {len(grid) for grid in grids} or {1}
    if len(counts) > 1:
        raise ValueError(f"stand-in: pictures with {sorted(counts)} guesses in one batch; want as many of each")
    return counts.pop()


def shuffled(fields: np.ndarray) -> Int[Tensor, "items rows cols fields4"]:
    """Fields of patches (items, 2 rows, 2 cols, fields) → of tokens, the four patches in pixel shuffle's order."""
    grid = torch.from_numpy(np.ascontiguousarray(fields)).long()
    grid = grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (items, rows, 2, cols, 2, fields)
    return grid.permute(0, 1, 3, 2, 4, 5).flatten(3)


def positions(items: int, rows: int, cols: int) -> Int[Tensor, "tokens 2"]:
    """Row and column of each token of `items` grids."""
    row = torch.arange(rows)[:, None].expand(rows, cols)
    col = torch.arange(cols)[None].expand(rows, cols)
    return torch.stack((row, col), -1).flatten(0, 1).repeat(items, 1)
