"""Spec: all that decides a benchmark's figure, as one file (YAML or TOML), checked, with a hash of its own."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from processors.rules import PRESETS

OnFailure = Literal["wrong", "leave out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the items come from: a repository of the hub, or a local folder in the same schema.

    name: of its configuration; revision: a commit, so that the data cannot change; media: the folder of the videos or
    documents that rows name by file. Tasks that make their own items need none of it.
    """

    path: str = ""
    name: str | None = None
    revision: str | None = None
    split: str = "test"
    media: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What the model is shown. None: as the checkpoint's own rules have it.

    frames: of a video, in all; fps: a second (one of both). dpi: at which PDF pages are drawn. context: tokens that a
    prompt may take, pages and pictures are made smaller to fit; overflow: "refuse" or "drop" what does not fit even
    so. evs: share of a clip's tokens removed.
    """

    preset: str = "reference"
    frames: int | None = None
    fps: float | None = None
    dpi: int | None = None
    context: int | None = None
    overflow: Literal["refuse", "drop"] = "refuse"
    evs: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Whether the model thinks first; budget, grace: tokens, as of `generate`; effort: where its template has one."""

    enabled: bool = False
    budget: int | None = None
    grace: int | None = None
    effort: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are written. batch: items answered side by side; greedy at temperature 0."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    batch: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """rule: of `omni.eval.scorers`. on_failure: an answer from which nothing can be read is wrong, or left out."""

    rule: str
    on_failure: OnFailure = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One benchmark run, apart from the model. prompt: with {question}, {options} and what else the task names.

    limit: only so many items, the first ones. options: of the task alone.
    """

    task: str
    prompt: str
    scoring: Scoring
    source: Source = field(default_factory=Source)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    thinking: Thinking = field(default_factory=Thinking)
    decoding: Decoding = field(default_factory=Decoding)
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Spec:
        """From plain values. Raises ValueError for a field that is unknown, missing, of another type, out of range."""
        spec = _read(cls, values, "")
        _check(spec)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, all of them, defaults too."""
        return json.loads(json.dumps(asdict(self)))

    def to_yaml(self) -> str:
        """As a file that reads back as this spec, every field stated; None is null."""
        return yaml.dump(self.to_dict(), Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=120)

    @property
    def hash(self) -> str:
        """SHA-256 of all fields: one figure, one hash."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """A file's plain values. Raises ValueError where it is missing, of another kind, or malformed, or states a field
    twice.
    """
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _Once)
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ValueError(f"spec: {path}: {why}; want a YAML or TOML file") from None
    if path.suffix not in (".yaml", ".yml", ".toml") or not isinstance(values, dict):
        raise ValueError(f"spec: {path} holds no fields; want a .yaml or .toml file with task, source and so on")
    return values


def _read(kind: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"spec: {where} is {values!r}; want fields below it")
    known = {each.name: each for each in fields(kind)}
    stem = f"{where}." if where else ""
    if unknown := [f"{stem}{name}" for name in values if name not in known]:
        raise ValueError(f"spec: {', '.join(unknown)} is unknown; {where or 'a spec'} has {', '.join(known)}")
    missing = [
        f"{stem}{name}"
        for name, each in known.items()
        if each.default is MISSING and each.default_factory is MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"spec: {', '.join(missing)} is missing; state it")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{stem}{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A field's value as its type has it. Raises ValueError for another type."""
    if is_dataclass(hint):
        return _read(hint, value, where)  # pyright: ignore[reportArgumentType]  (a class)
    if get_origin(hint) is UnionType:
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None else _value(kinds[0], value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"spec: {where} is {value!r}; want one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"spec: {where} is {value!r}; want a list of texts")
        return tuple(value)
    kind = {float: (int, float), Mapping: Mapping}.get(get_origin(hint) or hint, hint)
    if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"spec: {where} is {value!r}; want {NAMES.get(hint, 'fields')}")
    return float(value) if hint is float else dict(value) if isinstance(value, Mapping) else value


NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _check(spec: Spec) -> None:
    """Ranges. Raises ValueError naming the field."""
    shown, written = spec.preprocessing, spec.decoding
    wrong = {
        f"preprocessing.preset is {shown.preset!r}; want one of {', '.join(PRESETS)}": shown.preset not in PRESETS,
        "preprocessing has frames and fps; state one of them": None not in (shown.frames, shown.fps),
        f"preprocessing.evs is {shown.evs}; want 0 <= evs < 1": shown.evs is not None and not 0 <= shown.evs < 1,
        f"preprocessing.fps is {shown.fps}; want more than 0": shown.fps is not None and shown.fps <= 0,
        "thinking.budget stands without thinking.enabled; set enabled: true": not spec.thinking.enabled
        and spec.thinking.budget is not None,
        f"thinking.budget is {spec.thinking.budget}; want 0 or more": (spec.thinking.budget or 0) < 0,
        f"decoding.temperature is {written.temperature}; want 0 or more": not 0 <= written.temperature < math.inf,
    }
    counts = {
        "preprocessing.frames": shown.frames, "preprocessing.dpi": shown.dpi, "preprocessing.context": shown.context,
        "decoding.max_new_tokens": written.max_new_tokens, "decoding.batch": written.batch, "limit": spec.limit,
    }  # fmt: skip
    wrong |= {f"{name} is {n}; want at least 1": n is not None and n < 1 for name, n in counts.items()}
    for message, so in wrong.items():
        if so:
            raise ValueError(f"spec: {message}")


class _Once(yaml.SafeLoader):
    """Plain values, of which a mapping has each once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises a YAML error where a key stands twice, of which YAML's own takes the last."""
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice", key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)


class _Blocks(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)
