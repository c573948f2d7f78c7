"""Precision: which dtype a machine computes fast in, measured, not guessed from its name.

On processors without bfloat16 instructions torch emulates them: a product of matrices takes about a hundred times as
long as in float32, which is oneDNN's there (`linear`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
SLOW = 4.0  # times float32's; half the memory traffic makes up for twice
FAST = 0.7  # of float32's time: bfloat16 is worth its rounding in training
BECOMES = {"BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.bfloat16, "U8": torch.bfloat16}


@cache
def slowness(dtype: torch.dtype, size: int = 192) -> float:
    """How many times as long as in float32 a product of matrices takes on this CPU; by one thread, since two wait for
    one another on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _seconds(dtype, size) / _seconds(torch.float32, size)
    finally:
        torch.set_num_threads(threads)


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """What large matrices of a dtype are multiplied in on this CPU: float32 where it is slow in theirs."""
    slow = dtype in (torch.bfloat16, torch.float16) and slowness(dtype) > SLOW
    return torch.float32 if slow else dtype


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 clearly faster than in float32."""
    return slowness(torch.bfloat16) < FAST


def linear(
    x: Float[Tensor, "tokens width"], weight: Float[Tensor, "rows width"], bias: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "tokens rows"]:
    """`F.linear` of a weight as it lies. With AVX2 torch's own choice for float32 takes up to three times as long for a
    few tokens as oneDNN, a third longer for some hundred, and a tenth for many.
    """
    if AVX2 and x.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _seconds(dtype: torch.dtype, size: int) -> float:
    a = torch.ones(size, size, dtype=dtype)
    times: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def cpu_dtype(stored: Iterable[str]) -> torch.dtype | None:
    """What to compute in on this CPU: float32 where a checkpoint's half precision would be slow (said in one line);
    None: each tensor's own.

    stored: dtypes in safetensors' names; quantised ones become bfloat16.
    """
    for dtype in {BECOMES[name] for name in stored if name in BECOMES}:
        times = slowness(dtype)
        if times > SLOW:
            name = str(dtype).removeprefix("torch.")
            logging.getLogger("omni").warning(
                f"omni: computing in float32: this CPU takes {times:.0f} times as long in {name}; dtype= overrides this"
            )
            return torch.float32
    return None
