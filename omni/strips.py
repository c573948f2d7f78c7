"""Four bits as compiled kernels read them: strip after strip of one group of inputs, all rows of it one below the
other, so that a group's part of the vector stays in registers while its strip passes by.

A byte holds the codes of two rows for one input. Needs a C++ compiler: see `omni.compiled`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int, UInt8
from torch import Tensor

from omni.ops import relu2
from omni.precision import multiplied_in
from omni.products import HIGH, LOW, MIDDLE, Kernel, Matrix, kept, options, times

FEW = 8  # rows up to which reading the codes for each costs less than to unpack them
PART = 3 * 2**21  # weights unpacked at a time: they stay in the cache until they are multiplied


class Strips:
    """int4, (groups, blocks, half a block, group) bytes.

    scales: a scale and a zero for each group and row, (kinds, planes, groups, blocks, half a block); planes are a
    byte's two codes, and the high one's scales are divided by 16, since it counts so much more. halves: a byte's rows
    lie half a block apart, else they are neighbours.
    """

    def __init__(
        self,
        codes: UInt8[Tensor, "groups blocks half group"],
        scales: BFloat16[Tensor, "2 2 groups blocks half"],
        rows: int,
        halves: bool,
    ) -> None:
        self.rows, self.width = rows, codes.shape[0] * codes.shape[-1]
        self.codes, self.scales, self.halves = codes, scales, halves
        self.nbytes = codes.nbytes + scales.nbytes
        self.matrix = Matrix(codes, scales, None, rows, halves)

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """As `F.linear`: a few rows as integers of 16 bits, many in bfloat16, or in float32 where that is slow."""
        if len(x) <= FEW:
            out = _kernel(_times, len(x) > 1, *self.codes.shape)(_any_number(x.float()), *self.matrix)
        else:
            kind, (_, blocks, half, _) = multiplied_in(torch.bfloat16), self.codes.shape
            narrow = x.to(kind)
            parts = -(-blocks * 2 * half * self.width // PART)
            count = -(-blocks // parts)
            made: list[Tensor] = []
            for at in range(0, blocks, count):
                first = min(at, blocks - count)  # all parts are of one size, so that they share a kernel
                made.append(F.linear(narrow, self._part(first, count, kind))[:, 2 * half * (at - first) :])
            out = (made[0] if len(made) == 1 else torch.cat(made, 1))[:, : self.rows]
        return (out if bias is None else out + bias).to(x.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """(code - 8) * scale + zero."""
        return self._part(0, self.codes.shape[1], dtype or torch.bfloat16)[: self.rows]

    def _part(self, start: int, count: int, dtype: torch.dtype = torch.bfloat16) -> Float[Tensor, "part width"]:
        """Some blocks of rows."""
        part = slice(start, start + count)
        return _kernel(_unpack, dtype, count, *self.codes.shape)(
            self.codes[:, part], self.scales[..., part, :], self.halves, dtype
        )


def strips(
    packed: UInt8[Tensor, "*stack filled halved"], scales: BFloat16[Tensor, "*stack groups filled 2"], block: int,
    halves: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes and scales of one matrix, or of a stack, from torch's layout for the CPU (`omni.packed.Four`)."""
    filled, groups = packed.shape[-2], scales.shape[-3]
    group = packed.shape[-1] * 2 // groups
    blocks = packed.unflatten(-2, (-1, block)).flatten(-2).unflatten(-1, (groups, group, block // 2))
    codes = blocks.movedim(-4, -3).transpose(-1, -2).contiguous()
    by_block = scales.unflatten(-2, (filled // block, *((2, block // 2) if halves else (block // 2, 2))))
    kinds_and_planes = (-1, -3) if halves else (-1, -2)
    made = by_block.movedim(kinds_and_planes, (-5, -4)).contiguous()
    made[..., 0, 1, :, :, :] /= 16
    return codes, made


def mixed(
    x: Float[Tensor, "tokens width"], chosen: Int[Tensor, "tokens top_k"], shares: Float[Tensor, "tokens top_k"],
    up: Matrix, down: Matrix,
) -> Float[Tensor, "tokens width"]:  # fmt: skip
    """Each of a few tokens through the experts it chose, squared ReLU between; stacks of Strips."""
    kernel = _kernel(_mixed, len(x) > 1, *up.weight.shape, *down.weight.shape, chosen.shape[1])
    return kernel(*map(_any_number, (x.float(), chosen, shares.float())), up, down).to(x.dtype)


def _any_number(rows: Tensor) -> Tensor:
    """Rows for which a kernel is to be one for any number of them; for a single one it is another."""
    if len(rows) > 1:
        torch._dynamo.mark_dynamic(rows, 0)
    return rows


def _mixed(x: Tensor, chosen: Tensor, shares: Tensor, up: Matrix, down: Matrix) -> Tensor:
    hidden = times(up.of(chosen), x[:, None])
    return (times(down.of(chosen), kept(relu2(hidden))) * shares[..., None]).sum(1)


def _times(x: Tensor, weight: Tensor, scales: Tensor, bias: None, rows: int, halves: bool) -> Tensor:
    return times(Matrix(weight, scales, bias, rows, halves), x)


def _unpack(codes: Tensor, scales: Tensor, halves: bool, dtype: torch.dtype) -> Tensor:
    planes: list[Tensor] = []
    for plane, bits in enumerate((LOW, HIGH)):
        scale, zero = (scales[kind, plane, ..., None].float() for kind in range(2))
        value = ((codes & bits).float() - MIDDLE * 16**plane) * scale + zero
        planes.append(value.to(dtype).permute(1, 2, 0, 3).flatten(-2))
    return torch.stack(planes, 1 if halves else 2).flatten(0, 2)


@lru_cache(maxsize=256)
def _kernel(kernel: Callable[..., Tensor], *shape: int | torch.dtype) -> Kernel:
    """One for each shape, which is compiled by the first call."""
    return Kernel(torch.compile(kernel, fullgraph=True, options=options()))
