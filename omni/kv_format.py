"""Formats in which keys and values are kept in files: as they are, or with fewer bits and a measured error.

Eight-bit formats have one float32 scale for each channel of each head, over all tokens: keys differ by channel more
than by token (KIVI, arXiv 2402.02750).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

KVFormat = Literal["exact", "bfloat16", "float8", "int8"]
BYTES = {"bfloat16": 2, "float8": 1, "int8": 1}
LARGEST = {"float8": 448.0, "int8": 127.0}


def check(kv: str) -> KVFormat:
    """Raise ValueError for an unknown format."""
    known = next((name for name in get_args(KVFormat) if name == kv), None)
    if known is None:
        raise ValueError(f"memory: keys and values as {kv!r}; want one of {', '.join(get_args(KVFormat))}")
    return known


def pack(x: Float[Tensor, "heads tokens dim"], kv: KVFormat) -> dict[str, Shaped[Tensor, "..."]]:
    """What is stored: `values`, and `scale` for eight-bit formats."""
    match kv:
        case "exact":
            return {"values": x}
        case "bfloat16":
            return {"values": x.bfloat16()}
        case "float8" | "int8":
            most = x.float().abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1, x.shape[2])
            scale = torch.where(most > 0, most / LARGEST[kv], 1.0).float()
            scaled = x.float() / scale
            values = scaled.to(torch.float8_e4m3fn) if kv == "float8" else scaled.round().to(torch.int8)
            return {"values": values, "scale": scale}


def unpack(stored: dict[str, Shaped[Tensor, "..."]], dtype: torch.dtype) -> Float[Tensor, "heads tokens dim"]:
    """The inverse, but for rounding. What has the dtype already is returned as it is."""
    values, scale = stored["values"], stored.get("scale")
    return values.to(dtype) if scale is None else (values.float() * scale).to(dtype)


def error(x: Float[Tensor, "heads tokens dim"], stored: dict[str, Shaped[Tensor, "..."]]) -> tuple[float, float]:
    """Sums of squares over all elements: of the difference to what is stored, and of x."""
    wide = x.double()
    return float((unpack(stored, torch.float64) - wide).square().sum()), float(wide.square().sum())
