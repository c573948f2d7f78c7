"""Writing measured: states of any length made at once, seconds of a token, what it moves, and where the time goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from omni.bench_result import timed
from omni.model import OmniModel
from omni.moe import MoE
from omni.packed import PackedExperts, PackedLinear
from omni.state import KVState, MambaState, State

PRODUCTS = {  # torch's operators that multiply matrices, as a profile names them; attention's is one of them
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::mv",
    "aten::addmv",
    "aten::_int_mm",
    "aten::_weight_int4pack_mm_for_cpu",
    "aten::_weight_int8pack_mm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::mkldnn_linear",
    "mkldnn::_linear_pointwise",
}
ROOM = 64  # tokens for which a filled state has space, so that writing does not begin by copying it
SHOWN = 8  # operators of a profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the time of writing goes. outside: its share outside matrix products; operators: the largest shares of
    what the profiler saw, by torch's names.
    """

    outside: float
    operators: dict[str, float]


def filled_state(model: OmniModel, tokens: int, sequences: int = 1) -> State:
    """A state as if so many tokens had been read by each sequence, of random values."""
    state = model.new_state(sequences)
    for layer in state.layers:
        if isinstance(layer, KVState):
            for sequence, buffer in enumerate(layer.keys):
                shape = (len(buffer), tokens + ROOM, buffer.shape[2])
                layer.append(sequence, *(torch.randn(shape, dtype=buffer.dtype) for _ in range(2)))
            layer.rewind([ROOM] * sequences)
        elif isinstance(layer, MambaState):
            layer.replace(MambaState(torch.randn_like(layer.history), torch.randn_like(layer.ssm)))
    state.advance([tokens] * sequences)
    return state


@torch.inference_mode()
def write(model: OmniModel, state: State, embeddings: Float[Tensor, "tokens width"]) -> None:
    """Score token after token, as many side by side as the state has sequences."""
    count = len(state)
    for rows in embeddings.split(count):
        model.score(model.read(rows, (1,) * count, state)).argmax(-1).tolist()


def writes(model: OmniModel, state: State, embeddings: Float[Tensor, "tokens width"], repeats: int) -> list[float]:
    """Seconds of each `write` after one to warm up; the state is put back every time."""
    mark = state.snapshot()

    def run() -> None:
        write(model, state, embeddings)
        state.restore(mark)

    return timed(run, repeats)


def profiled(model: OmniModel, state: State, embeddings: Float[Tensor, "tokens width"], seconds: float) -> Profile:
    """Where `seconds` of one `write` go, as measured without the profiler, which slows what is not a product."""
    mark = state.snapshot()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        write(model, state, embeddings)
    state.restore(mark)
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    products = sum(time for name, time in spent.items() if name in PRODUCTS)
    largest = sorted(spent, key=lambda name: -spent[name])[:SHOWN]
    return Profile(
        outside=max(0.0, 1 - products / seconds),
        operators={name: spent[name] / sum(spent.values()) for name in largest},
    )


def touched(model: OmniModel, tokens: int = 1) -> int:
    """Bytes of weights that writing one token (or several side by side, their experts evenly chosen) reads in matrix
    products: all but the experts that are not chosen, and the embeddings.
    """
    total = 0
    for module in model.backbone.modules():
        if isinstance(module, PackedLinear):
            total += module.packed.nbytes
        if isinstance(module, MoE) and isinstance(module.experts, PackedExperts):
            stacks = (module.experts.up, module.experts.gate or [], module.experts.down)
            stored = sum(weight.nbytes for stack in stacks for weight in stack)
            total += round(stored * (1 - (1 - module.config.top_k / module.config.experts) ** tokens))
    assert isinstance(model.head, PackedLinear)
    return total + model.head.packed.nbytes


def touched_beside(model: OmniModel, state: State) -> int:
    """Bytes that writing one token of each sequence moves beside packed weights: routers, norms and other plain
    weights; keys and values read; Mamba's states read and written.
    """
    plain = sum(parameter.nbytes for parameter in model.backbone.parameters())
    kept = sum((2 if isinstance(layer, MambaState) else 1) * layer.nbytes for layer in state.layers if layer)
    return plain + kept
