"""Laws of token reduction: nothing lost in the shuffle, the exact tokens kept in time, packed = alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as oracle

from token_reduction import (
    changes,
    evs,
    evs_causal,
    evs_step,
    evs_with_floor,
    num_kept,
    num_kept_per_step,
    num_tokens,
    pixel_shuffle,
    random_dropping,
    temporal,
    uniform_dropping,
)

few = settings(deadline=None, max_examples=25)
Shape = tuple[int, int, int]
RATES = [0.0, 0.3, 0.5, 0.7, 0.9, 0.99]
shapes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
grids_of_squares = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


def rates_of(*rates: float) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip_tokens(clips: list[Shape]) -> list[int]:
    return [steps * rows * cols for steps, rows, cols in clips]


# Pixel shuffle


def test_a_token_holds_its_square_in_the_order_row_column_channel() -> None:
    x = torch.arange(16.0).reshape(8, 2)  # 2 x 4 patches of width 2: patch p holds 2p and 2p + 1
    tokens = pixel_shuffle(x, torch.tensor([[2, 4]]))
    assert tokens.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_tokens_run_along_rows_in_v2_and_down_columns_in_v1() -> None:
    x = torch.arange(24.0)[:, None]  # 4 x 6 patches: tokens begin at 0, 2, 4 and at 12, 14, 16
    grid = torch.tensor([[4, 6]])
    assert pixel_shuffle(x, grid)[:, 0].tolist() == [0, 2, 4, 12, 14, 16]
    assert pixel_shuffle(x, grid, version="v1")[:, 0].tolist() == [0, 12, 2, 14, 4, 16]


@few
@given(grids_of_squares, st.sampled_from(["v1", "v2"]), st.integers(1, 3))
def test_packed_items_are_shuffled_as_alone_into_num_tokens_each(squares: Any, version: Any, factor: int) -> None:
    grids = torch.tensor(squares) * factor
    x = noise(int(grids.prod(-1).sum()), 3)
    together = pixel_shuffle(x, grids, factor, version)
    alone = [
        pixel_shuffle(part, grid[None], factor, version)
        for part, grid in zip(x.split(grids.prod(-1).tolist()), grids, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert [len(part) for part in alone] == num_tokens(grids, factor).tolist()
    assert torch.equal(together.flatten().sort().values, x.flatten().sort().values)  # nothing lost, nothing twice


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (6, 4), (16, 10)])
def test_shuffle_equals_transformers(grid: tuple[int, int]) -> None:
    x = noise(grid[0] * grid[1], 12)
    unbound: Any = oracle.NemotronH_Omni_Reasoning_V3.pixel_shuffle
    wanted = unbound(None, x.view(1, *grid, 12)).reshape(-1, 48)
    assert torch.equal(pixel_shuffle(x, torch.tensor([grid])), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shuffle_keeps_dtype_and_bits(dtype: torch.dtype) -> None:
    grids = torch.tensor([[2, 4], [4, 2]])
    x = noise(16, 5)
    assert torch.equal(pixel_shuffle(x.to(dtype), grids), pixel_shuffle(x, grids).to(dtype))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradients_return_to_the_patches_they_came_from(version: Any) -> None:
    grids = torch.tensor([[2, 4], [2, 4], [4, 2]])
    x = noise(24, 3).requires_grad_()
    out = pixel_shuffle(x, grids, version=version)
    out.backward(out.detach())  # what arrives at a patch is then the patch itself
    assert x.grad is not None
    assert torch.equal(x.grad, x.detach())


def test_a_view_of_patches_is_shuffled_as_its_copy() -> None:
    x = noise(10, 8)[2:, ::2]
    assert torch.equal(pixel_shuffle(x, torch.tensor([[4, 2]])), pixel_shuffle(x.clone(), torch.tensor([[4, 2]])))


def test_no_items_make_no_tokens() -> None:
    none = torch.zeros(0, 2, dtype=torch.long)
    assert pixel_shuffle(torch.zeros(0, 3), none).shape == (0, 12)
    assert num_tokens(none).tolist() == []


@pytest.mark.parametrize(
    ("patches", "grid", "factor", "message"),
    [
        (1080, (27, 40), 2, "grid 27x40 is not divisible by 2; resize to a multiple of"),
        (1080, (40, 27), 2, "grid 40x27 is not divisible by 2"),
        (0, (0, 4), 2, "grid 0x4 "),
        (12, (4, 4), 2, "12 patches came"),
        (16, (4, 4), 0, "factor 0 came, at least 1 was wanted"),
    ],
)
def test_a_grid_that_cannot_be_shuffled_is_named(patches: int, grid: Any, factor: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"pixel_shuffle: {re.escape(message)}"):
        pixel_shuffle(torch.zeros(patches, 1), torch.tensor([grid]), factor)


def test_an_unknown_version_is_refused() -> None:
    plain: Any = inspect.unwrap(pixel_shuffle)  # the annotation would refuse it first
    with pytest.raises(ValueError, match="version 'v3' came, v1 or v2 was wanted"):
        plain(torch.zeros(4, 1), torch.tensor([[2, 2]]), version="v3")


# How many tokens stay


@pytest.mark.parametrize(
    ("steps", "places", "rate", "kept"),
    [
        (1, 256, 0.7, 256),
        (2, 256, 0.7, 256),
        (3, 256, 0.7, 256),
        (4, 256, 0.7, 307),
        (128, 256, 0.5, 16384),
        (256, 256, 0.5, 32768),
        (20, 10, 0.9, 19),  # 200 * (1 - 0.9) is 19.999999999999996 in Python floats
        (7, 9, 0.0, 63),
        (10, 1, 0.999, 1),
    ],
)
def test_number_kept_is_what_python_floats_say(steps: int, places: int, rate: float, kept: int) -> None:
    assert num_kept(steps, places, rate) == kept
    mask = evs(noise(steps * places, 2), torch.tensor([[steps, 1, places]]), rates_of(rate))
    assert int(mask.sum()) == kept


@pytest.mark.parametrize(("steps", "places", "rate"), [(0, 4, 0.5), (4, 0, 0.5), (4, 4, 1.0), (4, 4, -0.1)])
def test_number_kept_of_nothing_or_at_a_rate_outside_0_to_1_is_refused(steps: int, places: int, rate: float) -> None:
    with pytest.raises(ValueError, match=r"num_kept: .*0 <= rate < 1"):
        num_kept(steps, places, rate)


Reducer = Callable[[Tensor, Tensor, Tensor], Tensor]


def drop_at_random(features: Tensor, clips: Tensor, rates: Tensor) -> Tensor:
    return random_dropping(features, clips, rates, torch.Generator().manual_seed(5))


def evs_with_no_floor(features: Tensor, clips: Tensor, rates: Tensor) -> Tensor:
    return evs_with_floor(features, clips, rates, 0)


REDUCERS: list[Reducer] = [evs, evs_with_no_floor, evs_causal, drop_at_random, uniform_dropping]


@few
@given(shapes, st.data())
def test_every_way_keeps_the_number_that_the_shape_alone_decides(clips: list[Shape], data: st.DataObject) -> None:
    rates = [data.draw(st.sampled_from(RATES)) for _ in clips]
    wanted = [num_kept(steps, rows * cols, rate) for (steps, rows, cols), rate in zip(clips, rates, strict=True)]
    for features in (noise(sum(clip_tokens(clips)), 4), torch.zeros(sum(clip_tokens(clips)), 4)):
        for reduce in REDUCERS:
            mask = reduce(features, torch.tensor(clips), rates_of(*rates))
            assert [int(part.sum()) for part in mask.split(clip_tokens(clips))] == wanted
            per_step = num_kept_per_step(mask, torch.tensor(clips))
            assert [int(part.sum()) for part in per_step.split([steps for steps, _, _ in clips])] == wanted


@few
@given(shapes, st.data())
def test_packed_clips_keep_what_they_keep_alone(clips: list[Shape], data: st.DataObject) -> None:
    rates = [data.draw(st.sampled_from(RATES)) for _ in clips]
    features = noise(sum(clip_tokens(clips)), 5)
    for reduce in (evs, evs_with_no_floor, evs_causal, uniform_dropping):
        alone = [
            reduce(part, torch.tensor([clip]), rates_of(rate))
            for part, clip, rate in zip(features.split(clip_tokens(clips)), clips, rates, strict=True)
        ]
        assert torch.equal(reduce(features, torch.tensor(clips), rates_of(*rates)), torch.cat(alone))


def test_no_clips_keep_nothing() -> None:
    none = torch.zeros(0, 3, dtype=torch.long)
    for reduce in REDUCERS:
        assert reduce(torch.zeros(0, 4), none, rates_of()).tolist() == []
    assert num_kept_per_step(torch.zeros(0, dtype=torch.bool), none).tolist() == []


# Which tokens stay: scores are planted by turning each place's feature by 0, 90 or 180 degrees (scores 0, 1 and 2,
# exact in floating point), so that most of them tie.


@st.composite
def planted_clips(draw: st.DrawFn) -> tuple[Shape, list[int]]:
    """A clip's shape and a quarter-turn count for each of its tokens."""
    steps, rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = steps * rows * cols
    return (steps, rows, cols), draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))


def plant(shape: Shape, turns: list[int]) -> Tensor:
    """Features whose scores are `turns` (those of the first tubelet do not matter)."""
    steps, rows, cols = shape
    angle = torch.tensor(turns).view(steps, rows * cols).cumsum(0) % 4
    return torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])[angle].flatten(0, 1)


def first_is_highest(shape: Shape, turns: list[int]) -> list[int]:
    places = shape[1] * shape[2]
    return [255] * places + turns[places:]


def highest(scores: list[int], places: list[int], number: int) -> set[int]:
    return set(sorted(places, key=lambda place: (-scores[place], place))[:number])


def test_a_planted_clip_keeps_the_tokens_written_down_by_hand() -> None:
    shape = (4, 1, 3)
    turns = [0, 0, 0, 1, 0, 2, 2, 1, 1, 0, 2, 0]  # rate 0.5 keeps 6: the first three, then the 2s in their order
    mask = evs(plant(shape, turns), torch.tensor([shape]), rates_of(0.5))
    assert mask.int().tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0]
    mask = evs(plant(shape, turns), torch.tensor([shape]), rates_of(0.3))  # 8: of the three 1s the earlier two
    assert mask.int().tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0]


@few
@given(planted_clips(), st.sampled_from(RATES))
def test_evs_keeps_the_highest_scores_of_the_clip_and_of_equal_ones_the_earlier(planted: Any, rate: float) -> None:
    shape, turns = planted
    mask = evs(plant(shape, turns), torch.tensor([shape]), rates_of(rate))
    keep = num_kept(shape[0], shape[1] * shape[2], rate)
    wanted = highest(first_is_highest(shape, turns), list(range(len(turns))), keep)
    assert set(mask.nonzero().flatten().tolist()) == wanted


@few
@given(planted_clips(), st.sampled_from(RATES), st.integers(0, 3))
def test_a_floor_takes_its_share_first_and_leaves_the_rest_to_the_clip(planted: Any, rate: float, floor: int) -> None:
    shape, turns = planted
    steps, places = shape[0], shape[1] * shape[2]
    keep = num_kept(steps, places, rate)
    if steps * floor > keep:
        with pytest.raises(ValueError, match=f"evs_with_floor: a floor of {floor} in {steps} tubelets of {places}"):
            evs_with_floor(plant(shape, turns), torch.tensor([shape]), rates_of(rate), floor)
        return
    mask = evs_with_floor(plant(shape, turns), torch.tensor([shape]), rates_of(rate), floor)
    scores = first_is_highest(shape, turns)
    wanted: set[int] = set()
    for step in range(steps):
        wanted |= highest(scores, list(range(step * places, (step + 1) * places)), floor)
    wanted |= highest(scores, [place for place in range(len(turns)) if place not in wanted], keep - len(wanted))
    assert set(mask.nonzero().flatten().tolist()) == wanted
    assert int(num_kept_per_step(mask, torch.tensor([shape])).min()) >= floor


def test_a_floor_saves_the_second_of_two_tubelets_that_plain_evs_drops_whole() -> None:
    features, clips, rates = noise(32, 4), torch.tensor([[2, 4, 4]]), rates_of(0.7)
    assert num_kept_per_step(evs(features, clips, rates), clips).tolist() == [16, 0]
    assert num_kept_per_step(evs_with_floor(features, clips, rates, 5), clips).tolist() == [11, 5]


def test_a_floor_of_nothing_is_evs_and_a_negative_one_is_refused() -> None:
    features, clips, rates = noise(96, 4), torch.tensor([[6, 4, 4]]), rates_of(0.5)
    assert torch.equal(evs_with_floor(features, clips, rates, 0), evs(features, clips, rates))
    with pytest.raises(ValueError, match="evs_with_floor: a floor of -1"):
        evs_with_floor(features, clips, rates, -1)


@few
@given(planted_clips(), st.sampled_from(RATES))
def test_causal_evs_keeps_the_highest_of_each_tubelet_within_the_growing_total(planted: Any, rate: float) -> None:
    shape, turns = planted
    steps, places = shape[0], shape[1] * shape[2]
    mask = evs_causal(plant(shape, turns), torch.tensor([shape]), rates_of(rate))
    wanted, scores = set(range(places)), first_is_highest(shape, turns)
    for step in range(1, steps):
        share = num_kept(step + 1, places, rate) - num_kept(step, places, rate)
        wanted |= highest(scores, list(range(step * places, (step + 1) * places)), share)
    assert set(mask.nonzero().flatten().tolist()) == wanted


@few
@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from(RATES))
def test_a_clip_streamed_one_tubelet_at_a_time_equals_the_clip_at_once(steps: int, places: int, rate: float) -> None:
    features = noise(steps * places, 6)
    masks, before = [], None
    for step, tubelet in enumerate(features.split(places)):
        masks.append(evs_step(tubelet.clone(), before, step, rate))
        before = tubelet.clone()
        assert sum(int(mask.sum()) for mask in masks) == num_kept(step + 1, places, rate)
    assert torch.equal(torch.cat(masks), evs_causal(features, torch.tensor([[steps, 1, places]]), rates_of(rate)))


@few
@given(st.integers(2, 9), st.data())
def test_later_input_never_changes_earlier_causal_output(steps: int, data: st.DataObject) -> None:
    seen = data.draw(st.integers(1, steps - 1)) * 6
    features, clips, rates = noise(steps * 6, 4), torch.tensor([[steps, 2, 3]]), rates_of(0.5)
    changed = torch.cat((features[:seen], noise(steps * 6 - seen, 4, seed=1)))
    assert torch.equal(evs_causal(features, clips, rates)[:seen], evs_causal(changed, clips, rates)[:seen])


def test_a_stream_that_does_not_hang_together_is_refused() -> None:
    tubelet = noise(4, 3)
    with pytest.raises(ValueError, match="evs_step: tubelet 1 came without the one before it"):
        evs_step(tubelet, None, 1, 0.5)
    with pytest.raises(ValueError, match="evs_step: tubelet 0 came with the one before it"):
        evs_step(tubelet, tubelet, 0, 0.5)
    with pytest.raises(ValueError, match=r"rate 1\.0"):
        evs_step(tubelet, None, 0, 1.0)
    plain: Any = inspect.unwrap(evs_step)  # the annotation would refuse it first
    with pytest.raises(ValueError, match=re.escape("a tubelet of shape (4, 3) came after one of (5, 3)")):
        plain(tubelet, noise(5, 3), 1, 0.5)


@few
@given(shapes, st.data())
def test_first_tubelet_stays_whole_in_evs_and_causal_evs(clips: list[Shape], data: st.DataObject) -> None:
    rates = [data.draw(st.sampled_from(RATES)) for _ in clips]
    features = noise(sum(clip_tokens(clips)), 3)
    for reduce in (evs, evs_causal):
        mask = reduce(features, torch.tensor(clips), rates_of(*rates))
        for part, (_, rows, cols) in zip(mask.split(clip_tokens(clips)), clips, strict=True):
            assert bool(part[: rows * cols].all())


# Against transformers, whose function takes one clip and counts with Python floats only when its sizes are ints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 4, 4), (9, 3, 5), (16, 8, 6)])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.9])
def test_evs_equals_transformers_when_scored_in_the_input_dtype(shape: Shape, rate: float, dtype: torch.dtype) -> None:
    steps, rows, cols = shape
    still, moving = noise(1, rows * cols, 24), noise(steps, rows * cols, 24, seed=1)
    amount = torch.linspace(0, 1, rows * cols)[:, None]  # some places never change: their scores are rounding alone
    features = (still + amount * moving).flatten(0, 1).to(dtype)
    wanted = oracle.compute_retention_mask(
        video_embeds=features,
        thw=shape,  # pyright: ignore[reportArgumentType]  # it unpacks three numbers; a tensor would count in float32
        spatial_merge_size=1,
        q=rate,
    )
    assert torch.equal(evs(features, torch.tensor([shape]), rates_of(rate), score_dtype=dtype), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_scored_in_float32_unless_told_otherwise(dtype: torch.dtype) -> None:
    features, clips, rates = noise(200, 16).to(dtype), torch.tensor([[8, 5, 5]]), rates_of(0.7)
    for reduce in (evs, evs_with_no_floor, evs_causal):
        assert torch.equal(reduce(features, clips, rates), reduce(features.float(), clips, rates))
    assert changes(features.view(8, 25, 16)).dtype == torch.float32
    assert changes(features.view(8, 25, 16), dtype).dtype == dtype


def test_bfloat16_scores_tie_and_so_keep_other_tokens() -> None:
    features = (noise(1, 36, 64) + 0.05 * noise(20, 36, 64, seed=1)).flatten(0, 1)
    clips, rates = torch.tensor([[20, 6, 6]]), rates_of(0.7)
    wide, narrow = (evs(features, clips, rates, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert len(changes(features.view(20, 36, 64), torch.bfloat16).unique()) < 10
    assert not torch.equal(wide, narrow)
    assert int(wide.sum()) == int(narrow.sum())


def test_scores_in_blocks_equal_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features = noise(11, 7, 33)
    at_once = changes(features)
    for block in (1, 500, 1000):
        monkeypatch.setattr(temporal, "BLOCK", block)
        assert torch.equal(changes(features), at_once)


def test_scores_are_255_first_and_then_one_minus_cosine() -> None:
    a, b = noise(1, 4, 8), noise(1, 4, 8, seed=1)
    scores = changes(torch.cat((a, b, -b)))
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert scores[0].tolist() == [255.0] * 4
    torch.testing.assert_close(scores[1:2], 1 - cosine, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[2], torch.full((4,), 2.0), rtol=1e-6, atol=0)


def test_gradients_reach_exactly_the_kept_tokens() -> None:
    features = noise(96, 4).requires_grad_()
    mask = evs(features, torch.tensor([[6, 4, 4]]), rates_of(0.7))
    features[mask].sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, mask[:, None].expand(-1, 4).float())


# Baselines


def test_uniform_dropping_keeps_whole_tubelets_evenly_spaced_and_a_part_of_the_last() -> None:
    def per_step(steps: int, places: int, rate: float) -> list[int]:
        clips = torch.tensor([[steps, 1, places]])
        mask = uniform_dropping(torch.zeros(steps * places, 1), clips, rates_of(rate))
        return num_kept_per_step(mask, clips).tolist()

    assert per_step(6, 4, 0.5) == [4, 0, 4, 0, 4, 0]
    assert per_step(8, 4, 0.55) == [4, 0, 4, 0, 4, 0, 2, 0]
    assert per_step(3, 4, 0.0) == [4, 4, 4]
    assert per_step(5, 4, 0.99) == [4, 0, 0, 0, 0]


def test_random_dropping_repeats_with_its_seed_and_treats_all_tokens_alike() -> None:
    features, clips, rates = torch.zeros(40, 1), torch.tensor([[5, 2, 4]]), rates_of(0.5)
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([random_dropping(features, clips, rates, generator) for _ in range(400)])
    assert torch.equal(masks[0], random_dropping(features, clips, rates, torch.Generator().manual_seed(0)))
    share = masks.float().mean(0)
    assert float((share - 0.5).abs().max()) < 0.1  # four standard deviations


# Bad input


@pytest.mark.parametrize(
    ("tokens", "clips", "rates", "message"),
    [
        (16, [[4, 2, 2]], torch.tensor([0.7]), "rates are torch.float32; want float64"),
        (17, [[4, 2, 2]], rates_of(0.5), "17 tokens came for clips [[4, 2, 2]]"),
        (16, [[4, 2, 2], [0, 2, 2]], rates_of(0.5, 0.5), "hold an empty one"),
        (16, [[4, 2, 2]], rates_of(1.0), "rate 1.0"),
        (16, [[4, 2, 2]], rates_of(float("nan")), "rate nan"),
    ],
)
def test_clips_rates_and_tokens_that_disagree_are_refused(tokens: int, clips: Any, rates: Any, message: str) -> None:
    for reduce in REDUCERS:
        with pytest.raises(ValueError, match=re.escape(message)):
            reduce(torch.zeros(tokens, 2), torch.tensor(clips), rates)


def test_every_clip_wants_a_rate_of_its_own() -> None:
    plain: Any = inspect.unwrap(evs)  # the annotation would refuse it first
    with pytest.raises(ValueError, match="2 rates came for 1 clips"):
        plain(torch.zeros(16, 2), torch.tensor([[4, 2, 2]]), rates_of(0.5, 0.5))


def test_features_that_are_not_finite_are_refused() -> None:
    features, clips, rates = noise(16, 4), torch.tensor([[4, 2, 2]]), rates_of(0.5)
    features[9, 2] = torch.nan
    for reduce in (evs, evs_with_no_floor, evs_causal):
        with pytest.raises(ValueError, match="tubelets of 4 tokens are not all finite; run the tower"):
            reduce(features, clips, rates)


def test_a_mask_of_other_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="num_kept_per_step: a mask of 5 came"):
        num_kept_per_step(torch.ones(5, dtype=torch.bool), torch.tensor([[1, 2, 2]]))
