"""The machine for one token: each kind of instruction against the same in torch."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from omni import native
from omni.loops import KEYS, Does
from omni.native import KINDS, Given, Program
from omni.native_steps import Head
from omni.ops import causal_attention, choose_experts
from omni.packed import BLOCK, HALVES, Eight, Four
from omni.products import Matrix
from omni.words import Words

pytestmark = pytest.mark.skipif(not native.able(), reason="its loops are measured with AVX2, under Linux, alone")


def matrix_of(weight: Tensor, form: str) -> tuple[Matrix, Tensor]:
    """Packed; and what its codes stand for."""
    match form:
        case "int4":
            four = Four.of(weight)
            words = Words(*Words.laid(four.packed, four.scales, four.rows, BLOCK, HALVES), four.rows)
            scale, zero = (words.scales << 16).view(torch.float32), (words.scales & -(1 << 16)).view(torch.float32)
            codes = (words.codes[:, :, None] >> 4 * torch.arange(8, dtype=torch.int32)[:, None]) & 15
            return words.matrix, ((codes.flatten(2) - 8) * scale[..., None] + zero[..., None]).flatten(1)
        case "int8":
            eight = Eight.of(weight)
            return Matrix(eight.codes, eight.scale, None, eight.rows), eight.dense(torch.float32)
        case _:
            made = weight.to(getattr(torch, form))
            return Matrix(made, None, None, len(made)), made.float()


@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("rows", "width"), [(96, 64), (33, 1856), (3, 96), (50, 5184)])
def test_a_row_times_a_matrix(rows: int, width: int, form: str) -> None:
    generator = torch.Generator().manual_seed(rows)
    matrix, dense = matrix_of(torch.randn(rows, width, generator=generator), form)
    bias = torch.randn(rows, generator=generator)
    x = torch.randn(1, width, generator=generator) * torch.randn(width, generator=generator).exp()
    wanted = (x.double() @ dense.double().t() + bias).float()
    made = Head(matrix._replace(bias=bias))(x)
    assert float((made - wanted).norm() / wanted.norm()) < (5e-4 if form.startswith("int") else 1e-6)
    assert Head(matrix)(torch.full((1, width), torch.nan)).isnan().all()
    assert not Head(matrix)(torch.zeros(1, width)).any()


def test_odd_widths() -> None:
    for form in ("float32", "bfloat16", "int8"):
        matrix, dense = matrix_of(torch.randn(9, 37), form)
        x = torch.randn(1, 37)
        torch.testing.assert_close(Head(matrix)(x), x @ dense.t(), rtol=1e-3, atol=1e-3)


def test_a_vectors_integers_never_leave_32_bits() -> None:
    matrix = Matrix(torch.full((2, 4096), 127, dtype=torch.int8), torch.ones(2, dtype=torch.bfloat16), None, 2)
    for x in (torch.ones(4096), torch.eye(4096)[0] * 1e30, torch.randn(4096).abs() * 1e-30):
        torch.testing.assert_close(Head(matrix)(x[None])[0], torch.full((2,), 127.0) * x.sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("sharing", [1, 3])
def test_chosen_ones_of_a_stack(sharing: int) -> None:
    stack, chosen = torch.randn(5, 7, 64), torch.tensor([4, 0, 3])
    x, out = torch.randn(3 // sharing, 64), torch.ones(3, 7)
    program = Program()
    program.write(
        Does.TIMES, KINDS[stack.dtype], stack, None, x, None, None, None, out, 7, 64, 0, 1, 3, sharing, chosen, 1
    )  # fmt: skip
    program.run({})
    wanted = torch.einsum("erw,ew->er", stack[chosen], x.expand(3, 64)) + 1
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (8, 5), (40, 9)])
def test_experts_are_chosen(groups: int, top_groups: int, softmax: bool) -> None:
    bias, chosen, weights = torch.randn(40) / 4, torch.empty(5, dtype=torch.int64), torch.empty(5)
    program = Program()
    program.write(
        Does.CHOOSE, Given("logits"), bias, torch.empty(40), chosen, weights, 40, 5, groups, top_groups, int(softmax),
        1, 2.5,
    )  # fmt: skip
    for _ in range(20):
        logits = torch.randn(40)
        scores = logits.softmax(-1) if softmax else logits.sigmoid()
        wanted = choose_experts((scores + bias)[None], 5, groups, top_groups)[0]
        program.run({"logits": logits.clone()})
        assert chosen.tolist() == wanted.tolist()
        torch.testing.assert_close(weights, scores[wanted] / scores[wanted].sum() * 2.5)
    program.run({"logits": torch.full((40,), torch.nan)})
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [1, 37, 300])
def test_attention_with_its_cache(keys: int, dtype: torch.dtype) -> None:
    heads, kv_heads, dim = 6, 2, 24
    cache = torch.randn(2, kv_heads, keys + 3, dim).to(dtype)
    q, k, v = torch.randn(1, heads, dim), torch.randn(1, kv_heads, dim), torch.randn(1, kv_heads, dim)
    threads, out = torch.get_num_threads(), torch.empty(1, heads, dim)
    found, scores = torch.empty(threads, heads, dim + 2), torch.empty(threads, 2, KEYS)
    program, kind, stride = Program(), KINDS[dtype], cache.stride(1) * dtype.itemsize
    for made, held in ((k, cache[0]), (v, cache[1])):
        program.write(Does.KEEP, kind, made, held, kv_heads, dim, keys - 1, stride)
    program.write(
        Does.ATTEND, kind, q, cache[0], cache[1], found, scores, heads, heads // kv_heads, dim, keys, stride, dim**-0.5
    )
    program.write(Does.JOIN, found, out, heads, dim)
    after = cache.clone()
    after[:, :, keys - 1] = torch.stack((k[0], v[0])).to(dtype)
    program.run({})
    assert torch.equal(cache, after)
    seen = cache[:, :, :keys].float()
    torch.testing.assert_close(out, causal_attention(q, seen[0], seen[1]), rtol=1e-4, atol=1e-5)


def test_where_torchs_threads_are_not_found_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "threads", lambda: None)
    with caplog.at_level(logging.WARNING, "omni"):
        assert not native.able.__wrapped__()
    assert "OpenMP was not found" in caplog.text
