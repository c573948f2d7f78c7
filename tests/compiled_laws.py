"""Compiled steps write what the plain ones write; `test_compiled` runs these where no shapes are checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import Block, BlockConfig
from omni.compiled import compile_steps
from omni.mamba import MambaConfig
from omni.moe import MLPConfig, MoEConfig
from omni.packed import Format, pack

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


@pytest.mark.parametrize("config", [SCAN, ATTENTION, TURNED])
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
