"""Compiled steps write what the plain ones write; `test_compiled` runs these where no shapes are checked."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from omni import kernels, native, products
from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import BackboneConfig, Block, BlockConfig
from omni.compiled import compile_steps
from omni.config import OmniConfig
from omni.mamba import Mamba, MambaConfig
from omni.model import OmniModel
from omni.moe import LinearConfig, MLPConfig, MoEConfig, NoOpConfig
from omni.one_token import _choose
from omni.ops import choose_experts
from omni.packed import Format, pack
from omni.products import Fixed, Matrix, times
from omni.strips import FEW, Laid, Strips
from omni.words import Words

EXPERTS = MoEConfig(experts=8, top_k=2, hidden=64, shared=32, scale=2.5)
SCAN = MambaConfig(heads=4, head_dim=16, state=32, groups=2)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=16)
TURNED = replace(ATTENTION, rope=RopeConfig(theta=10000.0), window=7, bias=True, sinks=True)


def block_of(config: BlockConfig, form: Format | None) -> Block:
    """A packed layer of width 64, whose norm and selection bias do something."""
    torch.manual_seed(0)
    block = Block(config, 64, 1e-5).requires_grad_(False)
    for name, value in (*block.named_parameters(), *block.named_buffers()):
        if name in ("norm.weight", "mixer.norm.weight", "mixer.gate.e_score_correction_bias"):
            value.add_(torch.randn(value.shape), alpha=0.1)
    pack(block, form, rows=True)
    return block


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (EXPERTS, None),
        (EXPERTS, "int8"),
        (EXPERTS, "int4"),
        (replace(EXPERTS, latent=32, groups=4, top_groups=2), None),
        (replace(EXPERTS, latent=32, bias=True), "int8"),
        (replace(EXPERTS, latent=32, hidden=96), "int4"),
        (replace(EXPERTS, gated=True, router="softmax", normalize=False), "int8"),
        (MLPConfig(hidden=96), None),
        (MLPConfig(hidden=96, gated=True, bias=True), "int8"),
        (MLPConfig(hidden=96, gated=True), "int4"),
    ],
)
def test_a_token_alone(config: BlockConfig, form: Format | None) -> None:
    block = block_of(config, form)
    for seed in range(3):
        x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            block.step = None
            wanted = block(x, (1,))
            assert compile_steps(block) == 1
            made = block(x, (1,))
        assert float((made - wanted).norm() / (wanted - x).norm()) < (1e-5 if form is None else 2e-2)
    many = block(torch.cat((x, x)), (2,))
    assert torch.equal(many[0], many[1])  # several tokens go the usual way


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_experts_are_chosen_by_comparing(groups: int) -> None:
    few = torch.randint(0, 4, (8,)).float()  # with many of a size, of which torch takes any
    for scores in (torch.randn(40), torch.randn(40).exp(), few):
        chosen = _choose(scores, 3, groups, max(1, groups // 2))
        wanted = choose_experts(scores[None], 3, groups, max(1, groups // 2))[0]
        assert torch.equal(scores[chosen], scores[wanted])
        assert len(set(chosen.tolist())) == 3
        assert scores is few or torch.equal(chosen, wanted)
    broken = torch.full((40,), torch.nan)
    for scores in (broken, torch.where(torch.arange(40) == 7, broken, torch.randn(40))):
        assert max(_choose(scores, 3, groups, max(1, groups // 2))) < 40


@pytest.mark.parametrize("config", [EXPERTS, SCAN, ATTENTION, MLPConfig(hidden=96)])
def test_layers_that_no_kernel_reads_stay_as_they_are_and_say_so(
    config: BlockConfig, caplog: pytest.LogCaptureFixture
) -> None:
    block = Block(config, 64, 1e-5).requires_grad_(False)
    pack(block)
    with caplog.at_level("WARNING", "omni"):
        assert compile_steps(block) == 0
    assert "1 layers stay as they are" in caplog.text
    assert block.step is None


@pytest.mark.parametrize("config", [SCAN, ATTENTION, replace(ATTENTION, window=7), TURNED])
@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_a_layer_with_memory_goes_on_token_by_token(config: BlockConfig, form: Format | None) -> None:
    block = block_of(config, form)
    x = torch.randn(20, 64)
    with torch.no_grad():
        whole = block(x, (20,))
        state = block.new_state(1, x.device, x.dtype)
        block(x[:16], (16,), state)
        assert compile_steps(block) == 1
        parts = [block(x[i : i + 1], (1,), state) for i in range(16, 20)]
    wanted, made = whole[16:] - x[16:], torch.cat(parts) - x[16:]
    assert float((made - wanted).norm() / wanted.norm()) < (1e-5 if form is None else 2e-2)


def test_kernels_are_the_cpus() -> None:
    with pytest.raises(ValueError, match="the CPU's"):
        compile_steps(nn.Linear(2, 2, device="meta"))


def test_short_reads_before_a_token_compile_nothing_anew() -> None:
    block = block_of(SCAN, None)
    assert compile_steps(block) == 1
    counts = []
    with torch.no_grad():
        for steps in (16, 2, 3, 5, 8, 1):
            state = block.new_state(1, torch.device("cpu"), torch.float32)
            block(torch.randn(steps, 64), (steps,), state)
            block(torch.randn(1, 64), (1,), state)
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts == counts[:1] * len(counts)


def test_layers_of_many_shapes_each_get_a_kernel() -> None:
    for hidden in range(64, 64 + 16 * 10, 16):
        block = block_of(MLPConfig(hidden=hidden), None)
        assert compile_steps(block) == 1
        with torch.no_grad():
            block(torch.randn(1, 64), (1,))
            assert block(torch.randn(1, 64), (1,)).isfinite().all()


@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_a_token_through_a_whole_model_is_the_plain_one_with_its_memory(form: Format | None) -> None:
    all_chosen = replace(EXPERTS, experts=2)  # rounding must not choose others
    blocks = (SCAN, all_chosen, LinearConfig(), ATTENTION, NoOpConfig(), *(SCAN, all_chosen) * 4, ATTENTION, SCAN)

    def made_anew() -> OmniModel:
        torch.manual_seed(1)
        model = OmniModel(OmniConfig(backbone=BackboneConfig(width=64, vocabulary=96, blocks=blocks)))
        pack(model.requires_grad_(False), form, rows=True)
        return model

    model, twin = made_anew(), made_anew()
    assert compile_steps(twin) == 13
    embeddings = torch.randn(20, 64)
    with torch.no_grad():
        first, second = (each.read(embeddings[:1], (1,)) for each in (model, twin))  # without a memory
        assert float((first - second).norm() / first.norm()) < (1e-5 if form is None else 3e-2)
        states = [each.new_state() for each in (model, twin)]
        for each, state in zip((model, twin), states, strict=True):
            each.read(embeddings[:12], (12,), state)
        for at in range(12, 20):
            wanted, made = (each.score(each.read(embeddings[at : at + 1], (1,), state))
                            for each, state in zip((model, twin), states, strict=True))  # fmt: skip
            assert float((made - wanted).norm() / wanted.norm()) < (1e-5 if form is None else 3e-2)
            assert torch.isfinite(made).all()
            assert states[0].lengths == states[1].lengths
        back = states[1].snapshot()
        once = twin.read(embeddings[:1], (1,), states[1])
        states[1].restore(back)
        assert torch.equal(twin.read(embeddings[:1], (1,), states[1]), once)
        model.read(embeddings[:1], (1,), states[0])
        short, other = (each.read(embeddings[1:4], (3,), state)
                        for each, state in zip((model, twin), states, strict=True))  # fmt: skip
        assert float((short - other).norm() / short.norm()) < (1e-5 if form is None else 3e-2)


@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_torchs_compiler_makes_kernels_where_the_machine_is_not_able(
    form: Format | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "able", lambda: False)
    test_a_token_alone(EXPERTS, form)
    test_a_token_through_a_whole_model_is_the_plain_one_with_its_memory(form)


def test_weights_written_into_after_compiling_are_not_overlooked() -> None:
    torch.manual_seed(1)
    model = OmniModel(OmniConfig(backbone=BackboneConfig(width=64, vocabulary=96, blocks=(SCAN,))))
    pack(model.requires_grad_(False), rows=True)
    compile_steps(model)
    embeddings, state = torch.randn(4, 64), model.new_state()
    with torch.no_grad():
        model.read(embeddings[:1], (1,), state)
        layer = model.backbone.layers[0]
        assert isinstance(layer, Block)
        assert isinstance(layer.mixer, Mamba)
        layer.mixer.conv1d.weight.mul_(2)
        with pytest.raises(ValueError, match="call compile_steps again"):
            model.read(embeddings[1:2], (1,), state)
        compile_steps(model)
        fork = state.clone()
        made = model.read(embeddings[1:2], (1,), state)
        both = model.read(embeddings[1:3], (2,), fork)
    torch.testing.assert_close(made, both[:1], rtol=1e-4, atol=1e-4)


def test_a_copy_of_a_compiled_model_is_apart() -> None:
    torch.manual_seed(1)
    model = OmniModel(OmniConfig(backbone=BackboneConfig(width=64, vocabulary=96, blocks=(SCAN, EXPERTS))))
    pack(model.requires_grad_(False), "int8")
    compile_steps(model)
    x = torch.randn(1, 64)
    with torch.no_grad():
        wanted = model.read(x, (1,), model.new_state())
        twin = copy.deepcopy(model)
        assert torch.equal(twin.read(x, (1,), twin.new_state()), wanted)
        layer = twin.backbone.layers[0]
        assert isinstance(layer, Block)
        assert layer.norm is not None
        layer.norm.weight.mul_(2)
        with pytest.raises(ValueError, match="call compile_steps again"):
            twin.read(x, (1,), twin.new_state())
        with pytest.raises(ValueError, match="call compile_steps again"):
            layer(x, (1,), None)
        again = copy.deepcopy(twin)
        with pytest.raises(ValueError, match="call compile_steps again"):
            again.read(x, (1,), again.new_state())
        assert torch.equal(model.read(x, (1,), model.new_state()), wanted)


def test_four_bits_laid_out_for_kernels_are_not_saved_as_others(tmp_path: Path) -> None:
    model = OmniModel(OmniConfig(backbone=BackboneConfig(width=64, vocabulary=96, blocks=(EXPERTS,))))
    pack(model.requires_grad_(False), "int4", rows=True)
    compile_steps(model)
    with pytest.raises(ValueError, match="load it without compile"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layout", "block", "halves", "error"),
    [(Strips, 64, True, 5e-4), (Words, 32, True, 1e-6), (Words, 32, False, 1e-6)],
)
@pytest.mark.parametrize(("rows", "width"), [(70, 64), (192, 96), (130, 192)])
def test_four_bits_laid_out_are_the_matrix_that_they_were_made_of(
    rows: int, width: int, layout: type[Laid], block: int, halves: bool, error: float
) -> None:
    generator = torch.Generator().manual_seed(rows)
    filled = rows + -rows % 64
    group = 64 if width % 64 == 0 else 32
    codes = torch.randint(16, (filled, width), generator=generator)
    scales = torch.rand(width // group, filled, 2, generator=generator).bfloat16()
    by_block = codes.view(-1, block, width).transpose(1, 2)  # torch's layout, in which rows share a byte
    low, high = (
        (by_block[..., : block // 2], by_block[..., block // 2 :])
        if halves
        else (by_block[..., ::2], by_block[..., 1::2])
    )
    packed = (low + 16 * high).byte().reshape(filled, width // 2)
    made = layout(*layout.laid(packed, scales, rows, block, halves), rows)
    scale, zero = (scales[..., kind].t().float().repeat_interleave(group, 1) for kind in range(2))
    wanted = ((codes - 8) * scale + zero)[:rows]
    torch.testing.assert_close(made.dense(torch.float32), wanted)
    for count in (1, 3, 40):
        x = torch.randn(count, width, generator=generator)
        bias = torch.randn(rows, generator=generator)
        out, exact = made.linear(x, bias), x @ wanted.t() + bias
        assert float((out - exact).norm() / exact.norm()) < (error if count <= FEW else 1e-2)


@pytest.mark.parametrize("form", [None, "int8"])
def test_parts_of_a_matrix_that_are_read_side_by_side_are_the_whole(
    form: Format | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "able", lambda: False)
    for name, value in (("LARGE", 1), ("PARTS", 4), ("PARTS_OF_CODES", 2), ("_READY", {})):
        monkeypatch.setattr(products, name, value)
    for rows in (10, 12):  # ten are no four parts
        weight = torch.randint(-127, 128, (3, rows, 32), dtype=torch.int8)
        scales = None if form is None else torch.rand(3, rows).bfloat16()
        x, bias = torch.randn(3, 32), torch.randn(rows)
        made = times(Matrix(weight.float() if form is None else weight, scales, bias, rows), x)
        wanted = (weight.float() * (1 if scales is None else scales.float()[..., None]) @ x[..., None])[..., 0] + bias
        assert float((made - wanted).norm() / wanted.norm()) < 1e-4
    test_a_token_alone(EXPERTS, form)


def test_a_vectors_integers_never_leave_32_bits() -> None:
    weight = torch.full((2, 4096), 127, dtype=torch.int8)
    matrix = Matrix(weight, torch.ones(2, dtype=torch.bfloat16), None, 2)
    for x in (torch.ones(4096), torch.zeros(4096), torch.eye(4096)[0] * 1e30, torch.randn(4096).abs() * 1e-30):
        torch.testing.assert_close(times(matrix, x), torch.full((2,), 127.0) * x.sum(), rtol=1e-3, atol=0)
    assert times(matrix, torch.full((4096,), torch.nan)).isnan().all()


def test_a_prompt_in_fused_passes_is_the_plain_one() -> None:
    assert compile_steps(block_of(MLPConfig(hidden=96), None)) == 1
    inputs = (torch.randn(70, 4, 16), torch.rand(70, 4), -torch.rand(4), torch.randn(70, 2, 32), torch.randn(70, 2, 32))
    memory = torch.randn(2, 4, 16, 32)
    with torch.no_grad():
        made = kernels.selective_scan(*inputs, memory, (47, 23), 16)
        weigh = kernels.FUSED.pop("weigh")
        wanted = kernels.selective_scan(*inputs, memory, (47, 23), 16)
    kernels.FUSED["weigh"] = weigh
    for mine, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_compiled_once_for_all_layers_of_a_shape_and_for_each_dtype() -> None:
    traced: list[torch.dtype] = []

    def law(inputs: tuple[torch.Tensor], weights: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, ...]:
        traced.append(inputs[0].dtype)
        return (inputs[0] * weights[0] + weights[1], inputs[0] - 1)

    layers = [Fixed(law, (torch.randn(8), number)) for number in (2, 2, 3)]
    for layer in layers:
        for x in (torch.randn(1, 8), torch.randn(1, 8), torch.randn(1, 8).bfloat16()):
            for made, wanted in zip(layer(x), law((x,), layer.weights), strict=True):
                torch.testing.assert_close(made, wanted)
            traced.pop()  # what was wanted
    assert traced == [torch.float32, torch.bfloat16] * 2  # the number is another kernel's, other weights are not
