"""Identity: which weights a model has, and what it runs on, so that an answer can be repeated and a memory refused."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Sequence
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
    tensors = model.state_dict(keep_vars=True)
    packed = {
        f"{prefix}.{name}".lstrip("."): origin
        for prefix, module in model.named_modules()
        for name, origin in getattr(module, "origin", {}).items()
    }
    now = (*((tensor.data_ptr(), _changes(tensor)) for tensor in tensors.values()), *map(id, packed.values()))
    before = _known.get(model)
    if before is None or before[0] != now:
        made = hashlib.sha256(repr(config).encode())
        origins = {name: Origin.of(tensor) for name, tensor in tensors.items()} | packed
        for name, origin in sorted(origins.items()):
            made.update(f"{name} {origin.shape}{origin.form}".encode())
            made.update(origin.values.numpy().tobytes())
        before = _known[model] = (now, made.hexdigest())
    return before[1]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a weight was before it was packed: its shape, 1024 of its values, and " int8" or " int4" if rounded."""

    shape: tuple[int, ...]
    values: Tensor
    form: str = ""

    @classmethod
    def of(cls, tensor: Tensor, form: str | None = None) -> Origin:
        """Of a weight as it is now."""
        return cls(tuple(tensor.shape), _spread(tensor), f" {form}" if form else "")


def _changes(tensor: Tensor) -> tuple[int, float]:
    """How often a tensor was written into, which torch does not count of fused optimizers, and its middle value."""
    middle = tensor.detach()[tuple(size // 2 for size in tensor.shape)] if tensor.numel() else math.nan
    return -1 if tensor.is_inference() else tensor._version, float(middle)


def samples(shape: Sequence[int]) -> int:
    """How many values of a tensor are kept."""
    size = math.prod(shape)
    return -(-size // _step(size))


def places(shape: Sequence[int]) -> Tensor:
    """Where in a tensor, flattened, the values stand that are kept."""
    size = math.prod(shape)
    return torch.arange(0, size, _step(size))


def _step(size: int) -> int:
    return max(1, -(-size // SAMPLES))


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    step = _step(len(flat))
    values = flat[::step].cpu().clone()  # not a view, which would keep the whole weight
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
        forms = {o.form or " as it is" for module in model.modules() for o in getattr(module, "origin", {}).values()}
        kernels = "torch" if not forms else "packed" + ",".join(sorted(forms))
        if any(getattr(module, "step", None) for module in model.modules()):
            kernels += ", steps compiled"
        around = {**_libraries(), "machine": machine, "kernels": kernels, "dtype": dtype, "pruning": _rule(prune)}
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
