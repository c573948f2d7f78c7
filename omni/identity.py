"""Identity: which weights a model has, and what it runs on, so that an answer can be repeated and a memory refused."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

SAMPLES = 1024  # values of each tensor that are looked at
LIBRARIES = ("omni", "torch", "torchaudio", "timm", "transformers", "pillow", "pypdfium2", "decord2", "av")

_known: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def fingerprint(model: nn.Module, config: object) -> str:
    """SHA-256 over a config and, of every weight, its name, shape and 1024 values spread evenly over it.

    A model trained further, merged or quantised has another one; so has nearly every edit, but not one of a few values
    between the samples. Values count as float32: a bfloat16 checkpoint read in float32 stays the same model.
    """
    tensors = sorted(model.state_dict(keep_vars=True).items())
    now = tuple((tensor.data_ptr(), _changes(tensor)) for _, tensor in tensors)
    before = _known.get(model)
    if before is None or before[0] != now:
        made = hashlib.sha256(repr(config).encode())
        for name, tensor in tensors:
            made.update(f"{name} {tuple(tensor.shape)}".encode())
            made.update(_spread(tensor).numpy().tobytes())
        before = _known[model] = (now, made.hexdigest())
    return before[1]


def _changes(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    step = max(1, -(-len(flat) // SAMPLES))
    values = flat[::step].cpu()
    return values.float() if values.dtype.is_floating_point else values.long()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """fingerprint: of the weights. environment: libraries, machine, kernels and number format it runs with."""

    fingerprint: str
    environment: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, config: object, prune: Callable[..., object]) -> Identity:
        """Of a model as it is now. prune: its rule for clips."""
        weight = next(model.parameters())
        device, dtype = weight.device, str(weight.dtype).removeprefix("torch.")
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else machine
        around = {**_libraries(), "machine": machine, "kernels": "torch", "dtype": dtype, "pruning": _rule(prune)}
        return cls(fingerprint=fingerprint(model, config), environment=around)


def _rule(prune: Callable[..., object]) -> str:
    if isinstance(prune, partial):
        return f"{_rule(prune.func)}({', '.join(f'{name}={value}' for name, value in prune.keywords.items())})"
    return getattr(prune, "__name__", type(prune).__name__)


@cache
def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
