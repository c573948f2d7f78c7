"""Pixel shuffle: each square of neighbouring patches becomes one wider token.

Source: InternVL 1.5 (arXiv 2404.16821, section 3.2), as Nemotron Nano V2 VL (arXiv 2511.03929) and Nemotron 3 Nano Omni
(arXiv 2604.24954) use it. Items of all sizes lie one behind the other; grids are (rows, cols) of each.
"""

from __future__ import annotations

from itertools import groupby
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Version = Literal["v1", "v2"]


def num_tokens(grids: Int[Tensor, "items 2"], factor: int = 2) -> Int[Tensor, " items"]:
    """Tokens that `pixel_shuffle` makes of each item. Raises ValueError for a grid that the factor does not divide."""
    if factor < 1:
        raise ValueError(f"pixel_shuffle: factor {factor} came, at least 1 was wanted; the family uses 2")
    for rows, cols in grids.tolist():
        if rows < factor or cols < factor or rows % factor or cols % factor:
            raise ValueError(
                f"pixel_shuffle: grid {rows}x{cols} is not divisible by {factor}; "
                f"resize to a multiple of {factor} patches ({16 * factor} px with patches of 16)"
            )
    return (grids // factor).prod(-1)


def pixel_shuffle(
    x: Float[Tensor, "patches width"],
    grids: Int[Tensor, "items 2"],
    factor: int = 2,
    version: Version = "v2",
) -> Float[Tensor, "tokens wider"]:
    """Join factor x factor patches into one token of factor² times the width.

    A token's channels are ordered (row offset, column offset, channel). Tokens are row-major in "v2" and column-major
    in "v1" (with it the channels keep their order). Raises ValueError for a grid that the factor does not divide or
    that does not add up to the patches, and for an unknown version.
    """
    if version not in get_args(Version):
        raise ValueError(f"pixel_shuffle: version {version!r} came, v1 or v2 was wanted; read the config's ps_version")
    num_tokens(grids, factor)
    sizes = [(rows, cols) for rows, cols in grids.tolist()]
    if sum(rows * cols for rows, cols in sizes) != len(x):
        raise ValueError(f"pixel_shuffle: {len(x)} patches came for grids {sizes}; pass each item's patches row-major")
    tokens: list[Tensor] = []
    start = 0
    for (rows, cols), run in groupby(sizes):  # neighbours of one size in one go
        count = len(list(run))
        part = x[start : start + count * rows * cols]
        start += len(part)
        part = part.unflatten(0, (count, rows // factor, factor, cols // factor, factor)).transpose(2, 3)
        if version == "v1":
            part = part.transpose(1, 2)
        tokens.append(part.flatten(3).flatten(0, 2))  # (tokens, factor² width)
    if len(tokens) == 1:
        return tokens[0]  # the usual clip: one size, so one copy
    return torch.cat(tokens) if tokens else x.new_zeros(0, x.shape[1] * factor**2)
