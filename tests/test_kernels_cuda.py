"""mamba-ssm's kernels behind our names give the reference's numbers, and are chosen once, where they can be.

`make test-cuda` installs the two packages without their compiled parts and runs mamba-ssm's Triton kernels in Triton's
interpreter, on a CPU; causal-conv1d's, which are CUDA, are stood for by its own references of the same arguments. What
each device runs is tried everywhere, with tensors that have a device and a shape but no numbers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import small
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from omni import kernels, kernels_cuda, ops
from omni.model import OmniModel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("mamba_ssm") is not None
interpreted = pytest.mark.skipif(not INTERPRETED, reason="mamba-ssm in Triton's interpreter: make test-cuda")
LENGTHS = [(40,), (20, 20), (5, 30, 17, 1)]


def check_image(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """What causal-conv1d asks of its arguments before its kernel starts."""
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    assert channels_last or x.stride(2) == 1
    assert not channels_last or all(number % 8 == 0 for number in (x.shape[1], x.stride(0), x.stride(2)))
    check_weights(x, weight, bias)


def check_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The same, of one token."""
    assert state.dtype == x.dtype
    assert state.shape == (*x.shape, weight.shape[1] - 1)
    check_weights(x, weight, bias)


def check_weights(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    assert len(weight) == x.shape[1]
    assert 2 <= weight.shape[1] <= 4
    assert bias is None or (bias.dtype == weight.dtype and bias.shape == x.shape[1:2])


def checked(checks: Callable[..., None], reference: Callable[..., Tensor], *given: Tensor, activation: str) -> Tensor:
    checks(*given)
    return reference(*given, activation=activation)


@pytest.fixture(scope="module")
def packages() -> Iterator[None]:
    """Both packages, whose own first lines import what only a GPU's compiler makes."""
    with pytest.MonkeyPatch.context() as patch:
        package = ModuleType("mamba_ssm")
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None
        package.__path__ = list(spec.submodule_search_locations or ())
        patch.setitem(sys.modules, "mamba_ssm", package)
        patch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))
        convolution: Any = importlib.import_module("causal_conv1d")
        references: Any = importlib.import_module("causal_conv1d.causal_conv1d_interface")
        for name, checks in (("causal_conv1d_fn", check_image), ("causal_conv1d_update", check_step)):
            reference = getattr(references, name.removesuffix("_fn") + "_ref")
            patch.setattr(convolution, name, partial(checked, checks, reference), raising=False)
        patch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(multi_processor_count=2))
        yield
    kernels_cuda._kernel.cache_clear()


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    kernels_cuda.ready.cache_clear()
    kernels_cuda.convolves.cache_clear()


def close(made: Tensor, wanted: Tensor) -> None:
    assert made.shape == wanted.shape
    assert made.dtype == wanted.dtype
    made, wanted = made.detach(), wanted.detach()
    assert float((made - wanted).norm()) <= 1e-5 * float(wanted.norm())


def scanned(lengths: tuple[int, ...]) -> list[Tensor]:
    tokens = sum(lengths)
    b, c = torch.randn(2, tokens, 2, 32)
    x, state = torch.randn(tokens, 8, 16), torch.randn(len(lengths), 8, 16, 32)
    return [x, torch.rand(tokens, 8), -3 * torch.rand(8), b, c, state]


@interpreted
@pytest.mark.usefixtures("packages")
@pytest.mark.filterwarnings("ignore:Deterministic mode:UserWarning")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_scan_and_its_gradients_equal_the_reference(lengths: tuple[int, ...]) -> None:
    leaves = [value.requires_grad_() for value in scanned(lengths)]
    results, gradients = [], []
    for of in (kernels_cuda, ops):
        results.append(of.selective_scan(*leaves, lengths, 16))  # pyright: ignore[reportCallIssue]
        loss = sum(value.square().sum() for value in results[-1])
        gradients.append(torch.autograd.grad(loss, leaves))
    for made, wanted in [*zip(*results, strict=True), *zip(*gradients, strict=True)]:
        close(made, wanted)


@interpreted
@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("channels", [96, 90])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_convolution_equals_the_reference(lengths: tuple[int, ...], channels: int) -> None:
    x, weight, bias = torch.randn(sum(lengths), channels), torch.randn(channels, 4), torch.randn(channels)
    history = torch.randn(len(lengths), 3, channels)
    for made, wanted in zip(
        kernels_cuda.causal_conv(x, weight, bias, lengths, history),
        ops.causal_conv(x, weight, bias, lengths, history),
        strict=True,
    ):
        close(made, wanted)


@interpreted
@pytest.mark.usefixtures("packages")
def test_one_token_equals_the_reference_and_leaves_what_was_kept() -> None:
    x, dt, a, b, c, state = scanned((1,) * 5)
    rows, weight, bias = torch.randn(5, 96), torch.randn(96, 4), torch.randn(96)
    history = torch.randn(5, 4, 96)[:, 1:]  # a view, as `kernels.step_conv` leaves it
    kept = state.clone(), history.clone()
    made = *kernels_cuda.selective_step(x, dt, a, b, c, state), *kernels_cuda.step_conv(rows, weight, bias, history)
    ones = (1,) * 5
    wanted = (
        *ops.selective_scan(x, dt, a, b, c, state, ones, 16),
        *ops.causal_conv(rows, weight, bias, ones, history),
    )
    for one, other in zip(made, wanted, strict=True):
        close(one, other)
    assert torch.equal(state, kept[0])
    assert torch.equal(history, kept[1])


@interpreted
@pytest.mark.usefixtures("packages")
def test_the_gated_norm_and_its_gradients_equal_the_reference() -> None:
    y, weight = torch.randn(9, 96, requires_grad=True), torch.randn(96, requires_grad=True)
    gate = torch.randn(9, 200, requires_grad=True)
    results = [of.gated_group_rms_norm(y, gate[:, 7:103], weight, 3, 1e-5) for of in (kernels_cuda, ops)]
    gradients = [torch.autograd.grad(result.square().sum(), (y, gate, weight)) for result in results]
    for made, wanted in [results, *zip(*gradients, strict=True)]:
        close(made, wanted)


@interpreted
@pytest.mark.usefixtures("packages")
@torch.inference_mode()
def test_a_hybrid_reads_and_writes_as_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model(small.FAMILIES["Nano 2"])
    x, token = torch.randn(19, small.WIDTH), torch.randn(1, small.WIDTH)

    def read() -> list[Tensor]:
        state = model.new_state(1)
        return [model.backbone(rows, (len(rows),), state) for rows in (x, token, token)]

    wanted = read()
    monkeypatch.setattr(kernels, "on_gpu", lambda x: True)
    for made, other in zip(read(), wanted, strict=True):
        close(made, other)


EMPTY = {  # what each kernel gives, without its numbers
    "causal_conv1d_fn": partial(checked, check_image, lambda x, *_, **__: torch.empty_like(x)),
    "causal_conv1d_update": partial(checked, check_step, lambda x, *_, **__: torch.empty_like(x)),
    "mamba_chunk_scan_combined": lambda x, *_, initial_states, **__: (
        torch.empty_like(x),
        torch.empty_like(initial_states),
    ),
    "selective_state_update": lambda state, x, *_, **__: torch.empty_like(x),
    "rmsnorm_fn": lambda y, *_, **__: torch.empty_like(y),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize("family", ["hybrid child", "gpt-oss", "Nano 2", "Nano 3", "Super", "Llama-Nemotron"])
def test_all_a_backbone_makes_lies_on_its_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors refuse what a GPU would: two devices in one operation. Which experts were chosen they cannot say."""
    used: set[str] = set()

    def kernel(name: str) -> Any:
        used.add(name)
        return EMPTY[name]

    monkeypatch.setattr(kernels_cuda, "ready", lambda: True)
    monkeypatch.setattr(kernels_cuda, "_kernel", kernel)
    monkeypatch.setattr(ops, "mix_experts", lambda x, chosen, weights, expert: expert(0, x) * weights[:, :1])
    config = small.FAMILIES[family]
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        model = OmniModel(config)
        state, x = model.new_state(2), torch.empty(30, small.WIDTH)
        for lengths in ((20, 10), (1, 1), (3, 2)):
            assert model.backbone(x[: sum(lengths)], lengths, state).device.type == "cuda"
    mambas = any(isinstance(block, small.MambaConfig) for block in config.backbone.blocks)
    assert used == (set(EMPTY) if mambas else set())


def test_missing_kernels_are_said_once_and_the_reference_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)  # its import fails
    kernels_cuda._kernel.cache_clear()
    with FakeTensorMode(), torch.device("cuda"), caplog.at_level(logging.WARNING, "omni"):
        y, gate, weight = torch.empty(2, 8), torch.empty(2, 8), torch.empty(8)
        for _ in range(3):
            assert not kernels.on_gpu(y)
            assert not kernels.at_once(y)
            kernels.gated_group_rms_norm(y, gate, weight, 2, 1e-5)
    (said,) = caplog.messages
    assert "causal_conv1d" in said
    assert "run the reference" in said
    assert "omni[cuda]" in said


def test_a_convolution_of_more_taps_than_the_kernels_have_runs_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels_cuda, "ready", lambda: True)
    monkeypatch.setattr(kernels_cuda, "_kernel", lambda name: pytest.fail(f"{name} was called"))
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad(), caplog.at_level(logging.WARNING, "omni"):
        x, weight, history = torch.empty(9, 8), torch.empty(8, 5), torch.empty(1, 4, 8)
        for _ in range(2):
            assert kernels.causal_conv(x, weight, None, (9,), history)[0].shape == x.shape
            assert kernels.step_conv(x[:1], weight, None, history)[0].shape == (1, 8)
    (said,) = caplog.messages
    assert "5 taps" in said
