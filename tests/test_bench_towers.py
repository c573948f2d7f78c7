"""Benchmarks of the towers and of the way to the first token: equal features, the order of the stages, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import relative_error
from typer.testing import CliRunner

from encoders.vision import RadioVit
from omni import bench_batch, bench_first, bench_real, bench_towers
from omni.bench_first import SIZES, STAGES, WAYS, ask, frame_by_frame, in_order
from omni.bench_model import machine
from omni.bench_random import OMNI, shrunk
from omni.bench_towers import RATE, audio_pair, measure, shape_of, vision_pair
from omni.cli import app
from processors import video
from token_reduction import num_kept

TINY = shrunk(OMNI, 6, 1 / 16)


def test_both_towers_are_compared_with_transformers_in_turns() -> None:
    found = measure(TINY, torch.float32, (16, 60), (1, 2), repeats=2)
    assert [each.name for each in found] == [
        "picture of 16 patches",
        "picture of 60 patches",
        "1 s of sound",
        "2 s of sound",
    ]
    for each in found:
        assert each.theirs is not None
        assert each.ratio == each.theirs / each.ours
        assert "median of 2; differs by" in each.note
    values = json.loads(bench_towers.report(found))["results"]
    assert all(value["ratio"] > 0 for value in values)


def test_theirs_is_left_out_with_its_reason_where_it_would_not_fit() -> None:
    found = measure(TINY, torch.float32, (), (1,), repeats=1, free=2**20)
    assert (found[0].theirs, found[0].ratio) == (None, None)
    assert "transformers left out: needs about 1.0 GiB, 0.0 GiB are free" in found[0].note
    assert TINY.audio
    held = audio_pair(TINY.audio, torch.bfloat16).held
    assert held(360000) > 3.9 * held(180000)  # scores grow with the square of the length


def test_long_sounds_run_less_often_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_towers, "LONG", 2)
    found = measure(TINY, torch.float32, (), (1, 2), repeats=3, long_repeats=1)
    assert [each.note.split(";")[0] for each in found] == ["median of 3", "median of 1"]


def test_towers_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_towers, "CLOSE", -1.0)
    assert TINY.audio
    with pytest.raises(ValueError, match="FastConformer differs by"):
        audio_pair(TINY.audio, torch.float32)
    with pytest.raises(ValueError, match="without both towers"):
        measure(replace(TINY, audio=None, audio_projector=None))


@torch.inference_mode()
def test_every_weight_of_theirs_is_ours() -> None:
    assert TINY.vision
    pair = vision_pair(TINY.vision, torch.float32)  # pyright: ignore[reportArgumentType]  (C-RADIO)
    patches = torch.randn(40, 768)
    assert relative_error(pair.run(patches), pair.run_theirs(patches)) < 1e-5
    for name, value in pair.theirs.named_parameters():
        assert value.ndim < 2 or float(value.std()) > 0.01, name  # drawn, not left as made
        if name.startswith("encoder.layer.1") and value.ndim == 2:  # theirs alone: ours is packed
            value.mul_(1.5)
            assert relative_error(pair.run(patches), pair.run_theirs(patches)) > 1e-5, name
            value.div_(1.5)


def test_a_grid_is_as_square_as_it_can_be() -> None:
    assert [shape_of(n) for n in (1024, 4096, 60, 7)] == [(32, 32), (64, 64), (6, 10), (1, 7)]
    assert RATE == 100


@torch.inference_mode()
def test_frame_by_frame_is_the_same_tower_seeing_pictures() -> None:
    torch.manual_seed(0)
    assert SIZES["small"].vision
    tower = RadioVit(SIZES["small"].vision).eval()  # pyright: ignore[reportArgumentType]  (C-RADIO)
    alone = frame_by_frame(tower)
    grids, frames = torch.tensor([[4, 6]]), torch.randn(24, 768)
    assert torch.equal(alone.encode(alone.embed_tubelets(frames, grids), grids), tower(frames, grids))
    assert all(
        p.data_ptr() == q.data_ptr() for p, q in zip(alone.blocks.parameters(), tower.blocks.parameters(), strict=True)
    )


def test_the_way_to_the_first_token_is_measured_by_stages() -> None:
    found = bench_first.measure(SIZES["small"], frames=6, rate=0.5, patches=64, repeats=1)
    assert [each.way for each in found] == list(WAYS)
    by_way = {each.way: each for each in found}
    grid = video.clip_grid(512, 512, video.VideoRule(target=64))
    places = grid[0] * grid[1] // 4
    text = {joined: len(ask(torch.zeros(steps * grid[0] * grid[1], 3), (steps, *grid), 0.0, joined, 50).tokens) - steps
            for steps, joined in ((6, 1), (3, 2))}  # fmt: skip
    assert by_way["none"].tokens == text[1] + 6 * places
    assert by_way["EVS"].tokens == text[1] + num_kept(6, places, 0.5)
    assert by_way["tubelets"].tokens == text[2] + 3 * places
    assert by_way["both"].tokens == text[2] + num_kept(3, places, 0.5)
    for each in found:
        assert tuple(each.seconds) == STAGES
        assert each.total == pytest.approx(sum(each.seconds.values()))
        assert each.ratio == each.total / by_way["none"].total
    values = json.loads(bench_first.report(found))
    assert values["in_order"] == in_order({each.way: each.total for each in found})


def test_the_order_is_that_of_the_paper() -> None:
    times = {"none": 1.0, "EVS": 0.81, "tubelets": 0.75, "both": 0.67}
    assert in_order(times)
    assert not in_order(times | {"both": 0.8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "0 < rate < 1"),
        ({"frames": 1}, "at least 2"),
        ({"config": shrunk(bench_first.HYBRID, 2)}, "tubelets"),
    ],
)
def test_first_says_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench_first.measure(**{"config": SIZES["small"], **changes})  # pyright: ignore[reportArgumentType]  (wrong on purpose)


SMALL = ("--layers", "6", "--width-scale", "0.03125", "--repeats", "1")
COMMANDS = {
    "towers": ("--patches", "16", "--seconds", "1", "--dtype", "float32", *SMALL),
    "first": ("--size", "small", "--frames", "4", "--patches", "64", "--repeats", "1"),
    "real": ("--prompt", "20", "--new", "2", "--contexts", "8,30", *SMALL),
    "batch": ("--batches", "1,2", "--new", "2", "--context", "8", "--formats", "bf16,int4", *SMALL),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_with_a_line_and_draw(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_real, bench_batch):
        monkeypatch.setattr(module, "machine", lambda: machine(size=64, read_bytes=2**16))
    out = tmp_path / "figure.png"
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", name, *COMMANDS[name], "--plot", str(out)])
    assert result.exit_code == 0, result.output
    values = json.loads(result.output.splitlines()[-1])
    assert values["peak_bytes"] > 0
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("towers", "--dtype", "int4"), "bfloat16 or float32"),
        (("towers", "--patches", "x"), "positive whole numbers"),
        (("first", "--size", "huge"), "small, mid, real"),
        (("real", "--format", "int3"), "bf16, int8, int4"),
        (("real", "--layers", "99"), "1 to 52 layers"),
        (("batch", "--batches", "0"), "positive whole numbers"),
        (("batch", "--plot", "no/where.png"), "no folder"),
    ],
)
def test_commands_say_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output
