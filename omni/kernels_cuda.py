"""Fast twins of `ops` on a GPU: mamba-ssm's and causal-conv1d's kernels, under the names of `kernels`, which chooses.

Both packages are built against one torch and one CUDA, and builds fail often, so whether they can be imported is found
once, and said where they cannot: then Mamba layers run the reference. Gradients pass through `causal_conv`,
`selective_scan` and `gated_group_rms_norm`. In float32 the scan's products are TensorFloat-32, as Triton takes them.

Source: Mamba-2 (arXiv 2405.21060, section 6).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from omni import ops
from omni.ops import Lengths

PLACES = {
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d",
    "mamba_chunk_scan_combined": "mamba_ssm.ops.triton.ssd_combined",
    "selective_state_update": "mamba_ssm.ops.triton.selective_state_update",
    "rmsnorm_fn": "mamba_ssm.ops.triton.layernorm_gated",
}
TAPS = (2, 3, 4)  # that causal-conv1d is compiled for
ALIGNED = 8  # channels that it reads at a time where they lie next to each other
FILLING = 2  # times the tokens: above that, sequences are scanned one by one instead of filled up to the longest


@cache
def _kernel(name: str) -> Any:
    return getattr(import_module(PLACES[name]), name)


@cache
def ready() -> bool:
    """Whether both packages can be imported; said once if not."""
    try:
        for name in PLACES:
            _kernel(name)
    except Exception as error:  # a build for another torch or CUDA fails in many ways
        logging.getLogger("omni").warning(
            f"omni: Mamba layers run the reference on this GPU, which is slower: {type(error).__name__}: {error}; "
            "pip install --no-build-isolation 'omni[cuda]' builds mamba-ssm and causal-conv1d for this torch"
        )
        return False
    return True


@cache
def convolves(taps: int) -> bool:
    """Whether causal-conv1d is compiled for so many taps; said once if not."""
    if taps not in TAPS:
        logging.getLogger("omni").warning(
            f"omni: convolutions of {taps} taps run the reference on this GPU: causal-conv1d has 2 to 4"
        )
    return taps in TAPS


def causal_conv(
    x: Float[Tensor, "tokens channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    lengths: Lengths,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "sequences past channels"]]:
    """See `ops.causal_conv`: one convolution over all sequences behind their histories."""
    past = weight.shape[1] - 1
    extended = ops.behind_histories(x, lengths, history)
    image = extended.t()[None]  # (1, channels, tokens), channels last in memory
    if len(weight) % ALIGNED:
        image = image.contiguous()
    bias = None if bias is None else bias.to(x.dtype)
    out = _kernel("causal_conv1d_fn")(image, weight.to(x.dtype), bias, activation="silu")[0].t()
    return ops.own_rows(out[past:], lengths, past), ops.last_rows(extended, lengths, past)


def step_conv(
    x: Float[Tensor, "sequences channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "sequences past channels"],
) -> tuple[Float[Tensor, "sequences channels"], Float[Tensor, "sequences past channels"]]:
    """See `kernels.step_conv`; the history is a new tensor."""
    after = history.clone(memory_format=torch.contiguous_format)
    bias = None if bias is None else bias.float()
    held = after.transpose(1, 2)  # (sequences, channels, past), which the kernel moves on by one
    return _kernel("causal_conv1d_update")(x.float(), held, weight.float(), bias, activation="silu"), after


def selective_scan(
    x: Float[Tensor, "tokens heads dim"],
    dt: Float[Tensor, "tokens heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "tokens groups state"],
    c: Float[Tensor, "tokens groups state"],
    state: Float[Tensor, "sequences heads dim state"],
    lengths: Lengths,
    chunk: int,
) -> tuple[Float[Tensor, "tokens heads dim"], Float[Tensor, "sequences heads dim state"]]:
    """See `ops.selective_scan`: sequences side by side, filled up with steps of dt = 0 to the longest."""
    if len(lengths) * max(lengths) > FILLING * len(x):
        split = (value.split(list(lengths)) for value in (x, dt, b, c))
        parts = zip(*split, state.split(1), lengths, strict=True)
        alone = [selective_scan(x, dt, a, b, c, state, (length,), chunk) for x, dt, b, c, state, length in parts]
        ys, states = zip(*alone, strict=True)
        return torch.cat(ys), torch.cat(states)
    ones = [1] * len(lengths)
    x, dt, b, c = (ops.to_chunks(value, lengths, ones, max(lengths)) for value in (x, dt, b, c))
    y, after = _kernel("mamba_chunk_scan_combined")(
        x, dt, a, b, c, chunk_size=chunk, initial_states=state, return_final_states=True
    )
    return ops.from_chunks(y, lengths, ones).float(), after


def selective_step(
    x: Float[Tensor, "sequences heads dim"],
    dt: Float[Tensor, "sequences heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "sequences groups state"],
    c: Float[Tensor, "sequences groups state"],
    state: Float[Tensor, "sequences heads dim state"],
) -> tuple[Float[Tensor, "sequences heads dim"], Float[Tensor, "sequences heads dim state"]]:
    """See `kernels.selective_step`; the state is a new tensor. Expanded arguments tell the kernel that a head's
    channels share them.
    """
    heads, dim, size = state.shape[1:]
    after = state.clone()
    steps, rates = dt[..., None].expand(-1, -1, dim), a[:, None, None].expand(heads, dim, size)
    nothing = a.new_zeros(1, 1).expand(heads, dim)  # mamba-ssm 2.3.2 asks for the strides of D and dt_bias, or fails
    return _kernel("selective_state_update")(after, x, steps, rates, b, c, D=nothing, dt_bias=nothing), after


def gated_group_rms_norm(
    y: Float[Tensor, "tokens inner"],
    gate: Float[Tensor, "tokens inner"],
    weight: Float[Tensor, " inner"],
    groups: int,
    eps: float,
) -> Float[Tensor, "tokens inner"]:
    """See `ops.gated_group_rms_norm`."""
    normed = _kernel("rmsnorm_fn")(
        y, weight, None, z=gate, eps=eps, group_size=y.shape[1] // groups, norm_before_gate=False
    )
    return normed.to(gate.dtype)
