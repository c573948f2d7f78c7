"""Checkpoints: upstream's key names ↔ ours, safetensors read tensor by tensor and written in shards.

Read are dialect A (every public checkpoint), dialect B (later exports), Llama's keys, and FP8 / NVFP4 weights
(ModelOpt), which become plain weights. Written is dialect A. Every parameter must arrive exactly once; a missing,
unknown or misshapen key is named and nothing is loaded. No code from a checkpoint is ever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omni.config import OmniConfig
from omni.keys import Source, sources
from omni.packed import BIASES, STACKS, Format, PackedExperts, PackedLinear, Stack, check, dense, form_of, packs, widen
from omni.tensors import Reader, with_scales

WHOLE = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # files of a checkpoint
GENERATION, EOS = "generation_config.json", "eos_token_id"
TINY = Path(__file__).parent / "tiny"  # the model in the package
UNUSED = re.compile(
    r"(^|\.)(radio_model\.(input_conditioner\.norm_(mean|std)|summary_idxs)|input_conditioner\.norm_(mean|std)|summary_idxs"
    r"|feature_extractor\.featurizer\.(fb|window)|layer_scale[12]\.lambda1|rotary_emb\.inv_freq)$"
)


class Checkpoint:
    """A folder with config.json and safetensors; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = _read_json(folder / "config.json")
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(_weight_map(index).values()))
        else:
            names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            raise ValueError(f"load: {folder} has no *.safetensors; download the whole checkpoint")
        self.files: dict[str, Path] = {}
        self.headers: dict[str, tuple[tuple[int, ...], str]] = {}  # shape and dtype of each key
        for name in names:
            path = folder / name
            try:
                with safe_open(path, "pt") as file:
                    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
                    headers = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"load: {path}: {error}; download the file again") from None
            for key in headers:
                if key in self.files:
                    raise ValueError(f"load: {key} is in {self.files[key].name} and in {name}; keep one of them")
                self.files[key] = path
            self.headers |= headers

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """A local folder, or a repository of the hub by its id (downloaded, or taken from the hub's cache)."""
        return cls(folder_of(path, WHOLE))

    def fill(
        self,
        model: nn.Module,
        config: OmniConfig,
        dtype: torch.dtype | Literal["auto"] = "auto",
        device: torch.device | str = "auto",
        form: Format | None = None,
    ) -> None:
        """Give every parameter and buffer of a model on the meta device its weights, one at a time, shard by shard.

        form: pack linears and experts in it as they come.
        """
        if dtype != "auto" and (not dtype.is_floating_point or dtype.itemsize < 2):
            raise ValueError(f"load: dtype {dtype} came; want 'auto', float32, bfloat16 or float16")
        device = torch.device("cpu" if device == "auto" else device)
        reader = Reader(self.files, self.headers)
        plan = _plan(model, config, set(self.files))
        targets = _tensors(model)
        head = self._own_head(config)
        known = with_scales({key for source in (*plan.values(), *head) for key in source.keys})
        unknown = sorted(key for key in self.files if key not in known and not UNUSED.search(key))
        if unknown:
            raise ValueError(f"load: {self.folder} holds unknown keys {_some(unknown)}; is config.json its own?")
        odd = [
            f"{key} of {self.headers[key][1]}"
            for name, source in plan.items()
            for key in source.keys
            if targets[name].is_floating_point() and not reader.is_float(key)
        ]
        if odd:
            raise ValueError(
                f"load: {self.folder} holds {_some(odd)}; want floating point, or FP8 or NVFP4 with scales"
            )
        wrong = [
            f"{source.keys[0]} {shape}, want {want}"
            for name, source in plan.items()
            if (shape := reader.shape(source)) != (want := tuple(targets[name].shape))
        ]
        if wrong:
            raise ValueError(
                f"load: {self.folder} holds tensors of other shapes: {_some(wrong)}; is config.json its own?"
            )
        keep = None if dtype == "auto" else dtype
        if form is not None:
            check(form, device)
        filled: dict[str, Tensor] = {}
        stacks: dict[str, dict[str, Stack]] = {}
        linears: dict[str, PackedLinear] = {}
        for name, source in sorted(plan.items(), key=lambda item: self.files[item[1].keys[0]].name):
            exact = name.endswith("e_score_correction_bias") or not targets[name].is_floating_point()
            value = reader.read(source, targets[name].dtype if exact else keep, device)
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if form is None or not packs(module, leaf):
                filled[name] = value
            elif leaf in STACKS:
                stacks.setdefault(path, {})[leaf] = Stack.of(value, form)
            else:
                linears[path] = PackedLinear.of(value, None, form_of(path, form))
        for source in head:
            if not torch.equal(reader.read(source, keep, device), filled["embeddings.weight"]):
                raise ValueError(
                    f"load: {self.folder}: {source.keys[0]} differs from the embeddings that it is tied to; set "
                    "tie_word_embeddings to false in config.json if it is a head of its own"
                )
        reader.close()
        left_out = set(targets) - set(plan) - {"head.weight"}  # the vision norm: no checkpoint has its weights
        for name in left_out:
            fresh = torch.ones if name.endswith("weight") else torch.zeros
            filled[name] = fresh(targets[name].shape, dtype=filled["embeddings.weight"].dtype, device=device)
        if form is not None and config.backbone.tied:
            linears["head"] = PackedLinear.of(filled["embeddings.weight"], None, form)
        for path, linear in linears.items():
            model.set_submodule(path, linear)
        for path, parts in stacks.items():
            clamp = getattr(model.get_submodule(path), "clamp")  # noqa: B009  (of Experts)
            biases = {name: filled.pop(f"{path}.{name}", None) for name in BIASES}
            model.set_submodule(path, PackedExperts(parts, biases, clamp))
        for name, value in filled.items():
            _assign(model, name, value)
        if form is None:
            _tie(model, config)
        else:
            widen(model)

    def _own_head(self, config: OmniConfig) -> list[Source]:
        """Where a head that is tied to the embeddings stands once more, as transformers needs it of Nemotron-H."""
        options = sources("head.weight", config) if config.backbone.tied else ()
        return [option for option in options if set(option.keys) <= set(self.files)][:1]


def folder_of(path: str | Path, patterns: list[str]) -> Path:
    """A local folder as it is; "tiny": the model in the package; a hub id as the folder its files (those of the
    patterns) were downloaded to.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if str(path) == "tiny":
        if not list(TINY.glob("*.safetensors")):
            raise ValueError(
                "load: the weights of the model in the package are missing in this installation; install it whole, or "
                "pass another checkpoint's folder or hub id"
            )
        return TINY
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise ValueError(f"load: {path} is no folder and no hub id; pass a checkpoint's folder, or owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"load: {path} is no local folder, and the hub gave: {error}; check the name and the connection"
        ) from None


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a folder, of a hub repository, or given itself; no weights are fetched.

    Its ends of answers are also those of the generation_config.json beside it: released ones name a turn's end there
    alone.
    """
    file = Path(path).expanduser()
    file = file if file.is_file() else folder_of(path, ["config.json", GENERATION]) / "config.json"
    values, beside = _read_json(file), file.parent / GENERATION
    more = _listed(_read_json(beside).get(EOS)) if beside.is_file() else []
    if not more:
        return values
    text = next((values[name] for name in ("text_config", "llm_config") if isinstance(values.get(name), dict)), {})
    return values | {EOS: list(dict.fromkeys([*_listed(values.get(EOS, text.get(EOS))), *more]))}


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name."""
    return model.state_dict(keep_vars=True)


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a meta tensor by its weights."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())


def _tie(model: nn.Module, config: OmniConfig) -> None:
    if config.backbone.tied:
        model.get_submodule("head")._parameters["weight"] = model.get_submodule("embeddings")._parameters["weight"]


def _plan(model: nn.Module, config: OmniConfig, available: set[str]) -> dict[str, Source]:
    """For each of our tensors the keys it comes from, or ValueError naming what is missing."""
    plan: dict[str, Source] = {}
    missing: list[str] = []
    for name in _tensors(model):
        if name == "head.weight" and config.backbone.tied:
            continue
        options = list(sources(name, config))
        found = next((option for option in options if set(option.keys) <= available), None)
        if found:
            plan[name] = found
        elif not name.startswith("vision_norm."):
            missing.append(options[0].keys[0])
    if missing:
        raise ValueError(f"load: the checkpoint lacks {_some(missing)}; download it whole, with its own config.json")
    return plan


def save(model: nn.Module, config: OmniConfig, values: Mapping[str, Any], folder: Path, shard_bytes: int) -> None:
    """Write config.json and dialect A's safetensors in shards; a file appears under its name only when it is whole.

    Raises ValueError when the folder holds another checkpoint's shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in _upstream(model, config):
        if size + tensor.nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    count = len(shards)
    names = (
        [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else ["model.safetensors"]
    )
    stray = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in names)
    if stray:
        raise ValueError(f"save_pretrained: {folder} already holds {_some(stray)}; save to an empty folder")
    for name, shard in zip(names, shards, strict=True):
        _whole(folder / name, lambda path, shard=shard: save_file(shard, path, {"format": "pt"}))
    index = folder / "model.safetensors.index.json"
    if count > 1:
        weights = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=1)
        _whole(index, lambda path: path.write_text(text))
    else:
        index.unlink(missing_ok=True)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    text = json.dumps({**values, "torch_dtype": dtype}, indent=2)
    _whole(folder / "config.json", lambda path: path.write_text(text))


def _upstream(model: nn.Module, config: OmniConfig) -> Iterator[tuple[str, Tensor]]:
    halves: dict[str, dict[int, Tensor]] = {}
    for name, tensor in chain(_tensors(model).items(), dense(model)):
        if name == "head.weight" and config.backbone.tied:
            if config.keys != "nemotron_h":
                continue
            tensor = tensor.clone()  # transformers does not tie this family's; files hold no tensor twice
        first = next(sources(name, config))
        tensor = tensor.detach()
        if first.half is not None:
            both = halves.setdefault(first.keys[0], {}) | {first.half: tensor}
            halves[first.keys[0]] = both
            if len(both) < 2:
                continue
            tensor = torch.stack((both[0], both[1]), 2).flatten(1, 2)
        tensor = tensor.transpose(-1, -2) if first.transposed else tensor
        parts = tensor.unbind(0) if first.join == "stack" else (tensor,)
        for key, part in zip(first.keys, parts, strict=True):
            yield key, part.contiguous()


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def _weight_map(index: Path) -> dict[str, str]:
    """Which file each key is in."""
    found = _read_json(index).get("weight_map", {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"load: {index} has no weight_map of keys and files; download the file again")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"load: {path} is missing; download the whole checkpoint") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"load: {path}: {error}; download the file again") from None
    if not isinstance(values, dict):
        raise ValueError(f"load: {path} holds a {type(values).__name__}, want an object of names and values")
    return values


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
