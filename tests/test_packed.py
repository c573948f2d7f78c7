"""Packed weights: plain ones give the same numbers, those of eight and four bits what their rounded weights give."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokens
import torch
from conversations import PROCESSOR, config, film, picture, ready, user
from torch import nn
from typer.testing import CliRunner

import omni
from omni.cli import app
from omni.model import OmniModel
from omni.moe import Experts, MoE, MoEConfig
from omni.packed import (
    BLOCK,
    FEW,
    TOWERS,
    Eight,
    Format,
    Four,
    PackedExperts,
    PackedLinear,
    Rows,
    check,
    pack,
    packed,
    rounded,
)
from omni.packed_file import LAYOUT, NAME
from omni.precision import multiplied_in

FORMS: list[Format | None] = [None, "int8", "int4"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 64), (100, 96), (257, 128), (12, 40)])
@pytest.mark.parametrize("tokens", [1, 3, 40, 200])
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
    fours = FEW if multiplied_in(torch.bfloat16) == torch.float32 else tokens
    few = {Eight: 8 if shape[1] % 16 == 0 else 0, Four: fours}.get(type(made), 0)  # rows up to which x is in bfloat16
    exact = dtype == torch.float32 and tokens > few
    assert error < (1e-4 if exact else 4e-3)
    assert made.nbytes < {None: 1.01, "int8": 1.2, "int4": 1.2}[form] * weight.numel() * (
        1 if form else weight.itemsize
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.inference_mode()
def test_products_are_float32s_where_half_precision_is_slow(
    form: Format | None, dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni.precision.slowness", lambda dtype: 90.0)
    monkeypatch.setattr("omni.packed.UNPACKED", 4096)  # in parts
    torch.manual_seed(0)
    made, x = packed(torch.randn(200, 64).bfloat16(), form), torch.randn(tokens, 64).to(dtype)
    assert isinstance(made, {None: Rows, "int8": Eight, "int4": Four}[form])
    wanted = x.float() @ made.dense(torch.float32).T
    error = float((made.linear(x, None).float() - wanted).norm() / wanted.norm())
    assert error < (1e-5 if dtype == torch.float32 and (tokens == 40 or form is None) else 4e-3)


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
@pytest.mark.parametrize("tokens", [1, 5, 30])
@pytest.mark.parametrize("small", [0, 2**22])
@torch.inference_mode()
def test_experts_mix_as_their_dense_weights_do(
    form: Format | None, tokens: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("omni.packed.SMALL", small)
    moe = MoE(MoEConfig(experts=8, top_k=3, hidden=64, shared=64), 64).requires_grad_(False)
    x = torch.randn(tokens, 64)
    weights, chosen, _ = moe.gate(x)
    packing = PackedExperts.of(moe.experts, form)
    assert (packing.abreast is not None) == (form is None and small > 0)
    rounded = Experts(moe.config, 64).requires_grad_(False)
    rounded.up_proj.copy_(torch.stack([weight.dense(torch.float32) for weight in packing.up]))
    rounded.down_proj.copy_(torch.stack([weight.dense(torch.float32) for weight in packing.down]))
    wanted = rounded.mix(x, chosen, weights)
    error = float((packing.mix(x, chosen, weights) - wanted).norm() / wanted.norm())
    assert error < (6e-3 if form else 1e-4)


@pytest.mark.parametrize(("form", "low", "high"), [("int8", 0.002, 0.01), ("int4", 0.03, 0.12), (None, 0, 0)])
def test_what_rounding_took_away_is_told(form: Format | None, low: float, high: float) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"wide": nn.Linear(192, 300), "moe": MoE(MoEConfig(experts=4, top_k=2, hidden=64), 64)})
    model.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pack(model, form)
    wide, experts = model["wide"], model["moe"].experts
    pairs = [(before["wide.weight"], wide.packed.dense(torch.float32))]
    for name in ("up_proj", "down_proj"):
        made = torch.stack([each.dense(torch.float32) for each in experts.stacks[name].weights])
        pairs.append((before[f"moe.experts.{name}"], made))
    off = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs)
    assert low <= rounded(model) <= high
    assert rounded(model) == pytest.approx(off**0.5, rel=0.1)


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
    ids = torch.arange(12)
    with torch.inference_mode():
        made, wanted = (m.score(m.read(m.look_up(ids), (12,))) for m in (loaded, model))
    assert torch.equal(made, wanted)


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


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_inputs_may_lie_anywhere_in_memory(form: Format | None) -> None:
    made, x = packed(torch.randn(64, 64).bfloat16(), form), torch.randn(2, 64).bfloat16()
    askew = torch.empty(129, dtype=torch.bfloat16)[1:].view(2, 64).copy_(x)
    assert torch.equal(made.linear(askew, None), made.linear(x, None))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [2, 40])
@torch.inference_mode()
def test_inputs_and_weights_may_be_transposed(form: Format | None, tokens: int) -> None:
    weight, x = torch.randn(64, 64), torch.randn(64, tokens)
    turned, straight = packed(weight.t(), form), packed(weight.t().contiguous(), form)
    assert torch.equal(turned.linear(x.t(), None), straight.linear(x.t().contiguous(), None))


@torch.inference_mode()
def test_an_expert_that_overflows_harms_nobody_who_did_not_choose_it() -> None:
    torch.manual_seed(0)
    experts = Experts(MoEConfig(experts=4, top_k=1, hidden=8), 16).half()
    experts.up_proj[3] *= 400
    x, chosen, weights = torch.randn(2, 16).half(), torch.tensor([[0], [1]]), torch.ones(2, 1)
    made = PackedExperts.of(experts, None)
    assert made.abreast
    assert made.abreast.up.linear(x, None).square().isinf().any()
    torch.testing.assert_close(made.mix(x, chosen, weights), experts.mix(x, chosen, weights), rtol=1e-2, atol=1e-2)


def test_unknown_formats_and_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="format 'int3' came; want one of int8, int4"):
        check("int3", torch.device("cpu"))
    with pytest.raises(ValueError, match="packed weights are the CPU's"):
        check("int8", torch.device("meta"))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_model_is_the_same_after_saving_and_loading(tmp_path: Path, quantize: Format) -> None:
    model = ready(config())
    pack(model, quantize)
    model.save_pretrained(tmp_path)
    loaded = OmniModel.from_pretrained(tmp_path, quantize=quantize)
    forms = {
        name.partition(".")[0]: m.origin["weight"].form
        for name, m in loaded.named_modules()
        if isinstance(m, PackedLinear)
    }
    assert forms == dict.fromkeys(forms, f" {quantize}") | dict.fromkeys(TOWERS, " int8")
    assert loaded.identity.fingerprint == model.identity.fingerprint
    for left, right in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert left[0] == right[0]
        assert torch.equal(left[1], right[1]), left[0]
    ids = torch.arange(12)
    with torch.inference_mode():
        made, wanted = (m.score(m.read(m.look_up(ids), (12,))) for m in (loaded, model))
    assert torch.equal(made, wanted)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / NAME).read_bytes() == (tmp_path / NAME).read_bytes()


def test_a_packed_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    model = ready(config())
    pack(model, "int4")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is in int4, quantize='int8' came"):
        OmniModel.from_pretrained(tmp_path, quantize="int8")
    with pytest.raises(ValueError, match=r"is in torch.float32, dtype torch.bfloat16 came"):
        OmniModel.from_pretrained(tmp_path, torch.bfloat16)
    with pytest.raises(ValueError, match="already holds"):
        ready(config()).save_pretrained(tmp_path)
    whole = (tmp_path / NAME).read_bytes()
    layout = LAYOUT.replace(str(BLOCK), "99")
    changed = {
        "blocks of 99 rows": whole.replace(LAYOUT.encode(), layout.encode()),
        "says it is omni packed 9": whole.replace(b"omni packed 3", b"omni packed 9"),
        "make it again with omni quantize": whole[: len(whole) // 2],
    }
    for number, (wanted, content) in enumerate(changed.items()):
        folder = tmp_path / str(number)  # not in place: a file that is mapped may not shrink
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
        (folder / NAME).write_bytes(content)
        with pytest.raises(ValueError, match=wanted):
            OmniModel.from_pretrained(folder)


@pytest.mark.parametrize("key", ["moe_intermediate_size", "num_key_value_heads"])
def test_packed_weights_that_its_config_does_not_want_are_refused(tmp_path: Path, key: str) -> None:
    model = ready(config())
    pack(model, "int8")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(re.sub(rf'"{key}": (\d+)', lambda m: f'"{key}": {2 * int(m[1])}', text))
    with pytest.raises(ValueError, match=r"its config\.json wants"):
        OmniModel.from_pretrained(tmp_path)


def test_the_shell_quantises_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    ready(config()).save_pretrained(tmp_path / "model")
    tokens.tokenizer().save_pretrained(tmp_path / "model")
    command = ["quantize", str(tmp_path / "model"), "-o", str(tmp_path / "small"), "--format", "int8"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    model, processor = omni.load(tmp_path / "small")
    batch = processor(user("What?"), enable_thinking=False)
    assert model.generate(batch, 4).tokens
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "is not an empty folder" in " ".join(again.output.split())


def test_the_shell_quantises_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(config()).save_pretrained(tmp_path / "model")
    tokens.tokenizer().save_pretrained(tmp_path / "model")

    def run(output: Path, model: str = "model") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["quantize", str(tmp_path / model), "-o", str(output)])
        return result.exit_code, result.output

    code, text = run(Path("/proc/quantised"))
    assert (code, "/proc/quantised cannot be written" in text) == (2, True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    for name in ("shutil.copy", "omni.packed_file._write"):
        with monkeypatch.context() as patch:
            patch.setattr(name, interrupted)
            assert [run(tmp_path / output)[0] for output in ("new", "empty")] == [130, 130]
        assert not (tmp_path / "new").exists()
        assert not any((tmp_path / "empty").iterdir())
    assert run(tmp_path / "new")[0] == 0
    code, text = run(tmp_path / "again", "new")
    assert (code, "is packed already" in text) == (2, True)


def test_a_packed_model_is_asked_in_vain_to_change_its_dtype_or_device() -> None:
    model = ready(config())
    pack(model)
    before = {name: value.dtype for name, value in model.state_dict().items()}
    elsewhere = (partial(model.to, "meta"), partial(model.to_empty, device="meta"))
    for change in (model.bfloat16, model.half, model.double, *elsewhere):
        with pytest.raises(ValueError, match="its weights stay as they are, so load it anew"):
            change()
    assert model.to("cpu") is model
    assert {name: value.dtype for name, value in model.state_dict().items()} == before


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_model_is_copied_and_pickled_as_it_is(form: Format | None) -> None:
    model = ready(config())
    pack(model, form)
    ids = torch.arange(12)
    with torch.inference_mode():
        wanted = model.score(model.read(model.look_up(ids), (12,)))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin.score(twin.read(twin.look_up(ids), (12,))), wanted)
