"""Packed weights on disk: a quantised model written once, and mapped into memory again in moments.

A folder holds config.json, the tokenizer's files and `packed.safetensors`: plain tensors under the model's own names,
and behind the name of each packed weight its codes and scales and what it was packed from. Four bits lie as the
processor that packed them wants them, and the file says how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omni.identity import SAMPLES, Origin, samples
from omni.packed import (
    BIASES,
    BLOCK,
    HALVES,
    STACKS,
    Eight,
    Format,
    Four,
    PackedExperts,
    PackedLinear,
    Stack,
    Weight,
    form_of,
    packs,
)
from omni.precision import cpu_dtype
from omni.strips import Laid

NAME = "packed.safetensors"
KIND = "omni packed 3"
ALIGNED = 64  # bytes
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8",
          torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}  # fmt: skip
LAYOUT = f"blocks of {BLOCK} rows, {'halves' if HALVES else 'pairs'} to a byte"  # of four bits, on this processor


def save_packed(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write a model that is quantised throughout; the file appears under its name only when it is whole.

    Raises ValueError where a linear or an expert is as it was, where four bits lie as compiled kernels want them, and
    where the folder holds another checkpoint.
    """
    if any(isinstance(each.weights[0] if isinstance(each, Stack) else each, Laid) for _, _, each in _packed(model)):
        raise ValueError("save_pretrained: a compiled model came; load it without compile, and save that")
    folder.mkdir(parents=True, exist_ok=True)
    if stray := sorted(path.name for path in folder.glob("*.safetensors") if path.name != NAME):
        raise ValueError(f"save_pretrained: {folder} already holds {', '.join(stray)}; save to an empty folder")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    forms: set[str] = set()
    for name, origin, weight in _packed(model):
        shapes[name] = origin.shape
        forms.add(origin.form.strip())
        tensors[f"{name}#origin"] = F.pad(origin.values, (0, SAMPLES - len(origin.values)))
        tensors |= {f"{name}#{part}": tensor for part, tensor in _parts(weight).items()}
    if not forms or "" in forms:
        raise ValueError(
            "save_pretrained: some weights are quantised and some are not; load it with quantize= and save"
        )
    tensors["#end"] = torch.zeros(ALIGNED, dtype=torch.uint8)  # kernels look a little beyond what they multiply
    about = {"kind": KIND, "form": min(forms), "layout": LAYOUT, "shapes": json.dumps(shapes)}
    part = folder / f"{NAME}.part"
    try:
        _write(part, tensors, about)
        part.replace(folder / NAME)
    finally:
        part.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """The safetensors format, with its data on a multiple of ALIGNED bytes, from which kernels read faster."""
    header: dict[str, Any] = {"__metadata__": about}
    at = 0
    for name, tensor in tensors.items():
        dtype = DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            tensor.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)


def _packed(model: nn.Module) -> Iterator[tuple[str, Origin, Weight | Stack]]:
    """Each packed weight: its name, what it was, and itself; a layer's experts are one."""
    for prefix, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield f"{prefix}.weight", module.origin["weight"], module.packed
        elif isinstance(module, PackedExperts):
            for name, stack in module.stacks.items():
                yield f"{prefix}.{name}", stack.origin, stack


def _parts(weight: Weight | Stack) -> dict[str, Tensor]:
    match weight:
        case Stack(whole=Tensor() as codes, scales=Tensor() as scales):
            return {"codes": codes, "scales": scales}
        case Eight():
            return {"codes": weight.codes, "scales": weight.scale}
        case Four():
            return {"codes": weight.packed, "scales": weight.scales}
        case _:
            return {}


def is_quantised(model: nn.Module) -> bool:
    """Whether weights of a model are in eight or four bits."""
    return any(origin.form for _, origin, _ in _packed(model))


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed model."""
    return (folder / NAME).is_file()


def load_packed(
    model: nn.Module, folder: Path, form: str | None = None, dtype: torch.dtype | Literal["auto"] = "auto"
) -> None:
    """Fill a model on the meta device; its weights stay in the file, which is mapped.

    form: the format that is wanted, None for the file's own. dtype: of what is not packed: "auto" or the file's own,
    and float32 always; it becomes float32 where half precision is slow. Raises ValueError for a damaged file, another
    format, dtype or layout, and weights of another model.
    """
    try:
        with safe_open(folder / NAME, "pt") as file:
            _Loading(model, folder / NAME, file, form, dtype).run()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load: {folder / NAME}: {error}; make it again with omni quantize") from None


class _Loading:
    """A model being filled from an open file."""

    def __init__(
        self, model: nn.Module, path: Path, file: Any, form: str | None, dtype: torch.dtype | Literal["auto"]
    ) -> None:
        self.model, self.path, self.file, self.names = model, path, file, set(file.keys())
        about = file.metadata() or {}
        if about.get("kind") != KIND:
            raise ValueError(
                f"load: {path} says it is {about.get('kind')}, want {KIND}; make it again with omni quantize"
            )
        if form not in (None, about["form"]):
            raise ValueError(f"load: {path} is in {about['form']}, quantize={form!r} came; leave quantize out")
        self.form: Format = about["form"]
        self.layout = about["layout"]
        self.shapes: dict[str, list[int]] = json.loads(about["shapes"])
        self.dtype = self._dtype(dtype)

    def run(self) -> None:
        """Packed modules first; what is left are plain tensors."""
        stacks: dict[str, dict[str, Stack]] = {}
        self._check_shapes()
        for name, shape in self.shapes.items():
            owner, _, leaf = name.rpartition(".")
            origin = Origin(
                tuple(shape), self._read(f"{name}#origin")[: samples(shape)], f" {form_of(owner, self.form)}"
            )
            if leaf in STACKS:
                stacks.setdefault(owner, {})[leaf] = self._stack(name, shape, origin)
            else:
                bias = self._read(key) if (key := f"{owner}.bias") in self.names else None
                self.model.set_submodule(owner, PackedLinear(self._weight(name, *shape), bias, origin))
        for owner, parts in stacks.items():
            clamp = getattr(self.model.get_submodule(owner), "clamp")  # noqa: B009  (of Experts)
            biases: dict[str, Tensor | None] = {
                bias: self._read(key) for bias in BIASES if (key := f"{owner}.{bias}") in self.names
            }
            self.model.set_submodule(owner, PackedExperts(parts, biases, clamp))
        self._plain()

    def _check_shapes(self) -> None:
        """Raise ValueError where the file's packed weights are not those that the model wants."""
        wanted = {
            f"{prefix}.{leaf}": list(weight.shape)
            for prefix, module in self.model.named_modules()
            for leaf, weight in module.named_parameters(recurse=False)
            if packs(module, leaf)
        }
        for name in sorted(wanted.keys() | self.shapes.keys()):
            if (held := self.shapes.get(name)) != (want := wanted.get(name)):
                raise ValueError(
                    f"load: {self.path}: {name} of {held or 'no shape'}, its config.json wants {want or 'none'}; "
                    "are they of one model?"
                )

    def _read(self, name: str) -> Tensor:
        """A tensor as it lies in the file; one that lies askew, as those behind an odd size do, is copied."""
        tensor = self.file.get_tensor(name)
        return tensor.clone() if tensor.data_ptr() % ALIGNED else tensor

    def _dtype(self, wanted: torch.dtype | Literal["auto"]) -> torch.dtype:
        """Of the plain tensors that are not float32 anyway."""
        own = self._read("embeddings.weight").dtype
        if wanted == "auto":
            return cpu_dtype([{torch.bfloat16: "BF16", torch.float16: "F16"}.get(own, "F32")]) or own
        if wanted not in (own, torch.float32):
            raise ValueError(f"load: {self.path} is in {own}, dtype {wanted} came; take 'auto', {own} or float32")
        return wanted

    def _stack(self, name: str, shape: Sequence[int], origin: Origin) -> Stack:
        _, rows, width = shape
        return Stack.of_codes(*self._codes(name), rows, width, origin)

    def _codes(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes and scales. Raises ValueError for four bits as another processor wants them."""
        codes = self._read(f"{name}#codes")
        if codes.dtype == torch.uint8 and self.layout != LAYOUT:
            raise ValueError(
                f"load: {self.path} has four bits in {self.layout}; this processor wants {LAYOUT}; make it again with "
                "omni quantize"
            )
        return codes, self._read(f"{name}#scales")

    def _weight(self, name: str, rows: int, width: int) -> Weight:
        codes, scales = self._codes(name)
        return Four(codes, scales, rows, width) if codes.dtype == torch.uint8 else Eight(codes, scales)

    def _plain(self) -> None:
        targets = self.model.state_dict(keep_vars=True)
        plain = {name for name in self.names if "#" not in name}
        if wrong := sorted(plain ^ set(targets)):
            raise ValueError(
                f"load: {self.path} and its config.json differ in {', '.join(wrong[:3])}; are they of one model?"
            )
        for name, target in targets.items():
            value = self._read(name)
            if value.shape != target.shape:
                raise ValueError(f"load: {self.path}: {name} of {tuple(value.shape)}, want {tuple(target.shape)}")
            if value.dtype.is_floating_point and value.dtype != torch.float32:
                value = value.to(self.dtype)
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if leaf in module._buffers:
                module._buffers[leaf] = value
            else:
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
