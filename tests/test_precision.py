"""Where half precision is slow a checkpoint is computed in float32, said in one line; a dtype that was named wins."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch

from omni import precision
from omni.heap import OWN, keep_freed
from omni.model import OmniModel


def dtypes(model: OmniModel) -> set[torch.dtype]:
    return {value.dtype for name, value in model.named_parameters()}


@pytest.mark.parametrize("times", [1.5, 90.0])
def test_a_half_precision_checkpoint_is_computed_in_what_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: float
) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: times)
    small.model(small.FAMILIES["Nano 2"]).bfloat16().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = OmniModel.from_pretrained(tmp_path, device="cpu")
    assert dtypes(model) == {torch.bfloat16 if times < 4 else torch.float32}
    said = [record.message for record in caplog.records]
    assert said == ([] if times < 4 else [said[0]])
    assert times < 4 or "90 times as long in bfloat16" in said[0]
    assert dtypes(OmniModel.from_pretrained(tmp_path, torch.bfloat16, "cpu")) == {torch.bfloat16}


def test_what_is_float32_already_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: 1 / 0)
    assert precision.cpu_dtype(["F32", "I64"]) is None


def test_quantised_weights_count_as_what_they_become(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowness", lambda dtype: 9.0 if dtype == torch.bfloat16 else 1.0)
    assert precision.cpu_dtype(["U8"]) == precision.cpu_dtype(["F8_E4M3", "F32"]) == torch.float32
    assert precision.cpu_dtype(["F16"]) is None


def test_the_measure_is_a_ratio() -> None:
    assert precision.slowness(torch.float32) == pytest.approx(1.0, abs=0.9)
    assert precision.slowness(torch.float16, size=64) > 0


KEEPS = """
import torch
from omni.bench_result import resident
from omni.heap import keep_freed
assert keep_freed()
torch.ones(2**18).sum()
before = resident()[0]
parts = [torch.ones(5 * 2**20) for _ in range(10)]  # 20 MiB each
del parts
print(resident()[0] - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no such settings")
def test_what_is_freed_is_kept_unless_the_user_has_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    kept = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True).stdout
    assert int(kept) > 150 * 2**20
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("avx2", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 100, 513])
def test_a_product_is_the_same_whoever_takes_it(
    dtype: torch.dtype, avx2: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "AVX2", avx2)
    torch.manual_seed(0)
    weight, bias, wide = (
        torch.randn(24, 40, dtype=dtype),
        torch.randn(24, dtype=dtype),
        torch.randn(40, 600, dtype=dtype),
    )
    for x in (wide.t()[:tokens], wide.t()[:tokens].contiguous()):
        for added in (bias, None):
            made, wanted = precision.linear(x, weight, added), torch.nn.functional.linear(x, weight, added)
            torch.testing.assert_close(made, wanted)
