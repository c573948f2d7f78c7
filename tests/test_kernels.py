"""Each fast twin gives its reference's numbers, whole or token by token, for sequences of any lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from omni import kernels, ops, precision

LENGTHS = [(1,), (40,), (300,), (5, 129, 64, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, params=[0.25, 90.0])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that is fast in half precision, and on one that is slow, whatever runs the test."""
    monkeypatch.setattr("omni.precision.slowness", lambda dtype: request.param)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.fixture(autouse=True)
def _reading() -> Any:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def close(made: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert made.shape == wanted.shape
    assert float((made.float() - wanted.float()).norm()) <= TOLERANCE[dtype] * float(wanted.float().norm())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_equals_its_reference(dtype: torch.dtype, lengths: tuple[int, ...], groups: int) -> None:
    tokens = sum(lengths)
    x, dt, a = randn(tokens, 8, 16, dtype=dtype), torch.rand(tokens, 8), -3 * torch.rand(8)
    b, c = (randn(tokens, groups, 32, dtype=dtype) for _ in range(2))
    state = randn(len(lengths), 8, 16, 32)
    made = kernels.selective_scan(x, dt, a, b, c, state, lengths, 64)
    wanted = ops.selective_scan(x.float(), dt, a, b.float(), c.float(), state, lengths, 64)
    for one, other in zip(made, wanted, strict=True):
        close(one, other, dtype)


def test_a_state_beyond_float16_stays_a_number() -> None:
    x, b, c = randn(64, 4, 8).abs().mul(30).half(), randn(64, 2, 16).abs().mul(40).half(), randn(64, 2, 16).half()
    dt, a, state = torch.ones(64, 4), torch.full((4,), -0.001), torch.zeros(1, 4, 8, 16)
    made = kernels.selective_scan(x, dt, a, b, c, state, (64,), 64)
    wanted = ops.selective_scan(x.float(), dt, a, b.float(), c.float(), state, (64,), 64)
    assert float(wanted[1].max()) > torch.finfo(torch.float16).max
    for one, other in zip(made, wanted, strict=True):
        close(one, other, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("biased", [True, False])
def test_the_convolution_equals_its_reference(dtype: torch.dtype, lengths: tuple[int, ...], biased: bool) -> None:
    x, weight = randn(sum(lengths), 96, dtype=dtype), randn(96, 4, dtype=dtype)
    bias, history = randn(96, dtype=dtype) if biased else None, randn(len(lengths), 3, 96)
    made = kernels.causal_conv(x, weight, bias, lengths, history)
    wanted = ops.causal_conv(x, weight, bias, lengths, history)
    close(made[0], wanted[0], dtype)
    assert torch.equal(made[1], wanted[1])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_norms_equal_their_references(dtype: torch.dtype) -> None:
    x, weight, y = randn(37, 96, dtype=dtype), randn(96, dtype=dtype), randn(37, 96)
    close(kernels.rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5), dtype)
    long = randn(3, 2500, 96, dtype=dtype)  # in pieces, the last of them smaller
    before = long.clone()
    close(kernels.rms_norm(long, weight, 1e-5), ops.rms_norm(long, weight, 1e-5), dtype)
    assert torch.equal(long, before)
    skip = randn(96)
    wanted = long[0].float() + skip * long[1].float()
    close(kernels.add_skip(long[0].to(torch.float32, copy=True), long[1], skip), wanted, torch.float32)
    made, wanted = (of.gated_group_rms_norm(y, x, weight, 3, 1e-5) for of in (kernels, ops))
    close(made, wanted, dtype)


def test_one_token_of_each_sequence_equals_the_scan_of_one() -> None:
    x, dt, a = randn(5, 8, 16), torch.rand(5, 8), -torch.rand(8)
    b, c, state = randn(5, 2, 32), randn(5, 2, 32), randn(5, 8, 16, 32)
    before = state.clone()
    made = kernels.selective_step(x, dt, a, b, c, state)
    wanted = ops.selective_scan(x, dt, a, b, c, state, (1,) * 5, 64)
    for one, other in zip(made, wanted, strict=True):
        close(one, other, torch.float32)
    assert torch.equal(state, before)  # states are replaced, never written into
    rows, weight, bias, history = randn(5, 96), randn(96, 4), randn(96), randn(5, 3, 96)
    out, after = kernels.step_conv(rows, weight, bias, history)
    wanted_out, wanted_after = ops.causal_conv(rows, weight, bias, (1,) * 5, history)
    close(out, wanted_out, torch.float32)
    assert torch.equal(after, wanted_after)


@pytest.mark.parametrize("lengths", [(4,), (3, 3, 3), (2, 1, 4)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_few_tokens_of_each_sequence_equal_their_references(
    dtype: torch.dtype, lengths: tuple[int, ...], biased: bool
) -> None:
    tokens, count = sum(lengths), len(lengths)
    x, dt, a = randn(tokens, 8, 16, dtype=dtype), torch.rand(tokens, 8), -torch.rand(8)
    b, c = randn(tokens, 2, 32, dtype=dtype), randn(tokens, 2, 32, dtype=dtype)
    state = randn(count, 8, 16, 32)
    before = state.clone()
    made = kernels.selective_steps(x, dt, a, b, c, state, lengths)
    wanted = ops.selective_steps(x.float(), dt, a, b.float(), c.float(), state, lengths)
    for one, other in zip(made, wanted, strict=True):
        close(one, other, torch.float32)
    assert torch.equal(state, before)
    rows, weight, history = randn(tokens, 96, dtype=dtype), randn(96, 4, dtype=dtype), randn(count, 3, 96)
    bias = randn(96, dtype=dtype) if biased else None
    made = kernels.short_conv(rows, weight, bias, lengths, history)
    for one, other in zip(made, ops.short_conv(rows, weight, bias, lengths, history), strict=True):
        close(one, other, dtype)


@pytest.mark.parametrize("window", [None, 7, 100])
@pytest.mark.parametrize("queries", [1, 3, 20, 300])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_attention_equals_its_reference(dtype: torch.dtype, window: int | None, queries: int) -> None:
    q = randn(queries, 8, 16, dtype=dtype)
    k, v = (randn(2, queries + 20, 16, dtype=dtype) for _ in range(2))
    close(kernels.causal_attention(q, k, v, window), ops.causal_attention(q, k, v, window), dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_one_query_of_many_keys_equals_its_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    by_head, calls = kernels._attention_by_head, []
    monkeypatch.setattr(kernels, "_attention_by_head", lambda *tensors: calls.append(0) or by_head(*tensors))
    q, k, v = randn(1, 8, 16, dtype=dtype), *(randn(2, kernels.MANY_KEYS, 16, dtype=dtype) for _ in range(2))
    close(kernels.causal_attention(q, k, v), ops.causal_attention(q, k, v), dtype)
    assert len(calls) == (dtype == torch.bfloat16 and precision.slowness(dtype) < 1)


@pytest.mark.parametrize("tokens", [1, 50])
def test_experts_are_mixed_as_by_the_reference(tokens: int) -> None:
    x, weights = randn(tokens, 24), torch.rand(tokens, 2)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)])
    matrices = randn(6, 24, 24)

    def expert(number: int, rows: Tensor) -> Tensor:
        return rows @ matrices[number]

    made, wanted = (of.mix_experts(x, chosen, weights, expert) for of in (kernels, ops))
    close(made, wanted, torch.float32)
    with torch.autocast("cpu"):  # experts then give bfloat16 for float32
        made = kernels.mix_experts(x, chosen, weights, expert)
    close(made, wanted, torch.bfloat16)


def test_where_gradients_are_wanted_the_reference_runs() -> None:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(4, 8, requires_grad=True)
        weight = torch.ones(8)
        assert not kernels.fast(x)
        assert torch.equal(kernels.rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))
        assert kernels.rms_norm(x, weight, 1e-5).requires_grad
