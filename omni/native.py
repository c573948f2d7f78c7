"""A machine for one token: a list of instructions, each a loop over numbers in memory (`omni.loops`), that all threads
of torch go through together, in one call for as many layers as it has instructions for.

Its own code is made once for all models, in some twenty seconds that a cache on disk spares later runs.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import cfunc, types
from torch import Tensor

from omni.loops import BFLOAT16, BYTE_CODE, FLOAT16, FLOAT32, WORD, WORDS, go
from omni.precision import AVX2

KINDS = {
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.int8: BYTE_CODE,
    torch.int32: WORD,
}


class Given(NamedTuple):
    """An operand that is known when instructions run."""

    name: str


Operand = int | float | Tensor | Given | None


class Program:
    """Instructions, and the tensors that they name. Two threads may not run one at once: their numbers would mix."""

    def __init__(self) -> None:
        self.written: list[tuple[Operand, ...]] = []
        self.code: Any = None

    def write(self, does: int, *operands: Operand) -> None:
        """One more. Tensors are contiguous, of float32 where nothing else is said; None is none of them."""
        self.written.append((does, *operands))
        self.code = None

    def __getstate__(self) -> list[tuple[Operand, ...]]:
        return self.written

    def __setstate__(self, written: list[tuple[Operand, ...]]) -> None:
        self.written, self.code = written, None

    def _assembled(self) -> Any:
        self.places: dict[str, list[int]] = {}
        self.code = (ctypes.c_int64 * (WORDS * (len(self.written) + 1)))()
        for number, instruction in enumerate(self.written):
            for at, operand in enumerate(instruction, number * WORDS):
                if isinstance(operand, Given):
                    self.places.setdefault(operand.name, []).append(at)
                else:
                    self.code[at] = _word(operand)
        return self.code

    def run(self, given: Mapping[str, Tensor | int]) -> None:
        """With tensors, addresses or numbers for all that is given."""
        code = self.code or self._assembled()
        for name, places in self.places.items():
            value = given[name]
            word = value if isinstance(value, int) else value.data_ptr()
            for at in places:
                code[at] = word
        threads()(machine(), code, torch.get_num_threads(), 0)


def _word(operand: int | float | Tensor | None) -> int:
    match operand:
        case None:
            return 0
        case Tensor():
            assert operand.is_contiguous()
            return operand.data_ptr()
        case float():
            return int(np.float64(operand).view(np.int64))
        case _:
            return operand


@cache
def able() -> bool:
    """Whether this process can: on x86 with AVX2, under Linux, and where torch's threads are found; said where not."""
    if not (AVX2 and sys.platform == "linux" and platform.machine() == "x86_64"):
        return False
    if threads() is None:
        logging.getLogger("omni").warning("omni: compile: torch's OpenMP was not found; torch's compiler makes kernels")
        return False
    return True


@cache
def threads() -> Any:
    """Of torch's OpenMP: run a function at a place on a pointer, by so many threads. Those of two pools would wait for
    each other.
    """
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {path for line in lines if "omp" in Path(path := line.split(maxsplit=5)[-1]).name}
    home = str(Path(torch.__file__).parent)
    for path in sorted(mapped, key=lambda path: (not path.startswith(home), path)):
        if hasattr(library := ctypes.CDLL(path), "GOMP_parallel"):
            for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
                llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            return library.GOMP_parallel
    return None


@cache
def machine() -> int:
    """The place of the function that goes through instructions."""
    place = cfunc(types.void(types.int64), cache=True)(go).address
    assert place is not None
    return place
