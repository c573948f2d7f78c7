"""Number formats of released checkpoints: FP8 (E4M3) and NVFP4, exactly as ModelOpt lays them out.

NVFP4: values {0, .5, 1, 1.5, 2, 3, 4, 6} with a sign (E2M1), two a byte, the first in the low nibble; an E4M3 scale
for each block of 16 along the input; one float32 scale a tensor. FP8: E4M3 with one float32 scale a tensor.
Dequantisation is exact: the product of the stored value and its scales in float32. Source: NVFP4 (arXiv 2509.25149,
appendix A), checkpoints' hf_quant_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

E4M3_MAX, E2M1_MAX, BLOCK = 448.0, 6.0, 16
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # halfway; a value on an edge goes to the even code


@dataclass(frozen=True, slots=True)
class NVFP4:
    """A quantised tensor: packed codes, a scale for each block of 16, one for the tensor."""

    packed: UInt8[Tensor, "*rows half"]
    block_scale: Tensor
    tensor_scale: Float[Tensor, ""]


def quantize_fp8(x: Float[Tensor, "*shape"]) -> tuple[Tensor, Float[Tensor, ""]]:
    """E4M3 values and their scale, amax / 448 (1 for zeros), rounding to nearest even."""
    amax = x.float().abs().amax()
    scale = torch.where(amax > 0, amax / E4M3_MAX, torch.ones_like(amax))
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def dequantize_fp8(
    q: Float[Tensor, "*shape"], scale: Float[Tensor, "..."], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """value * scale in float32, then `dtype`."""
    return (q.float() * scale.float()).to(dtype)


def quantize_nvfp4(x: Float[Tensor, "*rows width"], amax: Float[Tensor, ""] | None = None) -> NVFP4:
    """Quantise along the last axis; `amax` is the tensor's largest magnitude where a calibration knows better.

    Raises ValueError unless the last axis is a multiple of 16.
    """
    if x.shape[-1] % BLOCK:
        raise ValueError(f"quantize_nvfp4: the last axis is {x.shape[-1]}; want a multiple of {BLOCK}")
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax() if amax is None else amax.float()
    tensor_scale = torch.where(largest > 0, largest / (E2M1_MAX * E4M3_MAX), torch.ones_like(largest))
    block_scale = blocks.abs().amax(-1) / (E2M1_MAX * tensor_scale)
    block_scale = block_scale.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    step = (block_scale.float() * tensor_scale)[..., None]
    scaled = torch.where(step > 0, blocks / step, torch.zeros_like(blocks)).flatten(-2)
    magnitude = scaled.abs()
    edges = torch.tensor(EDGES, device=x.device)
    up = torch.bucketize(magnitude, edges, right=True)  # on an edge: the upper code
    down = torch.bucketize(magnitude, edges)  # on an edge: the lower one
    code = torch.where(up % 2 == 0, up, down).to(torch.uint8) | (torch.signbit(scaled).to(torch.uint8) << 3)
    return NVFP4(code[..., ::2] | (code[..., 1::2] << 4), block_scale, tensor_scale)


def dequantize_nvfp4(q: NVFP4, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*rows width"]:
    """code * block scale * tensor scale in float32, then `dtype`."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=q.packed.device)
    codes = torch.stack((q.packed & 15, q.packed >> 4), -1).flatten(-2)
    values = table[codes.int()].unflatten(-1, (-1, BLOCK))
    scale = q.block_scale.float() * q.tensor_scale.float()
    return (values * scale[..., None]).flatten(-2).to(dtype)


def dequantize(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The plain weight of a checkpoint's key, from its tensors `weight`, `weight_scale` and perhaps `weight_scale_2`.

    Raises ValueError naming the key when their kinds and shapes are neither FP8's nor NVFP4's.
    """
    weight, scale, second = (tensors.get(part) for part in ("weight", "weight_scale", "weight_scale_2"))
    if weight is None or scale is None:
        raise ValueError(f"dequantize: {name} came with {sorted(tensors)}; want weight and weight_scale")
    if weight.dtype == torch.float8_e4m3fn and second is None:
        if scale.numel() == 1:
            return dequantize_fp8(weight, scale.reshape(()), dtype)
        if scale.numel() == weight.shape[0]:  # one a row
            return dequantize_fp8(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)), dtype)
    if weight.dtype == torch.uint8 and scale.dtype == torch.float8_e4m3fn and second is not None:
        wanted = (*weight.shape[:-1], 2 * weight.shape[-1] // BLOCK)
        if tuple(scale.shape) == wanted and second.numel() == 1:
            return dequantize_nvfp4(NVFP4(weight, scale, second.reshape(())), dtype)
    shapes = {part: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for part, value in tensors.items()}
    raise ValueError(
        f"dequantize: {name} is {shapes}; want FP8 (float8_e4m3fn with one scale, or one a row) "
        "or NVFP4 (uint8 with a float8_e4m3fn scale for each 16 values and weight_scale_2)"
    )
