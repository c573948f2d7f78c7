"""A matrix times a vector, written so that torch's compiler makes of it one pass over the weights as they lie.

Codes of eight bits, and of four in strips, are multiplied as integers: the vector becomes integers of 16 bits on one
step, as fine as sums of 32 bits allow, so that a compiler's own vectors of integers do the work (sixty-four products an
instruction or two) and rounding stays near 1e-4. Where the compiler does not turn such loops into vectors, off x86, and
for four bits in words codes are multiplied as float32.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch._inductor import standalone_compile
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from omni.precision import AVX2

INTEGERS = platform.machine() in ("x86_64", "AMD64")
SETTINGS: dict[str, Any] = {"recompile_limit": 1024, "accumulated_recompile_limit": 4096}  # a kernel for each shape
LARGEST = 2**15 - 1  # of a vector's integers
SUM = 2**30  # of their products; half of what 32 bits hold, so that rounding up all of them is safe
MIDDLE = 8  # the code of four bits that stands for a group's zero
LOW, HIGH = 15, 240  # the bits of a byte's two codes
CODES = 8  # in a word of 32 bits
# parts of a large matrix that are read side by side: one stream of reads does not fill what memory can give
PARTS, PARTS_OF_CODES = (4, 2) if AVX2 else (1, 1)
LARGE = 2**19  # weights


class Matrix(NamedTuple):
    """Weights (..., rows, width) as they are or in eight bits, or four bits' codes in words (int32, `omni.words`) or in
    strips (uint8, `omni.strips`); their scales; a bias; rows.
    """

    weight: Tensor
    scales: Tensor | None
    bias: Tensor | None
    rows: int

    def of(self, chosen: Tensor) -> Matrix:
        """The chosen ones of a stack."""
        return self._replace(weight=self.weight[chosen], scales=None if self.scales is None else self.scales[chosen])


@cache
def options() -> dict[str, Any]:
    """What torch's compiler is told."""
    made: dict[str, Any] = {
        "assert_indirect_indexing": False,  # a check for each weight of a chosen expert
        "size_asserts": False,  # of each input, which what calls a kernel has checked: 2 % of a token's time
        "alignment_asserts": False,
        "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum in one instruction
    }
    if INTEGERS:  # torch leaves loops over 16 bits to the compiler, and tells it not to make vectors of them
        made["cpp.march"] = " ".join(("native", "-ftree-loop-vectorize", *_wide_moves()))
    return made


def _wide_moves() -> tuple[str, ...]:
    """Copies of 32 bytes, where the compiler can be told: torch loads vectors of AVX2's integers by way of the stack,
    which waits for copies of 16. Sums of four bits take 1.4 times as long without.
    """
    flags = ("-mmove-max=256", "-mstore-max=256")
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return ()
    tried = subprocess.run(
        [get_cpp_compiler(), *flags, "-E", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    return () if tried.returncode else flags


def prompts(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One kernel for all sizes."""
    ready = torch.compile(kernel, fullgraph=True, dynamic=True, options=options())

    def run(*tensors: Tensor) -> Tensor:
        with torch._dynamo.config.patch(SETTINGS):
            return ready(*tensors)

    return run


class Kernel:
    """A kernel that is compiled by its first call, under one mode and one setting, so that nothing is compiled twice;
    what follows goes straight to it.
    """

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel, self.warm = kernel, False

    def __call__(self, *inputs: Any) -> Any:
        if self.warm and torch.is_inference_mode_enabled():
            return self.kernel(*inputs)
        with torch.inference_mode(), torch._dynamo.config.patch(SETTINGS):
            self.warm = True
            return self.kernel(*inputs)


class Fixed:
    """A kernel of (inputs, weights) to tensors, for contiguous inputs of one shape: what follows its first call skips
    the checks of each input and weight by which torch chooses among compiled kernels. They find nothing in the cache,
    and would take 8 % of a token's time.
    """

    def __init__(self, kernel: Callable[..., Sequence[Tensor]], weights: Any) -> None:
        self.kernel, self.weights = kernel, weights
        self.tensors = [leaf for leaf in tree_leaves(weights) if isinstance(leaf, Tensor)]
        self.ready: dict[torch.dtype, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            ready = self.ready.get(inputs[0].dtype)
            if ready is None:
                ready = self.ready[inputs[0].dtype] = _ready(self.kernel, (inputs, self.weights))
            return ready(*inputs, *self.tensors)


_READY: dict[Any, Callable[..., Sequence[Tensor]]] = {}  # by kernel, and by shapes and dtypes of what it is given


def _ready(kernel: Callable[..., Sequence[Tensor]], given: tuple[Any, ...]) -> Callable[..., Sequence[Tensor]]:
    """Compiled for the tensors among what is given, once for all that are alike."""
    leaves, spec = tree_flatten(given)
    alike = [(leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    key = (kernel, spec, tuple(alike))
    if key not in _READY:

        def of_tensors(*tensors: Tensor) -> Sequence[Tensor]:
            rest = iter(tensors)
            return kernel(*tree_unflatten([next(rest) if isinstance(leaf, tuple) else leaf for leaf in alike], spec))

        tensors: list[Any] = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        graph = make_fx(of_tensors, tracing_mode="fake")(*tensors)
        told = {"config_patches": options()}
        _READY[key] = standalone_compile(graph, tensors, dynamic_shapes="from_example_inputs", options=told)
    return _READY[key]


def kept(x: Tensor, *shape: int) -> Tensor:
    """A contiguous tensor that is computed once, not again wherever it is used; in a shape, where one is given."""
    shape = shape or tuple(x.shape)
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return torch.as_strided(x.contiguous(), shape, strides[::-1])


def times(matrix: Matrix, x: Float[Tensor, "*stack width"]) -> Float[Tensor, "*stack rows"]:
    """Each matrix of a stack times its vector, float32; one vector that all share may come without the stack."""
    weight, scales, bias, rows = matrix
    if scales is None:
        out = _side_by_side(lambda weight: (weight.float() * x[..., None, :]).sum(-1), PARTS, weight)
    elif weight.dtype == torch.int32:
        out = _words(weight, scales, x)
    elif weight.dtype == torch.uint8:
        out = _strips(weight, scales, x)[..., :rows]
    elif INTEGERS:
        out = _side_by_side(_eights(x), PARTS_OF_CODES, weight, scales[..., None])
    else:
        out = (weight.float() * x[..., None, :]).sum(-1) * scales
    return out if bias is None else out + bias


def _side_by_side(law: Callable[..., Tensor], parts: int, weight: Tensor, *more: Tensor) -> Tensor:
    """A law of rows in one pass over so many parts of them, where a matrix is large."""
    rows, width = weight.shape[-2:]
    if rows % parts or rows * width < LARGE:
        return law(weight, *more)
    return torch.cat([law(*part) for part in zip(*(t.chunk(parts, -2) for t in (weight, *more)), strict=True)], -1)


def _eights(x: Float[Tensor, "*stack width"]) -> Callable[[Tensor, Tensor], Tensor]:
    """Codes of eight bits and their scales to products with a vector."""
    codes, step = _integers(x, 127)
    vector = kept(codes)[..., None, :].to(torch.int32)

    def law(weight: Tensor, scales: Tensor) -> Tensor:
        sums = (weight.to(torch.int32) * vector).sum(-1, dtype=torch.int32)
        return sums.float() * (scales[..., 0].float() * step)

    return law


def _integers(x: Float[Tensor, "*stack width"], most: int) -> tuple[Int16[Tensor, "*stack width"], Tensor]:
    """A vector in steps, and the step: no sum of its integers, each times `most` at most, leaves 32 bits."""
    size = x.abs()
    step = torch.maximum(size.amax(-1, keepdim=True) / LARGEST, size.sum(-1, keepdim=True) * (most / SUM))
    step = step.clamp_min(torch.finfo(torch.float32).tiny)
    return (x * (1 / step)).round().to(torch.int16), step


def _words(weight: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """See `omni.words` for the layout. All codes but a word's last are masked where they stand, so that they count
    powers of sixteen more, by which the vector's parts were divided: that is an instruction less than to shift them.
    """
    groups, lanes = weight.shape[-2:]
    parts = x.reshape(*x.shape[:-1], groups, CODES, lanes)
    places = torch.arange(CODES)
    fine = kept(parts / (1 << torch.where(places == CODES - 1, 0, 4 * places))[:, None])[..., None, :, :, :]
    sums = kept(parts.sum(-2))[..., None, :, :]
    codes = [*(weight & (LOW << 4 * place) for place in range(CODES - 1)), (weight >> 4 * (CODES - 1)) & LOW]
    products = [code.float() * fine[..., place, :] for place, code in enumerate(codes)]
    some, others = products[: CODES // 2], products[CODES // 2 :]  # two chains of sums, for a processor's pipelines
    scale = (scales << 16).view(torch.float32)
    zero = (scales & -(1 << 16)).view(torch.float32) - MIDDLE * scale
    dots = sum(some[1:], some[0]) + sum(others[1:], others[0])
    return (dots * scale[..., None] + sums * zero[..., None]).sum((-2, -1))


def _strips(weight: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """See `omni.strips` for the layout: sums of each group's products, then of the groups. A step for each group."""
    groups, group = weight.shape[-4], weight.shape[-1]
    parts = x.reshape(*x.shape[:-1], groups, group)
    step = kept((parts.abs().amax(-1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny))
    sums = kept(parts.sum(-1))[..., None, :, None, None]  # beside planes, groups, blocks and their halves
    codes = (parts * (1 / step)[..., None]).round().to(torch.int16)
    vector = kept(codes, *step.shape, 1, 1, group).to(torch.int32)
    planes = [((weight & bits).to(torch.int32) * vector).sum(-1, dtype=torch.int32) for bits in (LOW, HIGH)]
    products = torch.stack(planes, -4).float() * step[..., None, :, None, None]
    middle = (torch.arange(2) * (MIDDLE * 15) + MIDDLE)[:, None, None, None]  # a high code counts sixteen times
    scale, zero = (scales[..., kind, :, :, :, :].float() for kind in range(2))
    out = ((products - middle * sums) * scale + zero * sums).sum(-3)
    return kept(out.transpose(-2, -3)).flatten(-3)
