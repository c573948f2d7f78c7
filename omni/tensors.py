"""Tensors of a checkpoint by key: read one at a time, dequantised, put together as ours.

Formats: plain, FP8 and NVFP4 with their scales beside them (ModelOpt), MXFP4 as gpt-oss has it. See `quantize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from omni.keys import Source
from omni.quantize import dequantize, dequantize_mxfp4

Header = tuple[tuple[int, ...], str]  # shape and dtype as the file's header says
WEIGHT_SCALES = ("weight_scale", "weight_scale_2")
CACHE_SCALES = ("q_scale", "k_scale", "v_scale")
UNREAD_SCALES = ("input_scale", *CACHE_SCALES)  # of activations and of the cache, which are not quantised here
MX, MX_SCALES = "_blocks", "_scales"
FLOATS = {"F64", "F32", "F16", "BF16"}


def with_scales(keys: set[str]) -> set[str]:
    """Keys of weights, and those of the scales that may stand beside them."""
    stems = {key.removesuffix("weight") for key in keys if key.endswith(".weight")}
    attention = {stem.removesuffix("k_proj.") for stem in stems if stem.endswith(".k_proj.")}
    beside = {stem + scale for stem in stems for scale in (*WEIGHT_SCALES, *UNREAD_SCALES)}
    beside |= {key.removesuffix(MX) + MX_SCALES for key in keys if key.endswith(MX)}
    return keys | beside | {stem + scale for stem in attention for scale in CACHE_SCALES}


class Reader:
    """Tensors of a checkpoint by key, dequantised and joined, with one file open at a time."""

    def __init__(self, files: Mapping[str, Path], headers: Mapping[str, Header]) -> None:
        self.files, self.headers = files, headers
        self.path: Path | None = None
        self.stack = ExitStack()
        self.file: Any = None

    def shape(self, source: Source) -> tuple[int, ...]:
        """What `read` will give; empty when the parts do not fit one another."""
        shapes = [self._shape(key) for key in source.keys]
        if source.transposed:
            shapes = [(*shape[:-2], *reversed(shape[-2:])) for shape in shapes]
        if source.half is not None:
            shapes = [(shape[0], shape[1] // 2, *shape[2:]) for shape in shapes]
        if source.join == "one":
            return shapes[0]
        if any(shape[1:] != shapes[0][1:] for shape in shapes) or (source.join == "stack" and len(set(shapes)) > 1):
            return ()
        return (len(shapes), *shapes[0]) if source.join == "stack" else (sum(s[0] for s in shapes), *shapes[0][1:])

    def read(self, source: Source, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """A tensor of `shape(source)` in its own memory: the file may be closed."""
        first = self._part(source, dtype) if source.join == "one" else self._one(source.keys[0], dtype)
        joined = torch.empty(self.shape(source), dtype=first.dtype, device=device)
        if source.join == "one":
            return joined.copy_(first)
        parts = joined.unbind(0) if source.join == "stack" else joined.split([self._shape(k)[0] for k in source.keys])
        parts[0].copy_(first)
        for part, key in zip(parts[1:], source.keys[1:], strict=True):
            part.copy_(self._one(key, dtype))
        return joined

    def close(self) -> None:
        """Let go of the file that is open."""
        self.file, self.path = None, None
        self.stack.close()

    def quantised(self, key: str) -> bool:
        """Whether the key is a weight in FP8, NVFP4 or MXFP4."""
        kind = self.headers[key][1]
        return (key.endswith(".weight") and kind in ("F8_E4M3", "U8")) or (key.endswith(MX) and kind == "U8")

    def is_float(self, key: str) -> bool:
        """Whether `read` will give floating point."""
        return self.headers[key][1] in FLOATS or self.quantised(key)

    def _shape(self, key: str) -> tuple[int, ...]:
        shape, dtype = self.headers[key]
        if key.endswith(MX) and dtype == "U8":
            *rows, groups, half = shape
            return (*rows, 2 * groups * half)
        packed = dtype == "U8" and f"{key}_scale" in self.files  # NVFP4: two values a byte
        return (*shape[:-1], 2 * shape[-1]) if packed else shape

    def _part(self, source: Source, dtype: torch.dtype | None) -> Tensor:
        """One key's tensor, turned and halved where it holds ours so."""
        key = source.keys[0]
        rows = (slice(None), slice(source.half, None, 1 if source.half is None else 2))
        if key.endswith(MX):
            beside = key.removesuffix(MX) + MX_SCALES
            if beside not in self.files:
                raise ValueError(f"load: {key} came without {beside}; download the whole checkpoint")
            return dequantize_mxfp4(self._tensor(key)[rows], self._tensor(beside)[rows], dtype or torch.bfloat16)
        whole = self._one(key, dtype)
        whole = whole.transpose(-1, -2) if source.transposed else whole
        return whole if source.half is None else whole[rows]

    def _one(self, key: str, dtype: torch.dtype | None) -> Tensor:
        tensor = self._tensor(key)
        stem = key.removesuffix("weight")
        scales = {name: self._tensor(stem + name) for name in WEIGHT_SCALES if stem + name in self.files}
        if self.quantised(key) or (scales and key.endswith(".weight")):
            return dequantize(key, {"weight": tensor, **scales}, dtype or torch.bfloat16)
        return tensor if dtype is None else tensor.to(dtype)

    def _tensor(self, key: str) -> Tensor:
        if self.path != self.files[key]:
            self.close()
            self.path = self.files[key]
            self.file = self.stack.enter_context(safe_open(self.path, "pt"))
        return self.file.get_tensor(key)
