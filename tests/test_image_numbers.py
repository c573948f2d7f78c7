"""Images become exactly the grids and numbers that the released models were trained on."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import combinations
from math import ceil, floor, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    get_patch_grid_size,
)

from processors.image import (
    REFERENCE,
    TRANSFORMERS,
    V2_VL,
    ImageRule,
    PixelRule,
    TileRule,
    grid,
    grids,
    joint_budget,
    num_tiles,
    num_tokens,
    patches,
    tile_count,
    tile_grid,
    tiles,
)

sides = st.integers(1, 5000)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise: every pixel counts, and bicubic overshoots."""
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(image: Tensor) -> Tensor:
    """The spec, letter by letter: (channel, y, x), float32."""
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    return (image / 255 - mean) / std


def sixty_sizes() -> list[tuple[int, int]]:
    """Photographs, pages, screens, icons and strips; ties of the rounding; random ones."""
    chosen = [(224, 224), (64, 32), (512, 512), (1000, 500), (500, 1000), (1024, 1024), (640, 480), (1920, 1080)]
    chosen += [(1, 1), (16, 16), (7, 900), (900, 7), (1654, 2339), (33, 31), (1968, 1824), (48, 800)]
    chosen += [(16 * w, 16 * h) for w, h in ((3, 5), (41, 43), (39, 61), (65, 63))]
    rng = np.random.default_rng(60)
    return chosen + [(int(w), int(h)) for w, h in rng.integers(20, 700, (60 - len(chosen), 2))]


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (224, 224, 256),
        (64, 32, 276),
        (512, 512, 256),
        (1000, 500, 512),
        (500, 1000, 512),
        (1024, 1024, 1024),
        (1536, 1536, 2304),
        (1920, 1080, 2040),
    ],
)
def test_golden_sizes_have_their_golden_counts(width: int, height: int, tokens: int) -> None:
    assert num_tokens(width, height) == tokens


def test_rounding_is_half_to_even() -> None:
    assert grid(1968, 1824, budget=16384) == (114, 124)
    assert grid(1824, 1968, budget=13312) == (120, 110)


@settings(deadline=None, max_examples=300)
@given(sides, sides, st.integers(1024, 13312) | st.just(1024) | st.just(1025))
def test_grids_equal_those_of_transformers(width: int, height: int, budget: int) -> None:
    try:
        wanted = get_patch_grid_size(height, width, 16, 2, 1024, budget)
    except ZeroDivisionError:
        return  # a strip too thin: ours has an answer, below
    assert 0 in wanted or grid(width, height, budget) == wanted


@settings(deadline=None, max_examples=300)
@given(sides, sides, st.integers(4, 13312))
def test_grids_have_whole_tokens_within_the_budget(width: int, height: int, budget: int) -> None:
    rows, cols = grid(width, height, budget)
    assert rows % 2 == cols % 2 == 0
    grown = budget > 1024 and rows * cols < 1024 + rows + cols  # to the minimum, both sides rounded up
    assert 4 <= rows * cols <= budget or min(rows, cols) == 2 or grown
    assert num_tokens(width, height, budget) == rows * cols // 4


@pytest.mark.parametrize(("width", "height"), [(500_000, 9), (9, 500_000), (20_000, 8), (8, 20_000)])
@pytest.mark.parametrize("budget", [4, 7, 1024, 1025, 13312])
def test_the_thinnest_strips_have_a_grid(width: int, height: int, budget: int) -> None:
    rows, cols = grid(width, height, budget)
    assert min(rows, cols) == 2
    assert max(rows, cols) % 2 == 0
    assert (rows < cols) == (width > height) or budget < 8


def test_the_transformers_rule_gives_each_image_the_whole_budget() -> None:
    sizes = [(4000, 3000)] * 5
    assert grids(sizes, context=3000, text_tokens=2000, rule=TRANSFORMERS) == [grid(4000, 3000, 13312)] * 5
    processor = NemotronH_Omni_Reasoning_V3ImageProcessor()
    assert (processor.max_model_len, processor.max_num_patches) == (16384, 13312)  # 4 * (16384 - 4), cut to 13312


def test_sixty_sizes_equal_transformers() -> None:
    processor = NemotronH_Omni_Reasoning_V3ImageProcessor()
    for seed, (width, height) in enumerate(sixty_sizes()):
        image = picture(height, width, seed)
        theirs = processor(image.permute(2, 0, 1), return_tensors="pt")
        size = grids([(width, height)], rule=TRANSFORMERS)[0]
        ours = patches(image, size)
        assert list(size) == theirs["image_grid_hw"][0].tolist()
        torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)


def test_pixels_are_neither_clamped_nor_rounded() -> None:
    image = picture(100, 100) // 255 * 255  # black and white, where bicubic overshoots most
    values = patches(image, (8, 8)).view(64, 3, 256)
    red = (values[:, 0] * 0.26862954 + 0.48145466) * 255
    assert red.min() < -5
    assert red.max() > 258
    assert (red - red.round()).abs().max() > 0.4


def test_patches_are_row_major_and_flattened_by_channel_then_row() -> None:
    image = picture(32, 64)
    values = patches(image, (2, 4))  # not resized
    wanted = normalised(image.permute(2, 0, 1).float())
    for row in range(2):
        for col in range(4):
            square = wanted[:, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
            torch.testing.assert_close(values[4 * row + col], square.flatten(), rtol=0, atol=1e-6)


def test_arrays_of_any_layout_equal_tensors() -> None:
    image = picture(50, 70)
    wanted = patches(image, (4, 6))
    array = image.numpy()
    locked = array.copy()
    locked.flags.writeable = False
    flipped = array[:, ::-1].copy()[:, ::-1]
    for same in (array, locked, flipped, np.asfortranarray(array)):
        assert torch.equal(patches(same, (4, 6)), wanted)
    assert torch.equal(patches(image.transpose(0, 1).contiguous().transpose(0, 1), (4, 6)), wanted)


# --- one budget for all images of a request ---


def test_one_image_takes_what_the_text_leaves() -> None:
    assert joint_budget([(4000, 3000)], context=2000, text_tokens=496) == [grid(4000, 3000, 6000)]
    assert joint_budget([(4000, 3000)], context=100_000) == [grid(4000, 3000, 13312)]
    assert grids([(4000, 3000)]) == joint_budget([(4000, 3000)], context=16384)
    assert joint_budget([], context=1) == []


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(33, 3000), st.integers(33, 3000)), min_size=1, max_size=12), st.data())
def test_the_images_of_a_request_fit_together(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    least = sum(num_tokens(width, height, 1024) for width, height in sizes)
    text = data.draw(st.integers(0, 3000))
    context = data.draw(st.integers(least + text + 4, least + text + 4 + 20_000))
    fitted = joint_budget(sizes, context, text)
    left = 4 * (context - text - 4)
    assert sum(rows * cols for rows, cols in fitted) <= left
    alone = [grid(width, height, min(max(left, 1024), 13312)) for width, height in sizes]
    if sum(rows * cols for rows, cols in alone) <= left:
        assert fitted == alone
    with pytest.raises(ValueError, match=f"at their smallest {len(sizes)} images or pages take {least} tokens"):
        joint_budget(sizes, least // 2 + text + 4, text)


def test_images_are_scaled_down_by_their_share_of_the_patches() -> None:
    sizes = [(3200, 3200), (1600, 1600), (320, 320)]
    left = 4 * (4096 - 96 - 4)
    budgets = [13312] * 3
    for _ in range(10):
        counts = [rows * cols for rows, cols in (grid(*size, b) for size, b in zip(sizes, budgets, strict=True))]
        if sum(counts) <= left:
            break
        budgets = [max(1024, int(count * (left / sum(counts)))) for count in counts]
    fitted = joint_budget(sizes, context=4096, text_tokens=96)
    assert fitted == [grid(*size, b) for size, b in zip(sizes, budgets, strict=True)]
    assert fitted[0] > fitted[1] > fitted[2]


def test_where_the_rounds_do_not_suffice_the_smallest_sizes_are_taken() -> None:
    rule = ImageRule(rounds=1)
    sizes = [(3000, 3000)] * 8
    assert joint_budget(sizes, context=2052, rule=rule) == [(32, 32)] * 8
    assert joint_budget([(8, 16_300)] * 3, context=4000, rule=ImageRule(rounds=0)) == [grid(8, 16_300, 1024)] * 3


def test_a_context_that_is_too_small_says_what_would_fit() -> None:
    wanted = "40 images or pages take 10240 tokens, a context of 8192 with 100 tokens beside them leaves 8088"
    with pytest.raises(ValueError, match=f"{wanted}; state a context of at least 10344, or send the first 31 only"):
        joint_budget([(3000, 3000)] * 40, context=8192, text_tokens=100)
    with pytest.raises(ValueError, match=r"leaves 0; state a context of at least 360$"):
        joint_budget([(3000, 3000)], context=10, text_tokens=100)


# --- V2 VL ---


def brute_tile_grid(width: int, height: int) -> tuple[int, int]:
    """The spec's sentence: of all shapes by area, the nearest; on a tie the later if the image is large enough."""
    shapes = sorted(((i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12), key=lambda s: s[0] * s[1])
    best = shapes[0]
    for i, j in shapes[1:]:
        near, now = abs(width / height - best[0] / best[1]), abs(width / height - i / j)
        if now < near or (now == near and width * height > 0.5 * 512 * 512 * i * j):
            best = (i, j)
    return best[1], best[0]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_tiles_have_the_nearest_aspect(width: int, height: int) -> None:
    rows, cols = tile_grid(width, height)
    assert (rows, cols) == brute_tile_grid(width, height)
    assert 1 <= num_tiles(width, height) <= 13
    assert num_tiles(width, height) == (1 if (rows, cols) == (1, 1) else rows * cols + 1)


def test_a_tie_takes_more_tiles_only_where_there_are_pixels_for_them() -> None:
    assert tile_grid(300, 300) == (1, 1)
    assert tile_grid(725, 725) == (2, 2)  # 725 * 725 > 0.5 * 512 * 512 * 4 >= 724 * 724
    assert tile_grid(724, 724) == (1, 1)
    assert tile_grid(1152, 1024) == (2, 2)  # 1152 * 1024 = 0.5 * 512 * 512 * 9: more than half are wanted
    assert tile_grid(1161, 1032) == (3, 3)
    assert tile_grid(4000, 4000) == (3, 3)


def test_shapes_of_one_area_never_tie_for_the_nearest() -> None:
    """So their order among themselves, which the rule leaves open, does not matter."""
    shapes = [(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12]
    for a, b in combinations(shapes, 2):
        if a[0] * a[1] == b[0] * b[1]:
            middle = (a[0] / a[1] + b[0] / b[1]) / 2
            assert min(abs(middle - i / j) for i, j in shapes) < abs(middle - a[0] / a[1]) - 1e-9


def test_tiles_are_cut_row_major_from_one_resized_image_and_the_whole_comes_last() -> None:
    image = picture(300, 620)
    rows, cols = tile_grid(620, 300)
    assert (rows, cols) == (1, 2)
    planes = image.permute(2, 0, 1)[None].float()
    large = normalised(F.interpolate(planes, (512 * rows, 512 * cols), mode="bicubic", antialias=True)[0])
    small = normalised(F.interpolate(planes, (512, 512), mode="bicubic", antialias=True)[0])
    squares = [large[:, 512 * r : 512 * r + 512, 512 * c : 512 * c + 512] for r in range(rows) for c in range(cols)]
    wanted = [
        square.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).reshape(1024, 768)
        for square in (*squares, small)
    ]
    torch.testing.assert_close(tiles(image), torch.cat(wanted), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300))
def test_tiles_are_as_many_as_counted(width: int, height: int) -> None:
    rule = TileRule(size=32, max_tiles=6)
    assert len(tiles(picture(height, width), rule)) == 4 * num_tiles(width, height, rule)
    alone = replace(rule, thumbnail=False)
    assert len(tiles(picture(height, width), alone)) == 4 * num_tiles(width, height, alone)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=6), st.integers(0, 20000))
def test_tiles_of_a_request_are_as_many_as_fit_its_context(sizes: list[tuple[int, int]], left: int) -> None:
    def tokens(most: int) -> int:
        return 256 * sum(num_tiles(width, height, TileRule(max_tiles=most)) for width, height in sizes)

    if left < tokens(1):
        with pytest.raises(ValueError, match=f"state a context of at least {tokens(1) + 9}, or send fewer"):
            grids(sizes, left + 9, 9, V2_VL)
        return
    made = grids(sizes, left + 9, 9, V2_VL)
    most = max(most for most in range(1, 13) if tokens(most) <= left)
    assert made == [(32 * rows, 32 * cols) for rows, cols in (tile_grid(*size, most) for size in sizes)]
    assert grids(sizes, None, 9, V2_VL) == grids(sizes, 10**6, 9, V2_VL)


def test_a_page_drawn_at_its_tiles_size_is_not_resized_again() -> None:
    image = picture(96, 64)
    rule = TileRule(size=32, max_tiles=6)
    made = tiles(image, rule, (6, 4))
    assert len(made) == 4 * tile_count((6, 4), rule) == 4 * 7
    first = normalised(image.permute(2, 0, 1).float())[:, :16, :16]
    torch.testing.assert_close(made[0], first.reshape(768), rtol=0, atol=1e-6)


# --- errors and settings ---


def test_other_pixels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"patches: float32 of shape \(4, 4, 3\).*scale floats from 0..1 to 0..255"):
        patches(torch.zeros(4, 4, 3), (2, 2))
    with pytest.raises(ValueError, match="tiles: int64"):
        tiles(np.zeros((4, 4, 3), np.int64))
    with pytest.raises(ValueError, match=r"patches: uint8 of shape \(0, 4, 3\)"):
        patches(np.zeros((0, 4, 3), np.uint8), (2, 2))


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (2, 5), (-2, 2)])
def test_grids_that_do_not_make_tokens_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="want positive multiples of 2"):
        patches(picture(8, 8), shape)


def test_empty_images_and_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="grid: an image of 0x5 px"):
        grid(0, 5)
    with pytest.raises(ValueError, match="tile_grid: an image of 5x-1 px"):
        tile_grid(5, -1)
    with pytest.raises(ValueError, match="a budget of 3 patches came; want at least 4"):
        grid(5, 5, budget=3)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="PixelRule"):
        PixelRule(std=(0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="ImageRule: 2000 to 1000 patches"):
        ImageRule(min_patches=2000, max_patches=1000)
    with pytest.raises(ValueError, match="TileRule: tiles of 500 px"):
        TileRule(size=500)


def test_rules_are_plain_values() -> None:
    assert asdict(REFERENCE)["max_patches"] == 13312
    assert ImageRule(**{**asdict(REFERENCE), "pixels": PixelRule(**asdict(REFERENCE.pixels))}) == REFERENCE
    assert replace(TRANSFORMERS, budget="joint") == REFERENCE
    assert len({REFERENCE, TRANSFORMERS, V2_VL}) == 3


def test_another_patch_and_shuffle_follow_the_same_rule() -> None:
    rule = ImageRule(pixels=PixelRule(patch=8, shuffle=4), min_patches=64, max_patches=256)
    rows, cols = grid(100, 50, 256, rule)
    assert (rows, cols) == (8, 16)  # of 7 x 13 patches
    assert grid(100, 50, 120, rule) == (8, 12)  # 8 x 16 are too many
    assert patches(picture(50, 100), (rows, cols), rule.pixels).shape == (8 * 16, 3 * 8 * 8)
    assert num_tokens(100, 50, 256, rule) == rows * cols // 16


def test_small_images_grow_to_the_minimum_only_where_the_budget_is_above_it() -> None:
    grow = sqrt(1024 / (2 * 4))
    assert grid(64, 32, 1025) == (ceil(grow * 2) // 2 * 2, ceil(grow * 4))
    assert grid(64, 32, 1024) == (2, 4)
    assert floor(grow * 2) == 22
