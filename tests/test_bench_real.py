"""Benchmarks of the released shapes and of batches: counted is what is there, and made is what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import released
import small
import torch

from omni import bench_batch, bench_model, bench_real
from omni.anatomy import anatomy
from omni.bench_decode import PRODUCTS, filled_state, profiled, touched, touched_beside, writes
from omni.bench_model import HYBRID, machine, work
from omni.bench_plot import Panel, bars, plot
from omni.bench_random import OMNI, formats, one_of_each, plain_name, random_packed, shrunk
from omni.bench_real import check_products
from omni.bench_result import Result, line, numbers, resident, rows
from omni.config import OmniConfig
from omni.hf import from_hf
from omni.mamba import Mamba
from omni.moe import MoE
from omni.packed import Eight, Format, Four, PackedExperts, PackedLinear, Plain
from omni.state import KVState, MambaState

TINY = shrunk(OMNI, 6, 1 / 32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of small tensors: these tests are of counts and columns."""
    for module in (bench_real, bench_batch):
        monkeypatch.setattr(module, "machine", lambda: machine(size=64, read_bytes=2**16))


def test_the_shapes_are_the_released_ones() -> None:
    read = from_hf(released.omni())
    assert replace(OMNI, media=read.media, eos=read.eos) == read
    assert shrunk(OMNI, 52) == OMNI
    with pytest.raises(ValueError, match="want 1 to 52 layers"):
        shrunk(OMNI, 53)


@pytest.mark.parametrize("form", [None, "int8", "int4"])
@torch.inference_mode()
def test_a_model_made_in_a_format_has_its_sizes_and_its_spread(form: Format | None) -> None:
    model = random_packed(TINY, form)
    kind = {None: Plain, "int8": Eight, "int4": Four}[form]
    inside = [m for m in model.backbone.modules() if isinstance(m, PackedLinear)]
    assert inside
    assert all(isinstance(module.packed, kind) for module in inside)
    assert model.vision is not None
    assert all(isinstance(m.packed, Plain) for m in model.vision.modules() if isinstance(m, PackedLinear))
    assert not any(value.is_meta for value in model.state_dict().values())
    dense = torch.cat([module.packed.dense(torch.float32).flatten() for module in inside])
    assert abs(float(dense.mean())) < 1e-3
    assert float(dense.std()) == pytest.approx(0.02, rel=0.05)
    experts = next(m for m in model.backbone.modules() if isinstance(m, PackedExperts))
    first, second = experts.up[0].dense(torch.float32), experts.up[1].dense(torch.float32)
    assert not torch.equal(first, second)
    assert check_products(model) <= bench_real.CLOSE
    logits = model.score(model.read(model.look_up(torch.arange(5)), (5,)))
    assert bool(logits.isfinite().all())


def test_products_that_err_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_packed(TINY, "int4")
    weight = next(m.packed for m in model.backbone.modules() if isinstance(m, PackedLinear))
    assert isinstance(weight, Four)
    monkeypatch.setattr(Four, "linear", lambda self, x, bias: x.new_ones(len(x), self.rows))
    with pytest.raises(ValueError, match="differ by"):
        check_products(model)


@torch.inference_mode()
def test_what_a_token_touches_is_what_its_layers_hold() -> None:
    model = random_packed(TINY, "int4")
    total = sum(m.packed.nbytes for m in model.backbone.modules() if isinstance(m, PackedLinear))
    for moe in (m for m in model.backbone.modules() if isinstance(m, MoE)):
        assert isinstance(moe.experts, PackedExperts)
        c = moe.config
        each = moe.experts.up[0].nbytes + moe.experts.down[0].nbytes
        total += c.top_k * each
        assert sum(w.nbytes for w in [*moe.experts.up, *moe.experts.down]) == c.experts * each
    assert isinstance(model.head, PackedLinear)
    assert touched(model) == total + model.head.packed.nbytes
    assert touched(model, 1000) > touched(model, 2) > touched(model)

    state = filled_state(model, 100)
    plain = sum(parameter.nbytes for parameter in model.backbone.parameters())
    keys = model.dtype.itemsize * 100 * TINY.backbone.kv_size
    assert touched_beside(model, state) == plain + keys + 2 * 4 * TINY.backbone.constant_size
    head = TINY.backbone.width * TINY.backbone.vocabulary
    assert work(TINY) == 2 * (anatomy(TINY).active - head) / 1e9


@torch.inference_mode()
def test_a_filled_state_is_one_that_the_model_goes_on_from() -> None:
    model = random_packed(TINY)
    state = filled_state(model, 70, 2)
    assert state.lengths == (70, 70)
    room = {id(buffer) for layer in state.layers if isinstance(layer, KVState) for buffer in layer.keys}
    before = [layer.ssm.clone() for layer in state.layers if isinstance(layer, MambaState)]
    embeddings = model.look_up(torch.arange(6))
    assert len(writes(model, state, embeddings, 2)) == 2
    assert state.lengths == (70, 70)
    assert room == {id(buffer) for layer in state.layers if isinstance(layer, KVState) for buffer in layer.keys}
    after = [layer.ssm for layer in state.layers if isinstance(layer, MambaState)]
    assert len(after) == sum(isinstance(m, Mamba) for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("form", [None, "int8", "int4"])
@torch.inference_mode()
def test_a_profile_knows_each_formats_products(form: Format | None) -> None:
    model = random_packed(one_of_each(TINY), form)
    state, embeddings = filled_state(model, 8), model.look_up(torch.arange(2))
    found = profiled(model, state, embeddings, 1e9)
    assert found.outside == pytest.approx(1)
    assert profiled(model, state, embeddings, 1e-9).outside == 0  # products were seen
    assert 0 < sum(found.operators.values()) <= 1 + 1e-9
    name = {None: "mkldnn::_linear_pointwise", "int8": "aten::_weight_int8pack_mm"}
    assert name.get(form, "aten::_weight_int4pack_mm_for_cpu") in PRODUCTS
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model.score(model.read(embeddings[:1], (1,), state))
    assert name.get(form, "aten::_weight_int4pack_mm_for_cpu") in {event.key for event in seen.key_averages()}


def test_the_real_shapes_are_measured_beside_the_ceilings() -> None:
    here, found = bench_real.measure(TINY, prompt=20, new=2, repeats=1, contexts=(16, 300))
    assert (found.layers, found.format, found.towers) == ("MEMEM*", "int4", plain_name())
    assert set(found.after) == {16, 300}
    assert found.growth == found.after[300] / found.after[16]
    assert found.touched_weights == touched(random_packed(TINY, "int4")) < found.touched
    assert found.share_of_reads == pytest.approx(found.decode * found.touched / 1e9 / here.read)
    assert 0 < found.held <= found.peak == max(found.peaks.values())
    assert sorted(found.peaks.values()) == list(found.peaks.values())
    assert min(found.prefill, found.decode, found.encoded, found.error) > 0
    text = json.loads(bench_real.report(here, found))
    assert text["real"]["after"].keys() == {"16", "300"}
    assert text["peak_bytes"] >= found.peak
    assert {len(row) for row in bench_real.rows(found)} == {3}
    with pytest.raises(ValueError, match="no context"):
        bench_real.measure(TINY, contexts=())


def test_a_text_only_model_has_nothing_to_encode() -> None:
    model = random_packed(one_of_each(TINY))
    assert bench_real.encode(model) >= 0


def test_batches_are_measured_in_each_format() -> None:
    config = shrunk(HYBRID, 6, 1 / 16)
    here, found = bench_batch.measure(config, (None, "int8", "int4"), (1, 3), context=9, new=2, repeats=1)
    assert [(b.format, b.batch) for b in found] == [(f, n) for f in (plain_name(), "int8", "int4") for n in (1, 3)]
    assert all(b.gain == 1 for b in found if b.batch == 1)
    assert found[1].gain == pytest.approx(found[1].decode / found[0].decode)
    assert json.loads(bench_batch.report(here, found))["batched"][0].keys() >= {"decode", "gain", "share_of_reads"}
    with pytest.raises(ValueError, match="at least one"):
        bench_batch.measure(config, batches=(0,))


def test_a_batch_that_differs_from_its_sequences_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small.FAMILIES["Nano 3"]
    assert bench_batch.check_together(config) < bench_model.CLOSE
    monkeypatch.setattr(bench_batch, "CLOSE", -1.0)
    with pytest.raises(ValueError, match="differ by"):
        bench_batch.check_together(config)


def test_one_of_each_kind_keeps_the_width() -> None:
    made = one_of_each(OMNI)
    assert isinstance(made, OmniConfig)
    assert len(made.backbone.blocks) == 3
    assert (made.backbone.width, made.vision, made.audio) == (2688, None, None)


def test_tables_and_lines_say_what_was_left_out() -> None:
    results = [
        Result(name="a", ours=1.0, theirs=2.0, spread=0.1, note="n"),
        Result(name="b", ours=1.0, theirs=None, spread=0.0, note="left out"),
    ]
    assert rows(results) == [("a", "1.00", "2.00", "2.00", "10%", "n"), ("b", "1.00", "", "", "0%", "left out")]
    assert json.loads(line(value=float("nan"), inside={3: [float("inf"), 1.5]}))["inside"] == {"3": [None, 1.5]}
    now, peak = resident()
    assert 2**20 < now <= peak


def test_lists_of_the_command_line() -> None:
    assert formats("int4, bf16") == ["int4", None]
    assert numbers("--batches", "1, 16") == [1, 16]
    assert numbers("--batches", "") == []
    with pytest.raises(ValueError, match="want some of bf16, int8, int4"):
        formats("int3")
    for text in ("0", "1,x", "-2", "1.5"):
        with pytest.raises(ValueError, match="positive whole numbers"):
            numbers("--batches", text)


def test_a_figure_has_bars_stages_and_lines(tmp_path: Path) -> None:
    panels = [
        bars("ratio", {"a": 1.5, "b": None}),
        Panel(title="stages", bars={"none": {"encode": 1.0, "prefill": 2.0}, "both": {"encode": 0.5}}),
        Panel(title="batch", lines={"bf16": [(1, 3.0), (2, 5.0)]}, across="sequences"),
        Panel(title="nothing"),
    ]
    plot(panels, tmp_path / "figure.png", "all")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot([Panel(title="nothing")], tmp_path / "none.png")
