"""Writing at a machine's pace: what layers do with a single token (`omni.one_token`) in few calls: of a machine
(`omni.native`), which takes it through a hybrid in one, or where that is not able, of kernels that torch's compiler
makes, each of which takes it from one attention's cache to the next one's, or some layers far.

Needs a C++ compiler, which makes these, and of four bits what prompts need. The first token of a shape costs some
seconds a kernel, later runs find them in torch's cache on disk.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni import native
from omni.attention import Attention
from omni.backbone import Backbone, Block, RMSNorm
from omni.heap import give_back
from omni.kernels import FUSED
from omni.mamba import Mamba
from omni.moe import MLP, MoE
from omni.native_steps import Head, Native
from omni.one_token import Law, Part, ending, matrix_of, parts_of
from omni.packed import BLOCK, CAPABILITY, HALVES, Four, PackedExperts, PackedLinear, Stack, Weight
from omni.products import Fixed, Matrix, kept, prompts, times
from omni.state import KVState, LayerState, MambaState
from omni.strips import Laid, Strips
from omni.words import Words

COMPILERS = ("c++", "g++", "clang++")
TAKES = {"nothing": 0, "memory": 2, "mean": 1}  # tensors, by what a part needs
LONGEST = 6  # parts of a kernel: a call costs a token as much as a small layer, a part costs the compiler seconds


def compile_steps(model: nn.Module) -> int:
    """Let a packed model's single tokens run through compiled kernels; returns the number of layers that do.

    Left as they are, which is logged: layers with biases in experts or router, or packed without `rows`. Weights that
    are written into afterwards are refused until this is called again. Raises ValueError off the CPU, and where no C++
    compiler is installed.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"compile: a model on {device} came; these kernels are the CPU's")
    if not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"compile: none of {', '.join(COMPILERS)} is installed; apt install g++, or load without it")
    _lay_out(model)
    FUSED.setdefault("weigh", prompts(_weigh))
    count = left = 0
    for module in model.modules():
        if isinstance(module, Block) and isinstance(module.mixer, Mamba | Attention | MoE | MLP):
            parts = parts_of(module)
            count += bool(parts)
            left += not parts
            module.step = _Alone(module) if parts else None
        elif isinstance(module, Backbone):
            module.steps = _Steps([layer for layer in module.layers if isinstance(layer, Block)], module.norm_f)
    if isinstance(head := getattr(model, "head", None), PackedLinear) and (matrix := matrix_of(head)):
        head.one = Head(matrix) if native.able() else _Head(matrix)
    if left:
        logging.getLogger("omni").warning(f"omni: compile: {left} layers stay as they are, in form or biases")
    return count


def _weigh(
    decay: Float[Tensor, "chunks heads steps"], scores: Float[Tensor, "chunks groups steps steps"]
) -> Float[Tensor, "chunks heads steps steps"]:
    """See `omni.kernels`: in one pass, for prompts of any length."""
    steps = torch.arange(decay.shape[-1])
    fall = torch.where(steps[:, None] >= steps, decay[..., :, None] - decay[..., None, :], -torch.inf).exp()
    return (fall.unflatten(1, (scores.shape[1], -1)) * scores[:, :, None]).to(scores.dtype).flatten(1, 2)


class _Head:
    """A row times a matrix."""

    def __init__(self, matrix: Matrix) -> None:
        self.kernel = Fixed(_row, matrix)

    def __call__(self, x: Float[Tensor, "1 width"]) -> Float[Tensor, "1 rows"]:
        return self.kernel(x.contiguous())[0]


def _row(inputs: tuple[Float[Tensor, "1 width"]], matrix: Matrix) -> tuple[Float[Tensor, "1 rows"]]:
    (x,) = inputs
    return (times(matrix, kept(x[0].float())).to(x.dtype)[None],)


def _lay_out(model: nn.Module) -> None:
    """Put four bits in the layout that kernels read, one matrix or stack of experts after the other, in place."""
    give_back()  # loading has freed gibibytes, for which there may be no room beside the copies
    layout = Strips if CAPABILITY == "AVX512" else Words
    for module in model.modules():
        if isinstance(module, PackedLinear) and isinstance(four := module.packed, Four):
            module.packed = layout(*layout.laid(four.packed, four.scales, four.rows, BLOCK, HALVES), four.rows)
        elif isinstance(module, PackedExperts):
            for name, stack in module.stacks.items():
                if isinstance(stack.weights[0], Four):
                    module.lay(name, _laid(stack, layout))


def _laid(stack: Stack, layout: type[Laid]) -> Stack:
    """An expert after the other, into one tensor."""
    whole: Tensor | None = None
    scales: Tensor | None = None
    weights: list[Weight] = []
    for number, four in enumerate(stack.weights):
        assert isinstance(four, Four)
        parts = layout.laid(four.packed, four.scales, four.rows, BLOCK, HALVES)
        if whole is None or scales is None:
            whole, scales = (part.new_empty(len(stack.weights), *part.shape) for part in parts)
        whole[number], scales[number] = parts
        weights.append(layout(whole[number], scales[number], four.rows))
    return Stack(weights, stack.origin, whole, scales)


class _Run:
    """Some parts in one kernel; layers: the place of each part's layer, and `attends` the attention that comes next.

    caches: layers whose attention is among the parts, with its cache.
    """

    def __init__(self, parts: Sequence[tuple[Part, int]], attends: tuple[Attention, int] | None) -> None:
        self.caches = [layer for (_, layer), (_, behind) in itertools.pairwise(parts) if layer == behind]
        self.needs = [(part.needs, layer) for part, layer in parts if layer not in self.caches]
        self.attends = attends
        if native.able():
            first = parts[0][0].weights[0]
            self.kernel = Native([part for part, _ in parts], first.rows if isinstance(first, Matrix) else len(first))
        else:
            laws = tuple((part.law, TAKES[part.needs]) for part, _ in parts)
            self.kernel = Fixed(_joined(laws), [part.weights for part, _ in parts])


class _Steps:
    """A token through layers, one behind the other.

    last: the norm behind them. What has no parts runs as it is. Kernels have copies of small weights, which may not
    be written into meanwhile.
    """

    def __init__(self, blocks: Sequence[Block], last: RMSNorm | None = None) -> None:
        self.runs: list[_Run | tuple[Block, int]] = []
        parts: list[tuple[Part, int]] = []

        def close(attends: tuple[Attention, int] | None = None) -> None:
            if parts:
                self.runs.append(_Run(parts, attends))
                parts.clear()

        for layer, block in enumerate(blocks):
            found = parts_of(block)
            if not found:
                close()
                self.runs.append((block, layer))
            for part in found:
                parts.append((part, layer))
                if part is found[0] and isinstance(mixer := block.mixer, Attention) and not _inside(mixer):
                    close((mixer, layer))
                elif len(parts) == LONGEST and not native.able():
                    close()
        if last:
            parts.append((ending(last), -1))
        close()
        modules = (*blocks, last) if last else blocks
        tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()) if not t.is_inference())
        self.weights = list(tensors)
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self.weights]

    def __getstate__(self) -> tuple[Any, ...]:
        """For copies, whose tensors count anew how often they were written into."""
        return self.runs, self.weights, self._versions() == self.versions

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.runs, self.weights, same = state
        self.versions = self._versions() if same else []

    def __call__(self, x: Float[Tensor, "1 width"], states: Sequence[LayerState]) -> Float[Tensor, "1 width"]:
        """The stream behind the layers, whose states are gone on from."""
        if self._versions() != self.versions:
            raise ValueError("compile: weights were written into since; call compile_steps again")
        mean: tuple[Tensor, ...] = ()
        for run in self.runs:
            if not isinstance(run, _Run):
                block, layer = run
                x = block(x, (1,), states[layer])
                continue
            given: list[Tensor] = []
            for needs, layer in run.needs:
                given += _memory(states[layer]) if needs == "memory" else mean if needs == "mean" else ()
            caches = [states[layer] for layer in run.caches]
            x, *made = run.kernel(x, *given, caches=caches) if caches else run.kernel(x.contiguous(), *given)
            for needs, layer in run.needs:
                if needs == "memory" and isinstance(state := states[layer], MambaState):
                    history, ssm, *made = made
                    state.replace(MambaState(history, ssm))
            if run.attends:
                attention, layer = run.attends
                (q, k, v), cache = made, states[layer]
                mean = (attention.attend(q, k, v, (1,), cache if isinstance(cache, KVState) else None).contiguous(),)
        return x


def _inside(attention: Attention) -> bool:
    """Whether the machine has instructions for all of an attention."""
    return native.able() and attention.config.rope is None and attention.sinks is None


def _memory(state: LayerState) -> tuple[Tensor, Tensor]:
    assert isinstance(state, MambaState)
    return state.history.contiguous(), state.ssm.contiguous()


class _Alone:
    """A layer's step, of the stream and the layer's state, or None to start afresh."""

    def __init__(self, block: Block) -> None:
        self.block, self.steps = block, _Steps([block])

    def __call__(self, x: Float[Tensor, "1 width"], state: LayerState) -> Float[Tensor, "1 width"]:
        return self.steps(x, (state or self.block.new_state(1, x.device, x.dtype),))


@lru_cache(maxsize=64)
def _joined(laws: tuple[tuple[Law, int], ...]) -> Callable[..., list[Tensor]]:
    """One behind the other, each with the number of tensors that it takes beside the stream: of these and the laws'
    weights to the stream and what each made.
    """

    def joined(inputs: Sequence[Tensor], weights: Sequence[tuple[Any, ...]]) -> list[Tensor]:
        x, *given = inputs
        made: list[Tensor] = []
        for (law, takes), mine in zip(laws, weights, strict=True):
            x, *others = law(x, *given[:takes], *mine)
            given, made = given[takes:], made + others
        return [x, *made]

    return joined
