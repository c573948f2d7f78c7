"""Studies measure what they say: each point its spec, each way its choice of tokens, and a plot to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import conversations
import numpy as np
import pytest
from PIL import Image

from omni.eval import record, study
from omni.eval.item import Item
from omni.eval.study import KINDS, Measured, Point, one_frame_a_tubelet, points
from omni.eval.study_plot import plot
from omni.eval.tasks import own
from omni.train.data.sounds import Mute

COUNTS = {"examples", "items"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two examples of three tokens each, and no voice."""
    monkeypatch.setattr(own, "voice", Mute)
    short = {
        name: replace(task, tokens=3, options={**task.options, **dict.fromkeys(task.options.keys() & COUNTS, 2)})
        for name, task in study.TASKS.items()
    }
    monkeypatch.setattr(study, "TASKS", short)


def load(form: Any = None) -> Any:
    return conversations.MODEL, conversations.PROCESSOR


def points_of(kind: Any) -> list[Point]:
    return points(kind, conversations.PROCESSOR, 1)


def test_each_study_varies_one_setting_alone() -> None:
    varied = {
        "evs": lambda p: p.spec.preprocessing.evs,
        "dpi": lambda p: p.spec.preprocessing.dpi,
        "pages": lambda p: p.spec.preprocessing.context,
        "thinking": lambda p: (p.spec.thinking.enabled, p.spec.thinking.budget),
        "format": lambda p: p.format,
    }
    assert varied.keys() == set(KINDS)
    for kind, setting in varied.items():
        made = points_of(kind)
        by_series: dict[tuple[str, str], list[Point]] = {}
        for point in made:
            by_series.setdefault((point.panel, point.series), []).append(point)
        for line in by_series.values():
            assert len({repr(setting(p)) for p in line}) == len(line) >= 3
            same = {replace(p.spec, preprocessing=line[0].spec.preprocessing, thinking=line[0].spec.thinking).hash
                    for p in line}  # fmt: skip
            assert len(same) == 1


def test_every_way_is_used_and_keeps_as_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    before = conversations.MODEL.prune

    def noting(name: str, way: Any) -> Any:
        def choose(*given: Any) -> Any:
            used.append(name)
            return way(*given)

        return choose

    monkeypatch.setattr(study, "WAYS", {name: noting(name, way) for name, way in study.WAYS.items()})
    monkeypatch.setattr(study, "RATES", (0.0, 0.5))
    found = study.study("evs", load, tmp_path, limit=1)
    assert set(used) == {"EVS", "EVS, causal", "EVS, a token a step at least", "random", "uniform frames"}
    assert conversations.MODEL.prune is before
    tokens = {(m.panel, m.series, m.x): m.tokens for m in found}
    half = {tokens["with tubelets", name, 0.5] for name in study.WAYS}
    assert len(half) == 1
    assert half.pop() < tokens["with tubelets", "EVS", 0.0] < tokens["a tubelet a frame", "EVS", 0.0]
    assert study.study("evs", load, tmp_path, limit=1) == found  # all of it was there already


def test_one_frame_a_tubelet_shows_every_frame_twice() -> None:
    frames = [np.full((48, 64, 3), i, np.uint8) for i in range(3)]
    item = Item(
        name="1", media=({"type": "video", "frames": frames, "times": [0.0, 1.0, 2.0]}, conversations.picture())
    )
    film, picture = one_frame_a_tubelet(item).media
    assert [int(frame.mean()) for frame in film["frames"]] == [0, 0, 1, 1, 2, 2]
    assert film["times"] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert picture is item.media[1]


@pytest.mark.parametrize("kind", ["dpi", "pages", "thinking", "format"])
def test_a_study_is_measured_and_drawn(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "DPI", (36, 72, 144))
    found = study.study(kind, load, tmp_path, limit=1)
    assert all(each.low <= each.value <= each.high for each in found)
    plot(kind, found, tmp_path / "a.png", "test")
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 5
    asked = record.read(tmp_path / f"{kind}-00.jsonl")
    if kind == "dpi":
        assert asked[0].receipt["items"][0]["details"]["effective_dpi"][0] < 60
        assert found[0].tokens < found[2].tokens
    if kind == "pages":
        assert found[0].tokens <= found[0].x
        assert found[0].tokens < found[-1].tokens
    if kind == "thinking":
        assert asked[0].tokens["thinking"] == 0


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(ValueError, match="'weather' is unknown; want one of evs"):
        study.kind_of("weather")


def test_nothing_measured_is_nothing_to_draw(tmp_path: Path) -> None:
    empty: list[Measured] = []
    with pytest.raises(ValueError, match="nothing was measured"):
        plot("evs", empty, tmp_path / "a.png")
