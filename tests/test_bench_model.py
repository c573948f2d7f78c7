"""The benchmark of reading and writing: checked against the reference, then each format beside the ceilings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from omni import bench_model
from omni.bench_model import BLOCKS, HYBRID, Speed, check_twins, machine, measure, random_model, report, touched
from omni.moe import MoE, MoEConfig
from omni.packed import pack

EXPERTS = MoEConfig(experts=8, top_k=2, hidden=64, shared=64)
SMALL = replace(HYBRID, backbone=replace(HYBRID.backbone, width=64, vocabulary=512, blocks=(BLOCKS["M"], EXPERTS)))


FORMATS = {torch.bfloat16: ["bf16", "int8", "int4"], torch.float32: ["f32", "bf16", "int8", "int4"]}


@pytest.mark.parametrize("fast", list(FORMATS))
def test_each_format_is_measured_beside_the_machines_ceilings(
    monkeypatch: pytest.MonkeyPatch, fast: torch.dtype
) -> None:
    monkeypatch.setattr(bench_model, "multiplied_in", lambda dtype: fast)
    monkeypatch.setattr(bench_model, "machine", lambda: machine(size=64, read_bytes=2**16))
    here, speeds = measure(SMALL, prompt=12, new=2, repeats=1, peers=False)
    assert [(speed.engine, speed.format) for speed in speeds] == [("omni", form) for form in FORMATS[fast]]
    assert all(min(speed.prefill, speed.decode, speed.share_of_reads or 0) > 0 for speed in speeds)
    assert json.loads(report(here, speeds))["machine"]["products"].keys() == {"float32", "bfloat16", "int8"}


def test_another_engine_is_measured_right_behind_the_format_it_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    def rivals(*_: object) -> dict[str, list[Callable[[], Speed]]]:
        return {"int8": [lambda: Speed(engine="another", format="q8_0", prefill=1.0, decode=2.0, spread=0.0)]}

    monkeypatch.setattr(bench_model, "multiplied_in", lambda dtype: dtype)
    monkeypatch.setattr(bench_model, "machine", lambda: machine(size=64, read_bytes=2**16))
    monkeypatch.setattr(bench_model, "_rivals", rivals)
    _, speeds = measure(SMALL, prompt=12, new=2, repeats=1)
    assert [speed.format for speed in speeds] == ["bf16", "int8", "q8_0", "int4"]
    assert [speed.share_of_reads is None for speed in speeds] == [False, False, True, False]


def test_a_twin_that_errs_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_twins(SMALL) < 1e-4
    monkeypatch.setattr(bench_model, "CLOSE", 0.0)
    with pytest.raises(ValueError, match="differ by"):
        check_twins(SMALL)


def test_a_token_touches_its_experts_and_all_else_once() -> None:
    model = random_model(SMALL)
    moe = model.backbone.layers[1].mixer
    assert isinstance(moe, MoE)
    experts = sum(weight.numel() for weight in (moe.experts.up_proj, moe.experts.down_proj))
    linears = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    pack(model)
    assert touched(model) == 2 * (linears + experts * 2 // 8)
