"""Four bits as compiled kernels read them: what both layouts share, and the one for AVX-512 (the other: `omni.words`).

There strip follows on strip of one group of inputs, all rows of it one below the other, so that a group's part of the
vector stays in registers while its strip passes by.
A byte holds the codes of two rows half a block apart for one input. Needs a C++ compiler: see `omni.compiled`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.ops import relu2
from omni.precision import linear, multiplied_in
from omni.products import HIGH, LOW, MIDDLE, Kernel, Matrix, kept, options, times

FEW = 8  # rows up to which reading the codes for each costs less than to unpack them
PART = 3 * 2**21  # weights unpacked at a time: they stay in the cache until they are multiplied


class Laid(ABC):
    """int4 in a layout for compiled kernels, in blocks of output rows."""

    def __init__(self, codes: Tensor, scales: Tensor, rows: int) -> None:
        self.codes, self.scales, self.rows = codes, scales, rows
        self.blocks, self.block, self.width = self.sizes(codes)
        self.nbytes = codes.nbytes + scales.nbytes
        self.matrix = Matrix(codes, scales, None, rows)

    @staticmethod
    @abstractmethod
    def laid(packed: Tensor, scales: Tensor, rows: int, block: int, halves: bool) -> tuple[Tensor, Tensor]:
        """Codes and scales from torch's layout for the CPU (`omni.packed.Four`) in blocks of so many rows; halves: a
        byte holds rows half a block apart, else neighbours.
        """

    @staticmethod
    @abstractmethod
    def sizes(codes: Tensor) -> tuple[int, int, int]:
        """Blocks, rows of each, and the width."""

    @abstractmethod
    def part(self, start: int, count: int, dtype: torch.dtype) -> Float[Tensor, "part width"]:
        """Some blocks of rows, unpacked."""

    def linear(self, x: Float[Tensor, "tokens width"], bias: Tensor | None) -> Float[Tensor, "tokens rows"]:
        """As `F.linear`: a few rows by the codes as they lie, many in bfloat16, or in float32 where that is slow."""
        if len(x) <= FEW:
            out = kernel(_times, len(x) > 1, *self.codes.shape)(_any_number(x.float()), *self.matrix)
        else:
            kind = multiplied_in(torch.bfloat16)
            narrow = x.to(kind)
            parts = -(-self.blocks * self.block * self.width // PART)
            count = -(-self.blocks // parts)
            made: list[Tensor] = []
            for at in range(0, self.blocks, count):
                first = min(at, self.blocks - count)  # all parts are of one size, so that they share a kernel
                made.append(linear(narrow, self.part(first, count, kind))[:, self.block * (at - first) :])
            out = (made[0] if len(made) == 1 else torch.cat(made, 1))[:, : self.rows]
        return (out if bias is None else out + bias).to(x.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows width"]:
        """(code - 8) * scale + zero."""
        return self.part(0, self.blocks, dtype or torch.bfloat16)[: self.rows]


class Strips(Laid):
    """Codes are (groups, blocks, half a block, group) bytes.

    scales: a scale and a zero for each group and row, (kinds, planes, groups, blocks, half a block) in bfloat16; planes
    are a byte's two codes, and the high one's scales are divided by 16, since it counts so much more.
    """

    @staticmethod
    def laid(packed: Tensor, scales: Tensor, rows: int, block: int, halves: bool) -> tuple[Tensor, Tensor]:
        """See `Laid`; of halves only, as torch's are on AVX-512."""
        assert halves
        filled, groups = packed.shape[-2], scales.shape[-3]
        group = packed.shape[-1] * 2 // groups
        codes = packed.view(-1, groups, group, block // 2).transpose(0, 1).transpose(-1, -2).contiguous()
        made = scales.view(groups, filled // block, 2, block // 2, 2).movedim((-1, -3), (0, 1)).contiguous()
        made[0, 1] /= 16
        return codes, made

    @staticmethod
    def sizes(codes: Tensor) -> tuple[int, int, int]:
        """See `Laid`."""
        groups, blocks, half, group = codes.shape
        return blocks, 2 * half, groups * group

    def part(self, start: int, count: int, dtype: torch.dtype) -> Float[Tensor, "part width"]:
        """See `Laid`."""
        part = slice(start, start + count)
        return kernel(_unpack, dtype, count, *self.codes.shape)(self.codes[:, part], self.scales[..., part, :], dtype)


def mixed(
    x: Float[Tensor, "tokens width"], chosen: Int[Tensor, "tokens top_k"], shares: Float[Tensor, "tokens top_k"],
    up: Matrix, down: Matrix,
) -> Float[Tensor, "tokens width"]:  # fmt: skip
    """Each of a few tokens through the experts it chose, squared ReLU between; stacks of codes as they are laid."""
    ready = kernel(_mixed, len(x) > 1, *up.weight.shape, *down.weight.shape, chosen.shape[1])
    return ready(*map(_any_number, (x.float(), chosen, shares.float())), up, down).to(x.dtype)


def _any_number(rows: Tensor) -> Tensor:
    """Rows for which a kernel is to be one for any number of them; for a single one it is another."""
    if len(rows) > 1:
        torch._dynamo.mark_dynamic(rows, 0)
    return rows


def _mixed(x: Tensor, chosen: Tensor, shares: Tensor, up: Matrix, down: Matrix) -> Tensor:
    hidden = times(up.of(chosen), x[:, None])
    return (times(down.of(chosen), kept(relu2(hidden))) * shares[..., None]).sum(1)


def _times(x: Tensor, weight: Tensor, scales: Tensor, bias: None, rows: int) -> Tensor:
    return times(Matrix(weight, scales, bias, rows), x)


def _unpack(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    planes: list[Tensor] = []
    for plane, bits in enumerate((LOW, HIGH)):
        scale, zero = (scales[kind, plane, ..., None].float() for kind in range(2))
        value = ((codes & bits).float() - MIDDLE * 16**plane) * scale + zero
        planes.append(value.to(dtype).permute(1, 2, 0, 3).flatten(-2))
    return torch.stack(planes, 1).flatten(0, 2)


@lru_cache(maxsize=256)
def kernel(law: Callable[..., Tensor], *shape: int | torch.dtype) -> Kernel:
    """One for each shape, which is compiled by the first call."""
    return Kernel(torch.compile(law, fullgraph=True, options=options()))
