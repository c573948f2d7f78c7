"""Four bits as compiled kernels read them without AVX-512: row after row, eight codes to a word of 32 bits, a group of
inputs in as many words as its eighth. Codes become float32 where they stand, by a mask and a conversion.

A group's inputs are eight runs as long as it has words: word i holds the i-th of each run, so that words lie as the
vector's own inputs do, run by run. Needs a C++ compiler: see `omni.compiled`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from omni.products import CODES, LOW, MIDDLE
from omni.strips import Laid, kernel

AT_ONCE = 64  # blocks that are laid out in one piece, so that what lies between stays small
SHIFTS = 4 * torch.arange(CODES, dtype=torch.int32)


class Words(Laid):
    """Codes are (rows, groups, words of a group) int32.

    scales: for each group of a row one int32, whose lower half is the scale in bfloat16, and the upper one the zero.
    """

    @staticmethod
    def laid(packed: Tensor, scales: Tensor, rows: int, block: int, halves: bool) -> tuple[Tensor, Tensor]:
        """See `Laid`."""
        groups, width = len(scales), packed.shape[1] * 2
        words = packed.new_empty(len(packed), groups, width // groups // CODES, dtype=torch.int32)
        blocks = packed.view(-1, width, block // 2)
        for part, into in zip(blocks.split(AT_ONCE), words.split(AT_ONCE * block), strict=True):
            both = torch.stack((part & LOW, part >> 4), -2 if halves else -1).flatten(-2)  # (blocks, width, block)
            codes = both.transpose(1, 2).reshape(*into.shape[:2], CODES, -1).int()
            into.copy_((codes << SHIFTS[:, None]).sum(-2, dtype=torch.int32))  # no two share a bit
        pairs = scales.transpose(0, 1)[:rows].contiguous().view(torch.int32).squeeze(-1)
        return words[:rows].contiguous(), pairs

    @staticmethod
    def sizes(codes: Tensor) -> tuple[int, int, int]:
        """See `Laid`: a row is a block."""
        rows, groups, words = codes.shape
        return rows, 1, groups * words * CODES

    def part(self, start: int, count: int, dtype: torch.dtype) -> Float[Tensor, "part width"]:
        """See `Laid`."""
        part = slice(start, start + count)
        return kernel(_unpack, dtype, count, *self.codes.shape)(self.codes[part], self.scales[part], dtype)


def _unpack(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(code - 8) * scale + zero."""
    codes = (words[:, :, None] >> (4 * torch.arange(CODES, dtype=torch.int32))[:, None]) & LOW
    scale, zero = (scales << 16).view(torch.float32), (scales & -(1 << 16)).view(torch.float32)
    return ((codes.float() - MIDDLE) * scale[..., None, None] + zero[..., None, None]).to(dtype).flatten(1)
