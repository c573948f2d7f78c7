"""Number formats of released checkpoints: FP8 (E4M3) and NVFP4, exactly as ModelOpt lays them out.

NVFP4: values {0, .5, 1, 1.5, 2, 3, 4, 6} with a sign (E2M1), two a byte, the first in the low nibble; an E4M3 scale
for each block of 16 along the input; one float32 scale a tensor. FP8: E4M3 with one float32 scale a tensor.
Dequantisation is exact: the stored value times its scale (NVFP4: the product of its two scales), each product in
float32, then one rounding to the dtype asked for. A 3-D weight is a stack of experts, each a tensor with a scale of
its own. Source: NVFP4 (arXiv 2509.25149, appendix A), checkpoints' hf_quant_config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

E4M3_MAX, E2M1_MAX, BLOCK = 448.0, 6.0, 16
MX_BLOCK = 32
E4M3_MIN = 2.0**-9  # the smallest block scale, so that small blocks keep their largest values
SCALE_MIN = 2.0**-117  # times E4M3_MIN this is the smallest normal float32, so no product of scales is lost
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # halfway; a value on an edge goes to the even code
AT_ONCE = 2**18  # values converted at a time: what a core's cache holds


@dataclass(frozen=True, slots=True)
class NVFP4:
    """A quantised weight: packed codes, a scale for each block of 16, one for the tensor or for each expert.

    Raises ValueError when the three do not belong together.
    """

    packed: UInt8[Tensor, "*rows half"]
    block_scale: Float[Tensor, "*rows blocks"]
    tensor_scale: Float[Tensor, "*experts"]

    def __post_init__(self) -> None:
        *rows, half = self.packed.shape
        wanted = (torch.float8_e4m3fn, (*rows, 2 * half // BLOCK), tuple(rows[:-1]))
        came = (self.block_scale.dtype, tuple(self.block_scale.shape), tuple(self.tensor_scale.shape))
        if 2 * half % BLOCK or came != wanted:
            raise ValueError(
                f"NVFP4: codes {tuple(self.packed.shape)} came with block and tensor scales {came}; want {wanted}, "
                f"and a multiple of {BLOCK} values a row"
            )


def quantize_fp8(x: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*experts"]]:
    """E4M3 values and their scale, amax / 448 (1 for zeros), rounding to nearest even.

    One scale for a tensor of up to two axes, else one an expert. Raises ValueError for values that are not finite.
    """
    scale = _tensor_scale("quantize_fp8", _amax(x), E4M3_MAX)
    scaled = x.float() / _over(scale, x)
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def dequantize_fp8(
    q: Float[Tensor, "*shape"], scale: Float[Tensor, "..."], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """value * scale in float32, then `dtype`. scale: one, one an expert, or any shape that broadcasts with q."""
    scales = _over(scale.float(), q) if scale.shape == q.shape[:-2] else scale.float()
    rows = q.view(torch.uint8).reshape(q.shape[:-1].numel(), q.shape[-1] if q.ndim else 1)
    last = scales.shape[-1] if scales.ndim else 1
    scales = scales.expand(*q.shape[:-1], last).reshape(len(rows), last)
    table = torch.arange(256, dtype=torch.uint8, device=q.device).view(torch.float8_e4m3fn).float()
    out = torch.empty(rows.shape, dtype=dtype, device=q.device)
    for part in _parts(rows):
        out[part] = table.index_select(0, rows[part].flatten().int()).view(rows[part].shape) * scales[part]
    return out.view(q.shape)


def quantize_nvfp4(x: Float[Tensor, "*rows width"], amax: Float[Tensor, "*experts"] | None = None) -> NVFP4:
    """Quantise along the last axis; `amax` is the largest magnitude where a calibration knows better, one an expert.

    tensor scale = amax / 2688, block scale = E4M3(block amax / (6 tensor scale)) within 2^-9 .. 448, code =
    E2M1(x / (block scale * tensor scale)): both to nearest, a tie to the even code, beyond the largest to the largest.
    Raises ValueError unless the last axis is a multiple of 16, and for values that are not finite.
    """
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"quantize_nvfp4: the last axis of {tuple(x.shape)} came; want a multiple of {BLOCK}")
    largest = _amax(x)
    tensor_scale = _tensor_scale("quantize_nvfp4", largest, E2M1_MAX * E4M3_MAX)
    if amax is not None:
        if amax.shape not in (largest.shape, torch.Size()):
            raise ValueError(
                f"quantize_nvfp4: amax of shape {tuple(amax.shape)} came; want one value or {tuple(largest.shape)}"
            )
        tensor_scale = _tensor_scale("quantize_nvfp4", amax.float().expand_as(largest), E2M1_MAX * E4M3_MAX)
    width = x.shape[-1]
    rows = x.reshape(x.shape[:-1].numel(), width)
    row_scale = _over(tensor_scale, x).expand(*x.shape[:-1], 1).reshape(-1, 1)
    packed = torch.empty(len(rows), width // 2, dtype=torch.uint8, device=x.device)
    block_scale = torch.empty(len(rows), width // BLOCK, dtype=torch.float8_e4m3fn, device=x.device)
    for part in _parts(rows):
        blocks = rows[part].float().unflatten(-1, (-1, BLOCK))  # (rows, blocks, 16)
        scale = blocks.abs().amax(-1) / (E2M1_MAX * row_scale[part])
        block_scale[part] = scale.clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
        step = block_scale[part].float() * row_scale[part]
        code = _e2m1((blocks / step[..., None]).flatten(-2))
        packed[part] = code[:, ::2] | (code[:, 1::2] << 4)
    first = x.shape[:-1]
    return NVFP4(packed.view(*first, width // 2), block_scale.view(*first, width // BLOCK), tensor_scale)


def dequantize_nvfp4(q: NVFP4, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*rows width"]:
    """code * (block scale * tensor scale) in float32, then `dtype`."""
    half = q.packed.shape[-1]
    rows = q.packed.reshape(q.packed.shape[:-1].numel(), half)
    scale = (q.block_scale.float() * _over(q.tensor_scale.float(), q.packed)).reshape(len(rows), 2 * half // BLOCK)
    pairs = _pairs(rows.device)
    out = torch.empty(len(rows), 2 * half, dtype=dtype, device=rows.device)
    for part in _parts(rows):
        blocks = pairs.index_select(0, rows[part].flatten().int()).view(torch.float32).view(*scale[part].shape, BLOCK)
        out[part] = (blocks * scale[part][..., None]).flatten(-2)
    return out.view(*q.packed.shape[:-1], 2 * half)


def dequantize_mxfp4(
    blocks: UInt8[Tensor, "*rows groups half"], scales: UInt8[Tensor, "*rows groups"], dtype: torch.dtype
) -> Float[Tensor, "*rows width"]:
    """gpt-oss's experts: E2M1 codes in blocks of 32, each times a power of two (E8M0), exactly.

    Raises ValueError when codes and scales do not fit. Source: OCP Microscaling Formats 1.0.
    """
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8 or blocks.shape != (*scales.shape, MX_BLOCK // 2):
        raise ValueError(
            f"dequantize_mxfp4: codes {tuple(blocks.shape)} of {blocks.dtype} came with scales {tuple(scales.shape)} "
            f"of {scales.dtype}; want uint8, and {MX_BLOCK // 2} codes a scale"
        )
    rows, powers = blocks.reshape(-1, MX_BLOCK // 2), scales.reshape(-1, 1).int() - 127
    pairs = _pairs(rows.device)
    out = torch.empty(len(rows), MX_BLOCK, dtype=dtype, device=rows.device)
    for part in _parts(out):
        values = pairs.index_select(0, rows[part].flatten().int()).view(torch.float32).view(-1, MX_BLOCK)
        out[part] = torch.ldexp(values, powers[part])
    return out.view(*scales.shape[:-1], scales.shape[-1] * MX_BLOCK)


def dequantize(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The plain weight of a checkpoint's key, from its tensors `weight`, `weight_scale` and perhaps `weight_scale_2`.

    Raises ValueError naming the key when their kinds and shapes are neither FP8's nor NVFP4's, and for a scale that
    is negative or not finite.
    """
    weight, scale, second = (tensors.get(part) for part in ("weight", "weight_scale", "weight_scale_2"))
    if weight is None or scale is None:
        raise ValueError(f"dequantize: {name} came with {sorted(tensors)}; want weight and weight_scale")
    for part in (scale, second):
        if part is not None and not bool(((part.float() >= 0) & part.float().isfinite()).all()):
            raise ValueError(f"dequantize: {name} has a scale that is negative or not finite; load an intact file")
    if weight.dtype == torch.float8_e4m3fn and second is None and scale.is_floating_point():
        if scale.numel() == 1:
            return dequantize_fp8(weight, scale.reshape(()), dtype)
        if scale.shape[0] == scale.numel() == weight.shape[0]:  # one a row, or one an expert
            return dequantize_fp8(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)), dtype)
    if weight.dtype == torch.uint8 and scale.dtype == torch.float8_e4m3fn and second is not None:
        blocks = (*weight.shape[:-1], 2 * weight.shape[-1] // BLOCK)
        experts = weight.shape[:-2]
        if tuple(scale.shape) == blocks and second.numel() in (1, experts.numel()) and not weight.shape[-1] % 8:
            per_expert = second.reshape(experts) if second.numel() > 1 else second.reshape(()).expand(experts)
            return dequantize_nvfp4(NVFP4(weight, scale, per_expert), dtype)
    shapes = {part: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for part, value in tensors.items()}
    raise ValueError(
        f"dequantize: {name} is {shapes}; want FP8 (float8_e4m3fn with one scale, or one a row) "
        "or NVFP4 (uint8 with a float8_e4m3fn scale for each 16 values and weight_scale_2)"
    )


def _pairs(device: torch.device) -> Tensor:
    """The two values of each byte, the low nibble's first: two float32 as one word."""
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((values[byte & 15], values[byte >> 4]), -1).view(torch.int64)[:, 0]


def _e2m1(x: Tensor) -> Tensor:
    """The codes of the nearest values, a byte each: the magnitude's place in E2M1, and 8 for a sign."""
    magnitude = x.abs()
    code = torch.signbit(x).to(torch.uint8) << 3
    for lower, edge in enumerate(EDGES):
        code += magnitude >= edge if lower % 2 else magnitude > edge  # a tie leaves an odd code
    return code


def _amax(x: Tensor) -> Tensor:
    """The largest magnitude of a tensor of up to two axes, else of each expert; float32, 0 where there is no value."""
    flat = x.reshape(*x.shape[:-2], x.shape[-2:].numel())
    low, high = flat.aminmax(dim=-1) if flat.shape[-1] else (flat.sum(-1), flat.sum(-1))
    return torch.maximum(low.abs(), high.abs()).float()


def _tensor_scale(where: str, amax: Tensor, largest: float) -> Tensor:
    if not bool(((amax >= 0) & amax.isfinite()).all()):
        raise ValueError(f"{where}: the largest magnitude is {amax.tolist()}; want finite values, without NaN")
    return torch.where(amax > 0, (amax / largest).clamp(min=SCALE_MIN), 1.0)


def _over(scale: Tensor, x: Tensor) -> Tensor:
    """A scale for each expert, in the axes of x."""
    return scale.reshape(*scale.shape, *[1] * min(x.ndim, 2))


def _parts(rows: Tensor) -> Iterator[slice]:
    """Slices of rows that hold about AT_ONCE values."""
    count = max(1, AT_ONCE // max(rows.shape[1], 1))
    for start in range(0, len(rows), count):
        yield slice(start, start + count)
