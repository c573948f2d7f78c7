"""Compiled steps write what the plain ones write; `test_compiled` runs these where no shapes are checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from omni.compiled import compile_steps
from omni.mamba import Mamba, MambaConfig
from omni.moe import MoE, MoEConfig
from omni.packed import Format, pack

EXPERTS = MoEConfig(experts=8, top_k=2, hidden=64, shared=32, scale=2.5)


def of(config: MoEConfig, form: Format | None) -> tuple[nn.Module, MoE]:
    torch.manual_seed(0)
    holder = nn.ModuleList([MoE(config, 64)]).requires_grad_(False)
    holder[0].gate.e_score_correction_bias.normal_(std=0.1)  # pyright: ignore[reportAttributeAccessIssue]
    pack(holder, form, rows=True)
    return holder, holder[0]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (EXPERTS, None),
        (EXPERTS, "int8"),
        (replace(EXPERTS, latent=32, groups=4, top_groups=2), None),
        (replace(EXPERTS, gated=True, router="softmax", normalize=False), "int8"),
    ],
)
def test_experts_of_one_token(config: MoEConfig, form: Format | None) -> None:
    holder, moe = of(config, form)
    for seed in range(3):
        x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            moe.step = None
            wanted = moe(x)
            assert compile_steps(holder) == 1
            made = moe(x)
        assert float((made - wanted).norm() / wanted.norm()) < (1e-5 if form is None else 2e-2)
    assert torch.equal(moe(torch.cat((x, x)))[0], moe(torch.cat((x, x)))[1])  # several tokens go the usual way


def test_experts_that_no_kernel_reads_stay_as_they_are_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    holder, moe = of(EXPERTS, "int4")
    with caplog.at_level("WARNING", "omni"):
        assert compile_steps(holder) == 0
    assert "experts of 1 layers stay as they are" in caplog.text
    assert moe.step is None


def test_a_mamba_layer_goes_on_token_by_token() -> None:
    torch.manual_seed(0)
    holder = nn.ModuleList([Mamba(MambaConfig(heads=4, head_dim=16, state=32, groups=2), 64, 1e-5)])
    holder.requires_grad_(False)
    pack(holder)
    mamba: Mamba = holder[0]  # pyright: ignore[reportAssignmentType]
    x = torch.randn(20, 64)
    with torch.no_grad():
        whole = mamba(x, (20,), None)
        state = mamba.new_state(1, x.device, x.dtype)
        mamba(x[:16], (16,), state)
        assert compile_steps(holder) == 1
        parts = [mamba(x[i : i + 1], (1,), state) for i in range(16, 20)]
    torch.testing.assert_close(torch.cat(parts), whole[16:], rtol=1e-4, atol=1e-5)


def test_kernels_are_the_cpus() -> None:
    with pytest.raises(ValueError, match="the CPU's"):
        compile_steps(nn.Linear(2, 2, device="meta"))
