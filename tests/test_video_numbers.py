"""Clips become exactly the frames, tubelets and text that the released models were trained on."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor
from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3VideoProcessor,
)

from processors import audio
from processors.image import patches
from processors.video import (
    CARD,
    ENGINE,
    ENGINE_COUNT,
    ENGINES,
    RECIPE,
    REFERENCE,
    V2_VL,
    Count,
    Keyframes,
    Moments,
    Rate,
    VideoRule,
    clip_grid,
    interleave,
    num_tokens,
    sample,
    segments,
    training_times,
    true_times,
    tubelet_lines,
    tubelet_stream,
    tubelets,
)
from token_reduction.temporal import num_kept

RATES = (12.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0)
rates = st.sampled_from(RATES) | st.floats(5, 120)


def clip(frames: int, height: int = 20, width: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)


# --- size ---


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (512, 512, (32, 32)),
        (64, 64, (32, 32)),
        (1920, 1080, (24, 42)),
        (1280, 720, (24, 42)),
        (3760, 1120, (16, 58)),
        (390, 100, (16, 64)),
    ],
)
def test_golden_clips_have_their_golden_grids(width: int, height: int, grid: tuple[int, int]) -> None:
    assert clip_grid(width, height) == grid
    assert num_tokens(2, grid) == grid[0] * grid[1] // 4


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans(), st.integers(4, 3000))
def test_grids_equal_those_of_transformers(width: int, height: int, keep_aspect: bool, target: int) -> None:
    theirs = NemotronH_Omni_Reasoning_V3VideoProcessor(
        video_target_num_patches=target, video_maintain_aspect_ratio=keep_aspect
    )
    wide, tall = theirs._compute_target_patches(height, width)
    assert clip_grid(width, height, VideoRule(target=target, keep_aspect=keep_aspect)) == (tall, wide)


def test_frames_of_v2_vl_are_one_tile() -> None:
    assert clip_grid(1920, 1080, V2_VL) == (32, 32)
    assert num_tokens(5, (32, 32), V2_VL) == 5 * 256


def test_512_frames_have_the_tokens_of_the_papers_table() -> None:
    grid = clip_grid(512, 512)
    assert num_tokens(512, grid, replace(REFERENCE, tubelet_frames=1)) == 131_072
    assert num_tokens(512, grid) == 65_536
    kept = num_kept(256, 256, 0.5)
    assert kept == 32_768
    for visual, text, paper in ((131_072, 512 * 19, 141e3), (65_536, 256 * 37, 75e3), (kept, 256 * 37, 42e3)):
        assert (visual + text) / paper == pytest.approx(1, rel=0.02)


# --- which frames ---


def test_a_rate_takes_the_frames_nearest_to_its_ticks() -> None:
    assert sample(Rate(fps=2.0), 75, 30.0) == [0, 15, 30, 45, 60]
    assert sample(Rate(fps=2.0), 50, 25.0) == [0, 12, 25, 37]  # 12 and 13 are equally near to half a second
    assert sample(Rate(fps=1.0), 300, 29.97) == [0, 30, 60.0, 90, 120, 150, 180, 210, 240, 270, 299]
    assert sample(Rate(fps=1.0), 300, 30.0) == list(range(0, 300, 30))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4000), rates, st.floats(0.1, 10))
def test_between_chosen_frames_lies_one_period(frames: int, fps: float, rate: float) -> None:
    chosen = sample(Rate(fps=rate, cap=None), frames, fps)
    assert chosen[0] == 0
    assert all(b > a for a, b in pairwise(chosen))
    if rate <= fps:
        gaps = [(b - a) / fps - 1 / rate for a, b in pairwise(chosen)]
        assert all(abs(gap) <= 1 / fps + 1e-4 for gap in gaps[:-1])
        assert all(abs(gap) <= 1.5 / fps + 1e-4 for gap in gaps[-1:])  # a tick may fall while the last frame is seen
        assert len(chosen) == pytest.approx(frames / fps * rate, abs=1.01)
    else:
        assert chosen == list(range(frames))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), rates, st.sampled_from([RECIPE, CARD, ENGINE, ENGINE_COUNT, Rate(fps=3.0, cap=7)]))
def test_where_the_cap_binds_the_frames_are_spread_over_the_indices(frames: int, fps: float, policy: Any) -> None:
    chosen = sample(policy, frames, fps)
    cap = policy.frames if isinstance(policy, Count) else policy.cap
    assert 1 <= len(chosen) <= min(cap, frames)
    if len(chosen) == cap:
        assert chosen == np.linspace(0, frames - 1, cap, dtype=int).tolist() or frames / fps * policy.fps < cap + 1


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), rates)
def test_the_engines_rate_spreads_the_rounded_count(frames: int, fps: float) -> None:
    count = max(min(128, int(frames / fps * min(2, fps)), frames), 1)
    everything = list(range(frames))
    wanted = everything if count == frames else np.linspace(0, frames - 1, count, dtype=int).tolist()
    assert sample(ENGINE, frames, fps) == wanted


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 2000),
    st.sampled_from(RATES),
    st.sampled_from([RECIPE, CARD, Rate(fps=4.0), Moments(seconds=(0.0,))]),
)
def test_true_stamps_of_an_even_clip_change_nothing(frames: int, fps: float, policy: Any) -> None:
    stamps = (np.arange(frames) / fps).tolist()
    assert sample(policy, frames, fps, stamps) == sample(policy, frames, fps)
    if not isinstance(policy, Moments):
        assert sample(policy, frames, fps, [90.5 + stamp for stamp in stamps]) == sample(policy, frames, fps)


def test_an_uneven_clip_is_sampled_by_its_own_stamps() -> None:
    stamps = [0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 9.0]  # a slide show: few frames, long apart
    assert sample(Rate(fps=1.0), 7, 0.7, stamps) == [0, 3, 4.0, 5, 6]
    assert sample(Moments(seconds=(0.29, 7.0, 7.1, 0.3)), 7, 0.7, stamps) == [3, 5, 6]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=40), rates)
def test_moments_take_the_nearest_frame_each_once(seconds: list[float], fps: float) -> None:
    frames = int(60 * fps) + 2
    chosen = sample(Moments(seconds=tuple(seconds)), frames, fps)
    assert chosen == sorted(set(chosen))
    for second in seconds:
        assert min(abs(index / fps - second) for index in chosen) <= 0.5 / fps + 1e-5
    assert len(chosen) <= len(seconds)


def test_key_frames_are_taken_as_given_or_spread() -> None:
    assert sample(Keyframes(indices=(40, 0, 12, 12)), 50, 25.0) == [0, 12, 40]
    assert sample(Keyframes(indices=tuple(range(0, 100, 10)), cap=4), 100, 25.0) == [0, 30, 60, 90]


def test_a_rate_beyond_every_frame_takes_each_once_in_little_memory() -> None:
    assert sample(Rate(fps=1e9, cap=None), 500, 30.0) == list(range(500))
    assert sample(Rate(fps=1e-9), 500, 30.0) == [0]


def test_clips_and_policies_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="a clip of 0 frames"):
        sample(RECIPE, 0, 30.0)
    with pytest.raises(ValueError, match=r"at 0\.0 fps"):
        sample(RECIPE, 5, 0.0)
    with pytest.raises(ValueError, match="2 times came for 3 frames"):
        sample(RECIPE, 3, 30.0, [0.0, 1.0])
    with pytest.raises(ValueError, match="want one each, rising"):
        sample(RECIPE, 3, 30.0, [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="from 0 to 9"):
        sample(Keyframes(indices=(3, 10)), 10, 30.0)
    with pytest.raises(ValueError, match="want at least one"):
        sample(Keyframes(indices=()), 10, 30.0)
    with pytest.raises(ValueError, match=r"moments \[75.0\] of a clip from 0 to 59.9667 seconds"):
        sample(Moments(seconds=(1.0, 75.0)), 1800, 30.0)
    with pytest.raises(ValueError, match="moments none"):
        sample(Moments(seconds=()), 1800, 30.0)
    with pytest.raises(ValueError, match="Rate"):
        Rate(fps=0.0)
    with pytest.raises(ValueError, match="Count"):
        Count(frames=0)
    with pytest.raises(ValueError, match="VideoRule"):
        VideoRule(tubelet_frames=0)


# --- text ---


def their_text(indices: list[int] | None, fps: float | None, frames: int, tubelet_frames: int, tokens: int) -> str:
    """transformers' own expansion of <video>."""
    stand_in: Any = SimpleNamespace(
        image_start_token="<img>",
        image_token="<image>",
        image_end_token="</img>",
        video_temporal_patch_dim=tubelet_frames,
    )
    metadata = None if fps is None else SimpleNamespace(fps=fps, frames_indices=indices)
    return NemotronH_Omni_Reasoning_V3Processor.replace_video_token(
        stand_in, {"num_tokens": [tokens]}, 0, num_frames=frames, video_metadata=metadata
    )


def our_text(lines: list[str], tokens: int) -> str:
    return "".join(f"{line}<img>{'<image>' * tokens}</img>" for line in lines)


def test_the_text_of_a_clip_letter_by_letter() -> None:
    text = our_text(tubelet_lines([0, 15, 30, 45, 60], 30.0), tokens=1)
    assert text == (
        "This is a video:\n"
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.49 seconds: <img><image></img>\n"
        "Frame 3 sampled at 0.99 seconds and frame 4 sampled at 1.49 seconds: <img><image></img>\n"
        "Frame 5 sampled at 1.98 seconds: <img><image></img>"
    )


def test_the_text_of_v2_vl_has_one_frame_a_line() -> None:
    assert tubelet_lines([0, 12], 25.0, V2_VL) == [
        "This is a video:\nFrame 1 sampled at 0.00 seconds: ",
        "\nFrame 2 sampled at 0.48 seconds: ",
    ]


def test_the_text_without_a_clock_numbers_the_frames() -> None:
    assert tubelet_lines([7, 8, 9], None, ENGINES) == ["Frame 1 and frame 2: ", "\nFrame 3: "]


def test_the_text_may_carry_true_times() -> None:
    lines = tubelet_lines([7, 8, 9], None, times=[0.0, 61.234, 3599.5])
    assert lines[0].endswith("Frame 1 sampled at 0.00 seconds and frame 2 sampled at 61.23 seconds: ")
    assert tubelet_lines([7], 2000.0, times=[1.0])[0].endswith("Frame 1 sampled at 1.00 seconds: ")
    with pytest.raises(ValueError, match="argument 2"):
        tubelet_lines([7, 8], None, times=[0.0])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=9, unique=True), rates, st.integers(1, 4), st.integers(0, 3)
)
def test_the_text_equals_transformers_letter_by_letter(
    indices: list[int], fps: float, tubelet_frames: int, tokens: int
) -> None:
    rule = VideoRule(tubelet_frames=tubelet_frames, prefix="")
    indices = sorted(indices)
    wanted = their_text(indices, fps, len(indices), tubelet_frames, tokens)
    assert our_text(tubelet_lines(indices, fps, rule), tokens) == wanted
    wanted = their_text(None, None, len(indices), tubelet_frames, tokens)
    assert our_text(tubelet_lines(indices, None, rule), tokens) == wanted


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 500_000), rates)
def test_true_times_undo_the_drift_of_the_training_clock(index: int, fps: float) -> None:
    spoken = training_times([index], fps)
    assert spoken[0] <= index / fps + 1e-9
    assert true_times(spoken, fps)[0] == pytest.approx(index / fps, abs=1e-6)


def test_the_training_clock_loses_36_seconds_an_hour_at_30_fps() -> None:
    assert training_times([30 * 3600], 30.0) == [3564.0]
    assert true_times([3564.0, 1782.0], 30.0) == [3600.0, 1800.0]


def test_true_times_of_an_uneven_clip_are_its_own_stamps() -> None:
    stamps = [0.0, 0.1, 2.0, 7.0]
    spoken = training_times(range(4), 1.0)
    assert true_times(spoken, 1.0, stamps) == pytest.approx(stamps)
    assert true_times([1.5], 1.0, stamps) == pytest.approx([1.05])


@pytest.mark.parametrize("fps", [0.0, -1.0, 1001.0, float("nan")])
def test_rates_without_a_clock_are_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="pass true times instead"):
        training_times([1], fps)
    with pytest.raises(ValueError, match="pass true times instead"):
        tubelet_lines([1], fps)


# --- tubelets ---


def test_a_tubelet_joins_two_frames_on_the_feature_axis_the_earlier_first() -> None:
    frames = clip(4)
    made = tubelets(frames, (2, 4))
    assert made.shape == (2 * 8, 1536)
    for step in range(2):
        rows = made[8 * step : 8 * step + 8]
        assert torch.equal(rows[:, :768], patches(frames[2 * step], (2, 4)))
        assert torch.equal(rows[:, 768:], patches(frames[2 * step + 1], (2, 4)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4000))
def test_short_tails_repeat_the_last_frame_and_counts_are_as_predicted(frames: int, depth: int, piece: int) -> None:
    rule = VideoRule(tubelet_frames=depth)
    some = clip(frames)
    whole = torch.cat((some, some[-1:].expand(-frames % depth, -1, -1, -1)))
    made = tubelets(some, (2, 4), rule)
    assert torch.equal(made, tubelets(whole, (2, 4), rule))
    assert torch.equal(made, tubelets(some, (2, 4), rule, piece=piece))  # piecewise = at once
    assert made.shape == (4 * num_tokens(frames, (2, 4), rule), 768 * depth)


def test_frames_of_v2_vl_are_images() -> None:
    frames = clip(3)
    made = tubelets(frames.numpy(), (2, 2), V2_VL)
    assert torch.equal(made, torch.cat([patches(frame, (2, 2)) for frame in frames]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 3))
def test_a_streamed_clip_equals_the_clip_at_once(parts: list[int], depth: int) -> None:
    rule = VideoRule(tubelet_frames=depth)
    frames = clip(sum(parts))
    pieces = list(tubelet_stream(frames.split(parts), (2, 2), rule))
    assert torch.equal(torch.cat(pieces), tubelets(frames, (2, 2), rule))
    assert all(len(piece) for piece in pieces)


def test_frames_equal_transformers() -> None:
    mean, std = list(REFERENCE.pixels.mean), list(REFERENCE.pixels.std)
    processor = NemotronH_Omni_Reasoning_V3VideoProcessor(norm_mean=mean, norm_std=std, do_convert_rgb=False)
    for width, height in ((90, 60), (512, 512), (70, 210)):
        frames = clip(3, height, width)
        theirs = processor._preprocess([frames.permute(0, 3, 1, 2)])
        grid = clip_grid(width, height)
        ours = tubelets(frames, grid, replace(REFERENCE, tubelet_frames=1))
        wanted = theirs["pixel_values_videos"].unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5)
        torch.testing.assert_close(ours, wanted.reshape(-1, 768), rtol=0, atol=1e-5)
        assert theirs["num_tokens"] == [num_tokens(1, grid)] * 3


def test_other_frames_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"tubelets: float32 .*want uint8 RGB of shape \(frames, rows, cols, 3\)"):
        tubelets(clip(2).float(), (2, 2))
    with pytest.raises(ValueError, match="want positive multiples of 2"):
        tubelets(clip(2), (2, 3))
    with pytest.raises(ValueError, match=r"frames of shape \(8, 8, 3\) came after \(9, 9, 3\)"):
        list(tubelet_stream([clip(1, 9, 9), clip(1, 8, 8)], (2, 2)))
    with pytest.raises(ValueError, match="frames of 0x5 px"):
        clip_grid(0, 5)


# --- segments ---


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
def test_a_clip_in_segments_equals_the_clip_at_once(count: int, length: int, depth: int) -> None:
    rule = VideoRule(tubelet_frames=depth)
    indices = [3 * i for i in range(count)]
    parts = list(segments(indices, length * depth, rule))
    assert [index for part in parts for index in part.indices] == indices
    lines = [line for part in parts for line in tubelet_lines(part.indices, 30.0, rule, first=part.first)]
    assert lines == tubelet_lines(indices, 30.0, rule)
    frames = clip(count, 4, 4)
    pieces = [tubelets(frames[part.first : part.first + len(part.indices)], (2, 2), rule) for part in parts]
    assert torch.equal(torch.cat(pieces), tubelets(frames, (2, 2), rule))


def test_segments_are_made_one_at_a_time_and_never_cut_a_tubelet() -> None:
    made = segments(range(10**9), 64)
    assert next(made).indices == tuple(range(64))
    assert next(made).first == 64
    for length in (0, -2, 3):
        with pytest.raises(ValueError, match="want a positive multiple of 2"):
            next(segments([1, 2, 3], length))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-1, 100), min_size=1, max_size=8), st.integers(160, 16000 * 60))
def test_interleaved_sound_is_neither_repeated_nor_lost(starts: list[float], samples: int) -> None:
    starts = sorted(starts)
    spans = interleave(starts, samples)
    assert len(spans) == len(starts)
    assert spans[0][0] == 0
    assert spans[-1][1] == samples
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    heard = [end - start for start, end in spans if end > start]
    assert sum(audio.num_tokens(length) for length in heard) == audio.num_tokens(samples)
    for second, (start, _) in list(zip(starts, spans, strict=True))[1:]:
        assert abs(start / 16000 - second) <= 0.04 + 1e-9 or start in (0, samples)


def test_less_than_a_token_of_sound_stays_with_the_segment_before() -> None:
    assert interleave([0.0, 0.96], 15360 + 100) == [(0, 15460), (15460, 15460)]
    assert interleave([0.0, 0.96], 15360 + 1280) == [(0, 15360), (15360, 16640)]


def test_each_segment_hears_its_own_time() -> None:
    assert interleave([0.0, 32.0, 64.0], 16000 * 80) == [(0, 512_000), (512_000, 1_024_000), (1_024_000, 1_280_000)]
    assert interleave([0.0, 32.0, 64.0], 16000 * 40) == [(0, 512_000), (512_000, 640_000), (640_000, 640_000)]
    with pytest.raises(ValueError, match="want the rising seconds"):
        interleave([3.0, 1.0], 16000)
    with pytest.raises(ValueError, match="want the rising seconds"):
        interleave([], 16000)


def test_rules_are_plain_values() -> None:
    assert len({REFERENCE, V2_VL, RECIPE, CARD, ENGINE, ENGINE_COUNT}) == 6
    assert Rate(**asdict(CARD)) == CARD
