"""Images: which grid of patches an image becomes, and the numbers in them.

Nemotron 3 Nano Omni (arXiv 2604.24954): one image of dynamic resolution, all images of a request within one budget.
Nemotron Nano V2 VL (arXiv 2511.03929): 512-px tiles and a thumbnail, as InternVL 1.5 (arXiv 2404.16821, section 3.3).
A grid is (rows, cols) in patches; every size is a pure function of width and height, so a header is enough to plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, sqrt
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRule:
    """How pixels become patches and tokens; the defaults are the released models' (CLIP's mean and deviation).

    patch: side of a patch in pixels. shuffle: side of the square of patches that becomes one token. mean, std: of each
    channel, for pixels from 0 to 1.
    """

    patch: int = 16
    shuffle: int = 2
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if min(self.patch, self.shuffle) < 1 or min(self.std) <= 0:
            raise ValueError(f"PixelRule: {self} came; want positive sizes and deviations")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """Omni's dynamic resolution.

    min_patches, max_patches: of one image. budget: "joint" scales the images of a request down together until their
    sum fits the context, in at most `rounds` rounds; "each" gives every image what a whole context of `context` tokens
    allows, whatever the others and the text take. context: tokens where the caller states none. reserve: tokens of it
    that are kept free beside the text.
    """

    pixels: PixelRule = field(default_factory=PixelRule)
    min_patches: int = 1024
    max_patches: int = 13312
    budget: Literal["joint", "each"] = "joint"
    context: int = 16384
    reserve: int = 4
    rounds: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.min_patches <= self.max_patches:
            raise ValueError(
                f"ImageRule: {self.min_patches} to {self.max_patches} patches came; want at least 1, and a rising range"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRule:
    """V2 VL's tiles: at most `max_tiles` squares of `size` pixels, and the whole image once more as the last tile."""

    pixels: PixelRule = field(default_factory=PixelRule)
    size: int = 512
    max_tiles: int = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        square = self.pixels.patch * self.pixels.shuffle
        if self.size < 1 or self.size % square or self.max_tiles < 1:
            raise ValueError(
                f"TileRule: tiles of {self.size} px, at most {self.max_tiles}, came; want multiples of {square} px, "
                "and at least one tile"
            )


REFERENCE = ImageRule()
TRANSFORMERS = ImageRule(budget="each")
V2_VL = TileRule()


def grid(width: int, height: int, budget: int = REFERENCE.max_patches, rule: ImageRule = REFERENCE) -> Grid:
    """The (rows, cols) of patches that an image is resized to, given a budget of patches.

    Never enlarged, except to the rule's minimum where the budget is above it. Two kinds of image may exceed the budget,
    as in training: a small one that grows to the minimum (its sides are rounded up), and a strip thinner than two
    patches. Raises ValueError for an empty image and a budget below four patches.
    """
    _check_size("grid", width, height)
    side = rule.pixels.shuffle
    if budget < side * side:
        raise ValueError(
            f"grid: a budget of {budget} patches came; want at least {side * side}, the patches of a token"
        )
    # Python's round: half to even, so multiples of 32 px keep their size and odd multiples of 16 px grow by a patch.
    natural = round(height / rule.pixels.patch + 0.5), round(width / rule.pixels.patch + 0.5)
    shrink = min(sqrt(budget / (natural[0] * natural[1])), 1.0)
    rows, cols = floor(shrink * natural[0]), floor(shrink * natural[1])
    if not rows * cols:  # a strip too thin for the rule, which would divide by zero: two patches wide, as long as fits
        long = max(budget // side // side * side, side)
        return (side, long) if width > height else (long, side)
    if budget > rule.min_patches > rows * cols:
        grow = sqrt(rule.min_patches / (rows * cols))
        rows, cols = ceil(grow * rows), ceil(grow * cols)
    rows = _even(rows, side, fits=budget // cols)
    cols = _even(cols, side, fits=budget // rows)
    return rows, cols


def num_tokens(width: int, height: int, budget: int = REFERENCE.max_patches, rule: ImageRule = REFERENCE) -> int:
    """Tokens of one image within a budget of patches. Raises ValueError as `grid` does."""
    rows, cols = grid(width, height, budget, rule)
    return rows * cols // rule.pixels.shuffle**2


def grids(
    sizes: Sequence[tuple[int, int]],
    context: int | None = None,
    text_tokens: int = 0,
    rule: ImageRule | TileRule = REFERENCE,
) -> list[Grid]:
    """The grids of all images of a request, from their (width, height), by the rule's kind of budget.

    Raises ValueError as `joint_budget`, `tile_budget` and `grid` do.
    """
    if isinstance(rule, TileRule):
        return tile_budget(sizes, context, text_tokens, rule)
    if rule.budget == "joint":
        return joint_budget(sizes, rule.context if context is None else context, text_tokens, rule)
    budget = max((rule.context - rule.reserve) * rule.pixels.shuffle**2, rule.min_patches)
    return [grid(width, height, min(budget, rule.max_patches), rule) for width, height in sizes]


def joint_budget(
    sizes: Sequence[tuple[int, int]], context: int, text_tokens: int = 0, rule: ImageRule = REFERENCE
) -> list[Grid]:
    """The grids of all images of a request, scaled down together until they fit what the text leaves of the context.

    Each image may take all that is left; while the sum is too large, each one's budget becomes its share, but no less
    than the rule's minimum. Raises ValueError, saying what would fit, where even the smallest sizes do not.
    """
    per_token = rule.pixels.shuffle**2
    left = (context - text_tokens - rule.reserve) * per_token
    if not sizes:
        return []
    budgets = [min(max(left, rule.min_patches), rule.max_patches)] * len(sizes)
    for _ in range(rule.rounds):
        fitted = [grid(width, height, budget, rule) for (width, height), budget in zip(sizes, budgets, strict=True)]
        counts = [rows * cols for rows, cols in fitted]
        if sum(counts) <= left:
            return fitted
        share = left / sum(counts)
        smaller = [max(rule.min_patches, int(count * share)) for count in counts]
        if all(new >= old for new, old in zip(smaller, budgets, strict=True)):
            break
        budgets = smaller
    smallest = [grid(width, height, rule.min_patches, rule) for width, height in sizes]
    tokens = [rows * cols // per_token for rows, cols in smallest]
    if sum(tokens) * per_token <= left:
        return smallest
    free, fitting = left // per_token, 0
    while fitting < len(tokens) and sum(tokens[: fitting + 1]) <= free:
        fitting += 1
    fewer = f", or send the first {fitting} only" if fitting else ""
    raise ValueError(
        f"joint_budget: at their smallest {len(sizes)} images or pages take {sum(tokens)} tokens, a context of "
        f"{context} with {text_tokens} tokens beside them leaves {max(free, 0)}; state a context of at least "
        f"{sum(tokens) + text_tokens + rule.reserve}{fewer}"
    )


def tile_grid(width: int, height: int, max_tiles: int = V2_VL.max_tiles, size: int = V2_VL.size) -> Grid:
    """The (rows, cols) of tiles whose aspect is nearest the image's.

    On an exact tie the larger one, but only where the image has more than half its pixels.
    """
    _check_size("tile_grid", width, height)
    shapes = [(rows, cols) for cols in range(1, max_tiles + 1) for rows in range(1, max_tiles // cols + 1)]
    best, nearest = (1, 1), float("inf")
    for rows, cols in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        distance = abs(width / height - cols / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * size * size * rows * cols):
            best, nearest = (rows, cols), distance
    return best


def tile_budget(
    sizes: Sequence[tuple[int, int]], context: int | None = None, text_tokens: int = 0, rule: TileRule = V2_VL
) -> list[Grid]:
    """The grids of all images of a request, whole tiles each: as many as the rule allows, or as fit the context.

    Where they do not fit, the most that an image may have is lowered for all. Raises ValueError, saying what would
    fit, where even one tile each does not.
    """
    side = rule.size // rule.pixels.patch
    made: list[Grid] = []
    tokens = 0
    for most in range(rule.max_tiles, 0, -1):
        shapes = [tile_grid(width, height, most, rule.size) for width, height in sizes]
        made = [(rows * side, cols * side) for rows, cols in shapes]
        tokens = sum(tile_count(grid, rule) for grid in made) * (side // rule.pixels.shuffle) ** 2
        if context is None or tokens <= context - text_tokens:
            return made
    raise ValueError(
        f"tile_budget: with a tile each {len(sizes)} images take {tokens} tokens, a context of {context} with "
        f"{text_tokens} tokens of text leaves {max((context or 0) - text_tokens, 0)}; state a context of at least "
        f"{tokens + text_tokens}, or send fewer"
    )


def tile_count(grid: Grid, rule: TileRule = V2_VL) -> int:
    """Tiles of an image on a grid of patches, the thumbnail included. Each is `size` / patch patches square."""
    count = grid[0] * grid[1] // (rule.size // rule.pixels.patch) ** 2
    return count + (rule.thumbnail and count > 1)


def num_tiles(width: int, height: int, rule: TileRule = V2_VL) -> int:
    """Tiles of one image, the thumbnail included."""
    return tile_count(tile_budget([(width, height)], rule=rule)[0], rule)


def patches(
    image: Shaped[Tensor, "rows cols 3"] | Shaped[np.ndarray, "rows cols 3"],
    grid: Grid,
    rule: PixelRule = REFERENCE.pixels,
) -> Float[Tensor, "patches pixels"]:
    """A uint8 RGB image, resized to a grid and normalised; patches row-major, each flattened (channel, y, x).

    Raises ValueError for other shapes and dtypes, and for a grid that the pixel shuffle does not divide.
    """
    image = as_frames("patches", image, axes=3)
    check_grid("patches", grid, rule)
    out = torch.empty(*grid, 3, rule.patch, rule.patch, device=image.device)
    resize_into(out, image, rule)
    return out.flatten(2).flatten(0, 1)


def tiles(
    image: Shaped[Tensor, "rows cols 3"] | Shaped[np.ndarray, "rows cols 3"],
    rule: TileRule = V2_VL,
    grid: Grid | None = None,
) -> Float[Tensor, "patches pixels"]:
    """A uint8 RGB image as square images, packed: tiles row-major, then the thumbnail where there is one.

    grid: patches of all tiles together, as `tile_budget` gives them; by default with all the tiles that the rule
    allows. Raises ValueError for other shapes and dtypes.
    """
    image = as_frames("tiles", image, axes=3)
    grid = grid or tile_budget([(image.shape[1], image.shape[0])], rule=rule)[0]
    side = rule.size // rule.pixels.patch
    whole = patches(image, grid, rule.pixels)
    packed = whole.view(grid[0] // side, side, grid[1] // side, side, -1).transpose(1, 2).flatten(0, 3)
    if tile_count(grid, rule) > grid[0] * grid[1] // side**2:
        packed = torch.cat((packed, patches(image, (side, side), rule.pixels)))
    return packed


def resize_into(
    out: Float[Tensor, "*frames tall wide 3 patch patch"], frames: UInt8[Tensor, "*frames rows cols 3"], rule: PixelRule
) -> None:
    """Fill patches with resized, normalised frames: bicubic, antialiased, in 0..255, neither clamped nor rounded.

    One channel at a time, so that a third of the pixels is held as floats; (x / 255 - mean) / std is one multiply-add
    on the way to the patches.
    """
    *_, tall, wide, _, patch, _ = out.shape
    images = frames.reshape(-1, *frames.shape[-3:])
    for channel, (mean, std) in enumerate(zip(rule.mean, rule.std, strict=True)):
        plane = images[:, None, :, :, channel].float()
        plane = F.interpolate(plane, (tall * patch, wide * patch), mode="bicubic", align_corners=False, antialias=True)
        plane = plane.view(*out.shape[:-5], tall, patch, wide, patch).transpose(-3, -2)
        shift = torch.tensor(-mean / std, device=out.device)
        torch.add(shift, plane, alpha=1 / (255 * std), out=out[..., channel, :, :])


def as_frames(where: str, pixels: Tensor | np.ndarray, axes: int) -> Tensor:
    """uint8 RGB of 3 axes (an image) or 4 (frames) as a tensor that shares memory where it may."""
    dtype = str(pixels.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(pixels.shape) != axes or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"{where}: {dtype} of shape {tuple(pixels.shape)} came; want uint8 RGB of shape "
            f"({'frames, ' * (axes - 3)}rows, cols, 3); scale floats from 0..1 to 0..255, put the channels last"
        )
    if isinstance(pixels, np.ndarray):
        return torch.from_numpy(np.require(pixels, requirements=("C", "W")))  # copied where torch could not share it
    return pixels


def check_grid(where: str, grid: Grid, rule: PixelRule) -> None:
    """Raise ValueError for a grid that is empty or that the pixel shuffle does not divide."""
    if min(grid) < 1 or grid[0] % rule.shuffle or grid[1] % rule.shuffle:
        raise ValueError(
            f"{where}: a grid of {grid[0]}x{grid[1]} patches came; want positive multiples of {rule.shuffle}"
        )


def _check_size(where: str, width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{where}: an image of {width}x{height} px came; want at least 1x1")


def _even(side: int, step: int, fits: int) -> int:
    """To a multiple of `step`: up while that fits, else down, at least one step."""
    up = -(-side // step) * step
    return up if up <= fits else max(side // step * step, step)
