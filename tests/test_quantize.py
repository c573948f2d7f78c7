"""Laws of the number formats: exact bytes, exact ties, exact decoding, and errors no larger than a format allows."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omni import quantize
from omni.quantize import (
    NVFP4,
    dequantize,
    dequantize_fp8,
    dequantize_mxfp4,
    dequantize_nvfp4,
    quantize_fp8,
    quantize_nvfp4,
)

few = settings(deadline=None, max_examples=25)
FP8 = torch.float8_e4m3fn
UNIT = torch.tensor(2688.0)  # the amax at which the tensor scale is 1, and a block that holds a 6 has scale 1


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(*shape: int, seed: int = 0) -> Tensor:
    """Rows whose sizes differ by factors of up to 1000, as those of real weights do."""
    return noise(*shape, seed=seed) * 10 ** (3 * noise(*shape[:-1], 1, seed=seed + 1).sigmoid() - 3)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, also for FP8."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def same_nvfp4(a: NVFP4, b: NVFP4) -> bool:
    return all(same(getattr(a, name), getattr(b, name)) for name in ("packed", "block_scale", "tensor_scale"))


def e4m3(byte: int) -> float:
    """What a byte means by the definition of E4M3: bias 7, three bits of fraction, no infinity."""
    sign, exponent, fraction = -1 if byte & 128 else 1, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return math.nan
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def e2m1(code: int) -> float:
    """What a nibble means by the definition of E2M1: bias 1, one bit of fraction."""
    sign, exponent, fraction = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * (fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1))


# FP8


def test_every_fp8_byte_means_what_e4m3_defines() -> None:
    q = torch.arange(256, dtype=torch.uint8).view(FP8)
    got = dequantize_fp8(q, torch.tensor(1.0))
    wanted = torch.tensor([e4m3(byte) for byte in range(256)])
    assert torch.equal(got.nan_to_num(1e9), wanted.nan_to_num(1e9))


@pytest.mark.parametrize("power", [-100, -3, 0, 5])
def test_values_that_fp8_holds_survive_exactly(power: int) -> None:
    bytes_ = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
    x = dequantize_fp8(bytes_.view(FP8), torch.tensor(2.0**power))
    q, scale = quantize_fp8(x)
    assert float(scale) == 2.0**power
    assert same(q, bytes_.view(FP8))


def test_fp8_bytes_written_by_hand() -> None:
    q, scale = quantize_fp8(torch.tensor([[448.0, -448, 1, -1], [0, 2.0**-9, 1.0625, 1.1875]]))
    assert float(scale) == 1.0
    assert q.view(torch.uint8).tolist() == [[0x7E, 0xFE, 0x38, 0xB8], [0x00, 0x01, 0x38, 0x3A]]  # ties to even


@few
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
def test_fp8_is_off_by_at_most_a_sixteenth_or_half_its_smallest_step(rows: int, width: int, seed: int) -> None:
    x = uneven(rows, width, seed=seed)
    q, scale = quantize_fp8(x)
    allowed = torch.maximum(x.abs() / 16, scale * 2.0**-10) * (1 + 1e-6)
    assert bool(((dequantize_fp8(q, scale) - x).abs() <= allowed).all())
    again, scale_again = quantize_fp8(dequantize_fp8(q, scale))
    assert same(again, q)
    torch.testing.assert_close(scale_again, scale, rtol=2.0**-22, atol=0)  # 448 s / 448 may miss s by its last bit


def test_each_expert_has_an_fp8_scale_of_its_own() -> None:
    x = uneven(3, 4, 8) * torch.tensor([1.0, 50.0, 0.0])[:, None, None]
    q, scale = quantize_fp8(x)
    assert scale.shape == (3,)
    for expert in range(3):
        alone, alone_scale = quantize_fp8(x[expert])
        assert same(q[expert], alone)
        assert same(scale[expert], alone_scale)
        assert torch.equal(dequantize_fp8(q, scale)[expert], dequantize_fp8(alone, alone_scale))


# NVFP4


def block(*values: float) -> Tensor:
    """One block of 16 that begins with these values and ends with a 6, so that its scale is 1."""
    return torch.tensor([[*values, *[0.0] * (15 - len(values)), 6.0]])


def codes_of(packed: Tensor) -> list[int]:
    return [code for byte in packed.flatten().tolist() for code in (byte & 15, byte >> 4)]


def test_halfway_values_go_to_the_even_code() -> None:
    q = quantize_nvfp4(block(0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0), UNIT)
    assert dequantize_nvfp4(q).tolist()[0] == [0, 1, 1, 2, 2, 4, 4, 0, -1, -1, -2, -2, -4, -4, 0, 6]
    assert codes_of(q.packed) == [0, 2, 2, 4, 4, 6, 6, 8, 10, 10, 12, 12, 14, 14, 0, 7]


@pytest.mark.parametrize(("lower", "edge"), list(enumerate(quantize.EDGES)))
def test_a_value_just_off_halfway_goes_to_the_nearer_code(lower: int, edge: float) -> None:
    middle = torch.tensor(edge)
    below, above = (float(torch.nextafter(middle, torch.tensor(far))) for far in (0.0, 9.0))
    q = quantize_nvfp4(block(below, above, -below, -above), UNIT)
    assert codes_of(q.packed)[:4] == [lower, lower + 1, lower + 8, lower + 9]


def test_nvfp4_bytes_written_by_hand() -> None:
    x = torch.tensor([[0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0]])
    q = quantize_nvfp4(torch.cat((x, 448 * x), 1))  # the tensor's amax is 2688, its scale 1
    assert float(q.tensor_scale) == 1.0
    assert q.block_scale.view(torch.uint8).tolist() == [[0x38, 0x7E]]  # 1 and 448
    assert q.packed.tolist() == [[0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F] * 2]


def test_every_byte_and_scale_is_decoded_as_defined() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(4, 64)
    scales = torch.arange(32, dtype=torch.uint8).view(4, 8) * 3 + 1
    q = NVFP4(packed, scales.view(FP8), torch.tensor(2.0**-5))
    wanted = [
        e2m1(byte >> shift & 15) * e4m3(int(scales.flatten()[index // 8])) * 2.0**-5
        for index, byte in enumerate(packed.flatten().tolist())
        for shift in (0, 4)
    ]
    assert dequantize_nvfp4(q).flatten().tolist() == wanted


@few
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_values_that_nvfp4_holds_survive_exactly(rows: int, blocks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, blocks, 16), generator=generator)
    codes[..., 0] |= 7  # a 6 or -6 in each block
    scale = torch.randint(8, 127, (rows, blocks), generator=generator, dtype=torch.uint8)  # normal E4M3
    scale[0, 0] = 0x7E  # and one that is 448
    codes = codes.flatten(1).to(torch.uint8)
    q = NVFP4(codes[:, ::2] | codes[:, 1::2] << 4, scale.view(FP8), torch.tensor(0.03125))
    assert same_nvfp4(quantize_nvfp4(dequantize_nvfp4(q)), q)


@few
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_nvfp4_is_off_by_at_most_half_the_gap_between_values(rows: int, blocks: int, seed: int) -> None:
    x = uneven(rows, 16 * blocks, seed=seed)
    q = quantize_nvfp4(x)
    step = (q.block_scale.float() * q.tensor_scale).repeat_interleave(16, 1)
    size = x.abs() / step
    allowed = torch.where(size < 2, 0.25, torch.where(size < 4, 0.5, 1.0)) * step * (1 + 1e-6)
    error = (dequantize_nvfp4(q) - x).abs()
    within = size <= 6  # a block scale rounded down leaves its largest value beyond 6: cut to 6, at most 6 / 16 more
    assert bool((error <= allowed)[within].all())
    assert bool((error <= step)[~within & (q.block_scale.float() > 2.0**-6).repeat_interleave(16, 1)].all())


def test_quantising_again_changes_nothing() -> None:
    x = uneven(64, 128)
    amax = x.abs().amax()
    once = quantize_nvfp4(x, amax)
    assert float(once.block_scale.float().min()) > 2.0**-6  # subnormal scales are too coarse for this law
    assert same_nvfp4(quantize_nvfp4(dequantize_nvfp4(once), amax), once)


def test_error_on_gaussian_weights_is_the_known_one() -> None:
    x = noise(512, 1024)
    error = dequantize_nvfp4(quantize_nvfp4(x)) - x
    assert float(error.square().mean().sqrt()) == pytest.approx(0.0951, abs=3e-4)


def test_a_block_far_smaller_than_the_tensor_keeps_its_largest_value() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16] = 2688.0, 0.004  # the second block's scale would round to 0
    q = quantize_nvfp4(x)
    assert q.block_scale.float().tolist() == [[448.0, 2.0**-9]]
    assert float(dequantize_nvfp4(q)[0, 16]) == 2 * 2.0**-9


def test_values_beyond_a_calibrated_amax_are_cut_to_it() -> None:
    x = torch.tensor([[1000.0, -1000.0, *[0.5] * 14]])
    assert dequantize_nvfp4(quantize_nvfp4(x, torch.tensor(100.0)))[0, :3].tolist() == pytest.approx([100, -100, 0])


def test_each_expert_has_an_nvfp4_scale_of_its_own() -> None:
    x = uneven(3, 4, 32) * torch.tensor([1.0, 50.0, 0.0])[:, None, None]
    q = quantize_nvfp4(x)
    assert (q.packed.shape, q.block_scale.shape, q.tensor_scale.shape) == ((3, 4, 16), (3, 4, 2), (3,))
    calibrated = torch.tensor([9.0, 300.0, 1.0])
    for expert in range(3):
        alone = quantize_nvfp4(x[expert])
        assert same_nvfp4(NVFP4(q.packed[expert], q.block_scale[expert], q.tensor_scale[expert]), alone)
        assert torch.equal(dequantize_nvfp4(q)[expert], dequantize_nvfp4(alone))
        by_expert, one = quantize_nvfp4(x, calibrated), quantize_nvfp4(x[expert], calibrated[expert])
        assert same(by_expert.packed[expert], one.packed)
        assert same(
            quantize_nvfp4(x, torch.tensor(9.0)).packed[expert], quantize_nvfp4(x[expert], UNIT * 9 / 2688).packed
        )


# MXFP4


def test_every_mxfp4_byte_is_decoded_as_defined_at_every_power() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(2, 8, 16)
    scales = torch.arange(16, dtype=torch.uint8).view(2, 8) * 16 + 7
    wanted = [
        e2m1(byte >> shift & 15) * 2.0 ** (int(scales.flatten()[index // 16]) - 127)
        for index, byte in enumerate(blocks.flatten().tolist())
        for shift in (0, 4)
    ]
    got = dequantize_mxfp4(blocks, scales, torch.float32)
    assert got.shape == (2, 256)
    assert got.flatten().tolist() == wanted


def test_mxfp4_codes_and_scales_that_do_not_fit_are_refused() -> None:
    blocks, scales = torch.zeros(2, 3, 16, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8)
    plain: Any = inspect.unwrap(dequantize_mxfp4)  # the annotation would refuse them first
    for bad in ((blocks[..., :8], scales), (blocks, scales[:, :2]), (blocks, scales.float()), (blocks.int(), scales)):
        with pytest.raises(ValueError, match="want uint8, and 16 codes a scale"):
            plain(*bad, torch.float32)


# Both


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e30])
def test_weights_of_any_size_come_back(size: float) -> None:
    x = torch.full((2, 16), size) * torch.linspace(-1, 1, 16)
    for back in (dequantize_fp8(*quantize_fp8(x)), dequantize_nvfp4(quantize_nvfp4(x))):
        assert bool(back.isfinite().all())
        torch.testing.assert_close(back, x, rtol=0, atol=max(size / 4, 1e-38))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_the_float32_weight_rounded_once(dtype: torch.dtype) -> None:
    q, scale = quantize_fp8(uneven(8, 32))
    assert same(dequantize_fp8(q, scale, dtype), dequantize_fp8(q, scale).to(dtype))
    packed = quantize_nvfp4(uneven(8, 32))
    assert same(dequantize_nvfp4(packed, dtype), dequantize_nvfp4(packed).to(dtype))
    x = uneven(8, 32).to(dtype)
    assert same(quantize_fp8(x)[0], quantize_fp8(x.float())[0])
    assert same_nvfp4(quantize_nvfp4(x), quantize_nvfp4(x.float()))


def test_parts_equal_the_whole_and_a_view_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uneven(48, 40).T
    whole, (q, scale) = quantize_nvfp4(x.contiguous()), quantize_fp8(x.contiguous())
    back, back8 = dequantize_nvfp4(whole), dequantize_fp8(q, scale)
    for at_once in (1, 100, 300):
        monkeypatch.setattr(quantize, "AT_ONCE", at_once)
        assert same_nvfp4(quantize_nvfp4(x), whole)
        assert torch.equal(dequantize_nvfp4(whole), back)
        assert torch.equal(dequantize_fp8(q.T, scale), back8.T)


def test_nothing_becomes_nothing() -> None:
    assert dequantize_nvfp4(quantize_nvfp4(torch.zeros(0, 32))).shape == (0, 32)
    assert dequantize_fp8(*quantize_fp8(torch.zeros(3, 0))).shape == (3, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x = noise(2, 16)
    x[1, 3] = bad
    with pytest.raises(ValueError, match="quantize_fp8: the largest magnitude is"):
        quantize_fp8(x)
    for amax in (None, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="quantize_nvfp4: the largest magnitude is"):
            quantize_nvfp4(x, amax)
    with pytest.raises(ValueError, match="quantize_nvfp4: the largest magnitude is"):
        quantize_nvfp4(noise(2, 16), torch.tensor(bad))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("the last axis of (2, 24) came; want a multiple of 16")):
        quantize_nvfp4(noise(2, 24))
    with pytest.raises(ValueError, match=re.escape("amax of shape (2,) came; want one value or (3,)")):
        quantize_nvfp4(noise(3, 2, 16), torch.ones(2))
    good = quantize_nvfp4(noise(2, 32))
    for packed, block_scale in (
        (good.packed, good.block_scale[:, :1]),
        (good.packed, good.block_scale.float()),
        (good.packed[:, :12], good.block_scale[:, :1]),
    ):
        with pytest.raises(ValueError, match="NVFP4: codes"):
            NVFP4(packed, block_scale, good.tensor_scale)


# A checkpoint's tensors


def fp8_tensors(x: Tensor) -> dict[str, Tensor]:
    q, scale = quantize_fp8(x)
    return {"weight": q, "weight_scale": scale}


def nvfp4_tensors(x: Tensor) -> dict[str, Tensor]:
    q = quantize_nvfp4(x)
    return {"weight": q.packed, "weight_scale": q.block_scale, "weight_scale_2": q.tensor_scale}


@pytest.mark.parametrize("shape", [(6, 32), (3, 6, 32)])
def test_a_checkpoints_tensors_become_the_plain_weight(shape: tuple[int, ...]) -> None:
    x = uneven(*shape)
    wanted = dequantize_fp8(*quantize_fp8(x), torch.bfloat16)
    assert same(dequantize("a.weight", fp8_tensors(x), torch.bfloat16), wanted)
    wanted = dequantize_nvfp4(quantize_nvfp4(x), torch.bfloat16)
    assert same(dequantize("a.weight", nvfp4_tensors(x), torch.bfloat16), wanted)


def test_scales_may_be_stored_as_a_list_of_one_one_a_row_or_shared_by_all_experts() -> None:
    x = uneven(6, 32)
    q, scale = quantize_fp8(x)
    wanted = dequantize_fp8(q, scale)
    assert torch.equal(dequantize("a", {"weight": q, "weight_scale": scale.reshape(1)}, torch.float32), wanted)
    for rows in (torch.arange(1.0, 7), torch.arange(1.0, 7)[:, None]):
        got = dequantize("a", {"weight": q, "weight_scale": rows}, torch.float32)
        assert torch.equal(got, q.float() * torch.arange(1.0, 7)[:, None])
    packed = nvfp4_tensors(x)
    got = dequantize("a", packed | {"weight_scale_2": packed["weight_scale_2"].reshape(1)}, torch.float32)
    assert torch.equal(got, dequantize_nvfp4(quantize_nvfp4(x)))
    experts = {"weight": packed["weight"].expand(3, -1, -1), "weight_scale": packed["weight_scale"].expand(3, -1, -1)}
    shared = dequantize("a", experts | {"weight_scale_2": packed["weight_scale_2"]}, torch.float32)
    assert torch.equal(shared, got.expand(3, -1, -1))


def broken_checkpoints() -> list[tuple[dict[str, Tensor], str]]:
    fp8, nvfp4 = fp8_tensors(noise(6, 32)), nvfp4_tensors(noise(6, 32))
    neither = "want FP8"
    return [
        ({"weight": fp8["weight"]}, "came with ['weight']; want weight and weight_scale"),
        ({"weight_scale": fp8["weight_scale"]}, "came with ['weight_scale']"),
        (fp8 | {"weight": noise(6, 32)}, neither),
        (fp8 | {"weight_scale": torch.ones(4)}, neither),
        (fp8 | {"weight_scale": torch.tensor(1)}, neither),
        (fp8 | {"weight_scale_2": torch.tensor(1.0)}, neither),
        ({part: nvfp4[part] for part in ("weight", "weight_scale")}, neither),
        (nvfp4 | {"weight": nvfp4["weight"].view(torch.int8)}, neither),
        (nvfp4 | {"weight_scale": nvfp4["weight_scale"][:, :1]}, neither),
        (nvfp4 | {"weight_scale": nvfp4["weight_scale"].view(torch.uint8)}, neither),
        (nvfp4 | {"weight_scale_2": torch.ones(2)}, neither),
        (nvfp4 | {"weight": nvfp4["weight"][:, :9], "weight_scale": nvfp4["weight_scale"][:, :1]}, neither),
        (nvfp4 | {"weight_scale_2": torch.tensor(math.nan)}, "a scale that is negative or not finite"),
        (nvfp4 | {"weight_scale_2": torch.tensor(-1.0)}, "a scale that is negative or not finite"),
        (fp8 | {"weight_scale": torch.tensor(math.inf)}, "a scale that is negative or not finite"),
    ]


@pytest.mark.parametrize(("tensors", "message"), broken_checkpoints())
def test_a_checkpoints_tensors_of_no_known_format_are_refused_by_name(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=r"dequantize: layers\.3\.mixer\.up_proj\.weight ") as error:
        dequantize("layers.3.mixer.up_proj.weight", tensors, torch.float32)
    assert message in str(error.value)


def test_scales_of_blocks_are_not_taken_for_scales_of_rows() -> None:
    weight = torch.randn(128, 256).to(torch.float8_e4m3fn)
    for shape in ((1, 128), (2, 64)):
        with pytest.raises(ValueError, match="want FP8"):
            dequantize("w", {"weight": weight, "weight_scale": torch.rand(shape) + 0.1}, torch.float32)
