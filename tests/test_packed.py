"""Packed weights: plain ones give the same numbers, those of eight and four bits what their rounded weights give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conversations import PROCESSOR, config, film, picture, ready, user
from torch import nn

from omni.model import OmniModel
from omni.moe import Experts, MoE, MoEConfig
from omni.packed import Eight, Format, Four, PackedExperts, PackedLinear, check, pack, packed

FORMS: list[Format | None] = [None, "int8", "int4"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 64), (100, 96), (257, 128)])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.inference_mode()
def test_products_are_those_of_the_dense_weight(
    form: Format | None, dtype: torch.dtype, shape: tuple[int, int], tokens: int
) -> None:
    torch.manual_seed(0)
    weight, bias, x = (
        torch.randn(shape).to(dtype),
        torch.randn(shape[0]).to(dtype),
        torch.randn(tokens, shape[1]).to(dtype),
    )
    made = packed(weight, form)
    wanted = x.float() @ made.dense(torch.float32).T + bias.float()
    error = float((made.linear(x, bias).float() - wanted).norm() / wanted.norm())
    few = {None: 0, "int8": 8, "int4": 40}[form]  # rows up to which a kernel takes x in bfloat16
    exact = dtype == torch.float32 and tokens > few
    assert error < (1e-4 if exact else 4e-3)
    assert made.nbytes < {None: 1.01, "int8": 1.1, "int4": 1.0}[form] * weight.numel() * (
        1 if form else weight.itemsize
    )


@pytest.mark.parametrize(("form", "most"), [("int8", 0.01), ("int4", 0.1)])
def test_rounding_loses_little(form: Format, most: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(128, 256)
    made = packed(weight, form)
    assert isinstance(made, {"int8": Eight, "int4": Four}[form])
    assert 0 < float((made.dense(torch.float32) - weight).norm() / weight.norm()) < most


def test_zero_rows_and_large_values_stay() -> None:
    weight = torch.zeros(64, 64)
    weight[1, 3], weight[2] = 1e4, 7.0
    for form in FORMS:
        back = packed(weight, form).dense(torch.float32)
        assert torch.equal(back[0], weight[0])
        assert float((back - weight).abs().max()) < 1e-2 * 1e4
        assert torch.isfinite(packed(weight, form).linear(torch.zeros(2, 64), None)).all()


def test_a_width_that_no_group_divides_becomes_int8_and_codes_come_back() -> None:
    made = packed(torch.randn(8, 40), "int4")
    assert isinstance(made, Eight)
    assert torch.equal(made.codes.float() * made.scale[:, None], made.dense())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 30])
@torch.inference_mode()
def test_experts_mix_as_their_dense_weights_do(form: Format | None, tokens: int) -> None:
    torch.manual_seed(0)
    moe = MoE(MoEConfig(experts=8, top_k=3, hidden=64, shared=64), 64).requires_grad_(False)
    x = torch.randn(tokens, 64)
    weights, chosen, _ = moe.gate(x)
    packing = PackedExperts.of(moe.experts, form)
    rounded = Experts(moe.config, 64).requires_grad_(False)
    rounded.up_proj.copy_(torch.stack([weight.dense(torch.float32) for weight in packing.up]))
    rounded.down_proj.copy_(torch.stack([weight.dense(torch.float32) for weight in packing.down]))
    wanted = rounded.mix(x, chosen, weights)
    error = float((packing.mix(x, chosen, weights) - wanted).norm() / wanted.norm())
    assert error < (6e-3 if form else 1e-4)


def written(model: OmniModel) -> Any:
    batch = PROCESSOR(user(picture(0), film(1), "What?"), enable_thinking=False)
    return model.generate(batch, 8, logprobs=True)


def test_a_packed_model_answers_the_same_and_is_the_same_model() -> None:
    model = ready(config())
    before, identity = written(model), model.identity.fingerprint
    pack(model)
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert not any(isinstance(module, nn.Linear | Experts) for module in model.modules())
    after = written(model)
    assert after.tokens == before.tokens
    assert after.logprobs == pytest.approx(before.logprobs, abs=1e-4)
    assert model.identity.fingerprint == identity
    for form in ("int8", "int4"):
        other = ready(config())
        pack(other, form)
        assert other.identity.fingerprint != identity
        assert written(other).tokens


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_packed_while_loading_are_those_packed_afterwards(tmp_path: Path, quantize: Format) -> None:
    model = ready(config())
    model.save_pretrained(tmp_path)
    loaded = OmniModel.from_pretrained(tmp_path, torch.float32, quantize=quantize)
    pack(model, quantize)
    assert loaded.identity.fingerprint == model.identity.fingerprint
    tokens = torch.arange(12)
    with torch.inference_mode():
        made, wanted = (m.score(m.read(m.look_up(tokens), (12,))) for m in (loaded, model))
    assert torch.equal(made, wanted)
    with pytest.raises(ValueError, match="a quantised model came"):
        loaded.save_pretrained(tmp_path / "again")


def test_a_plainly_packed_model_saves_what_it_was_loaded_from(tmp_path: Path) -> None:
    ready(config()).save_pretrained(tmp_path / "first")
    packed_model = OmniModel.from_pretrained(tmp_path / "first", torch.float32)
    pack(packed_model)
    packed_model.save_pretrained(tmp_path / "second")
    first, second = (OmniModel.from_pretrained(tmp_path / name, torch.float32) for name in ("first", "second"))
    for (name, one), (_, other) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_four_bits_are_the_same_on_every_processor(capability: str) -> None:
    """torch lays four bits out by what the processor can do; few rows and many must agree with the weight on each."""
    script = """
import torch
from omni.packed import Four
weight, x = torch.randn(100, 96), torch.randn(40, 96).bfloat16()
made, wanted = Four.of(weight), x.float() @ weight.T
for rows in (1, 40):
    error = (made.linear(x[:rows], None).float() - wanted[:rows]).norm() / wanted[:rows].norm()
    assert error < 0.15, (rows, error)
"""
    able = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}
    if able.get(torch.backends.cpu.get_cpu_capability(), 0) < able[capability.upper()]:
        pytest.skip(f"this processor has no {capability}")
    env = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-1000:]


def test_unknown_formats_and_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="format 'int3' came; want one of int8, int4"):
        check("int3", torch.device("cpu"))
    with pytest.raises(ValueError, match="packed weights are the CPU's"):
        check("int8", torch.device("meta"))
