"""Study: one figure measured along one setting, on tasks of the package's own suite; each point a spec and its records.

evs: accuracy and time to the first token against the share of a clip's tokens removed, by five ways of choosing them.
dpi, pages: against the resolution of pages, and the tokens that they may take. thinking: against its budget. format:
against the weights' number format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from omni.eval.item import Item, Lazy
from omni.eval.result import summarise
from omni.eval.run import Progress, Run
from omni.eval.spec import Spec
from omni.eval.tasks import TASKS
from omni.load import OmniProcessor
from omni.model import OmniModel, Prune
from omni.packed import Format
from token_reduction import evs, evs_causal, evs_with_floor, num_kept, random_dropping, uniform_dropping

Kind = Literal["evs", "dpi", "pages", "thinking", "format"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Load = Callable[[Format | None], tuple[OmniModel, OmniProcessor]]
Begin = Callable[[str, int], Progress]
RATES = (0.0, 0.5, 0.7, 0.8, 0.9)
DPI = (36, 48, 72, 96, 120, 144)
BUDGETS = (0, 8, 16, 32, 64)
SHARES = (0.4, 0.5, 0.65, 0.8, 1.0)
FORMATS: tuple[Format | None, ...] = (None, "int8", "int4")


def kind_of(name: str) -> Kind:
    """Raises ValueError for a name that is unknown."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise ValueError(f"study: {name!r} is unknown; want one of {', '.join(KINDS)}")


def _random(features: Tensor, clips: Tensor, rates: Tensor) -> Tensor:
    """Drawn anew from one seed, so that a run can be repeated and resumed."""
    return random_dropping(features, clips, rates, torch.Generator().manual_seed(0))


def _floored(features: Tensor, clips: Tensor, rates: Tensor) -> Tensor:
    """At least one token of every tubelet, where a clip keeps as many as it has tubelets."""
    pairs = zip(clips.tolist(), rates.tolist(), strict=True)
    fits = all(num_kept(steps, rows * cols, rate) >= steps for (steps, rows, cols), rate in pairs)
    return evs_with_floor(features, clips, rates, floor=int(fits))


WAYS: dict[str, Prune] = {
    "EVS": evs,
    "EVS, causal": evs_causal,
    "EVS, a token a step at least": _floored,
    "random": _random,
    "uniform frames": uniform_dropping,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """panel, series: where it is drawn; x: at which value, named `label` where it is no number. single: each frame in
    a tubelet of its own, so that a clip has twice the tokens.
    """

    panel: str
    series: str
    x: float
    spec: Spec
    label: str | None = None
    prune: Prune | None = None
    single: bool = False
    format: Format | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A point's figure with its interval, failures apart; medians of tokens in and of seconds, to the first token and
    to the end of the answer.
    """

    panel: str
    series: str
    x: float
    label: str | None
    value: float
    low: float
    high: float
    failures: float
    first_token_seconds: float
    seconds: float
    tokens: float


def points(kind: Kind, processor: OmniProcessor, limit: int | None = None) -> list[Point]:
    """What a study measures."""
    given: dict[str, Any] = {} if limit is None else {"limit": limit}
    makers: Mapping[Kind, Callable[[], Iterator[Point]]] = {
        "evs": lambda: _evs(given),
        "dpi": lambda: _dpi(given),
        "pages": lambda: _pages(given, processor),
        "thinking": lambda: _thinking(given),
        "format": lambda: _format(given),
    }
    return list(makers[kind]())


def _evs(given: Mapping[str, Any]) -> Iterator[Point]:
    """All ways keep everything at rate 0, so it is measured once a panel, and begins every line."""
    for panel, single in (("with tubelets", False), ("a tubelet a frame", True)):
        for name, way in WAYS.items():
            for rate in RATES if name == "EVS" else RATES[1:]:
                spec = TASKS["own-video"].spec({**given, "preprocessing": {"evs": rate}})
                yield Point(panel=panel, series=name, x=rate, spec=spec, prune=way, single=single)


def _dpi(given: Mapping[str, Any]) -> Iterator[Point]:
    for name in ("own-documents", "own-pages", "own-charts"):
        for dpi in DPI:
            spec = TASKS[name].spec({**given, "preprocessing": {"dpi": dpi}, "options": {"pdf": True}})
            yield Point(panel="pages as PDF", series=TASKS[name].about, x=float(dpi), spec=spec)


def _pages(given: Mapping[str, Any], processor: OmniProcessor) -> Iterator[Point]:
    """Contexts are shares of the longest prompt's; pages that do not fit at their smallest are dropped."""
    task = TASKS["own-pages"]
    spec = task.spec({**given, "options": {"pdf": True}})
    items = task.items(spec)
    count = min(spec.limit or len(items), len(items))
    longest = max(_length(items[i], spec, processor) for i in range(count))
    for share in SHARES:
        shown = {"context": int(share * longest), "overflow": "drop"}
        made = task.spec({**given, "preprocessing": shown, "options": {"pdf": True}})
        yield Point(panel="pages as PDF", series=task.about, x=float(made.preprocessing.context or 0), spec=made)


def _length(item: Item, spec: Spec, processor: OmniProcessor) -> int:
    content = [*item.media, {"type": "text", "text": item.question(spec.prompt)}]
    return processor.plan([{"role": "user", "content": content}], enable_thinking=False).tokens


def _thinking(given: Mapping[str, Any]) -> Iterator[Point]:
    task = TASKS["own-sums-thinking"]
    for place, budget in enumerate((*BUDGETS, None)):
        thinking = {"enabled": budget != 0, "budget": budget or None, "grace": 4 if budget else None}
        spec = task.spec({**given, "thinking": thinking})
        label = "as it likes" if budget is None else str(budget)
        yield Point(panel="sums", series="sums", x=float(place), label=label, spec=spec)


def _format(given: Mapping[str, Any]) -> Iterator[Point]:
    for name in ("own-documents", "own-video", "own-sums", "own-needles"):
        for place, form in enumerate(FORMATS):
            spec = TASKS[name].spec(given)
            label = form or "as loaded"
            yield Point(panel="weights", series=TASKS[name].about, x=float(place), label=label, spec=spec, format=form)


def study(
    kind: Kind,
    load: Load,
    folder: Path,
    *,
    limit: int | None = None,
    begin: Begin | None = None,
) -> list[Measured]:
    """Measure all points; records lie in the folder, and what is there is not asked again. Writes KIND.json there."""
    folder.mkdir(parents=True, exist_ok=True)
    first = load(None)
    loaded: dict[Format | None, tuple[OmniModel, OmniProcessor]] = {None: first}
    found = list[Measured]()
    for number, point in enumerate(points(kind, first[1], limit)):
        if point.format not in loaded:
            loaded = {None: first, point.format: load(point.format)}  # no more than two at a time
        model, processor = loaded[point.format]
        path = folder / f"{kind}-{number:02}.jsonl"
        found.append(_measure(point, model, processor, path, begin))
    (folder / f"{kind}.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return found


def _measure(point: Point, model: OmniModel, processor: OmniProcessor, path: Path, begin: Begin | None) -> Measured:
    items = TASKS[point.spec.task].items(point.spec)
    items = Lazy(items, lambda _, item: one_frame_a_tubelet(item)) if point.single else items
    name = f"{point.series}, {point.panel}, {point.label or f'{point.x:g}'}"
    before = model.prune
    model.prune = point.prune or before
    try:
        run = Run(point.spec, model, processor, path)
        records, times = run.go(items, begin(name, len(items)) if begin else None)
    finally:
        model.prune = before
    result = summarise(records, times)
    return Measured(
        panel=point.panel,
        series=point.series,
        x=point.x,
        label=point.label,
        value=result.figure.value,
        low=result.figure.low,
        high=result.figure.high,
        failures=result.failures,
        first_token_seconds=result.first_token_seconds or 0.0,
        seconds=result.seconds or 0.0,
        tokens=result.tokens["prompt"],
    )


def one_frame_a_tubelet(item: Item) -> Item:
    """Each frame of its clips twice, so that a tubelet of two holds one moment: what a model without them would see."""
    return replace(item, media=tuple(_doubled(part) for part in item.media))


def _doubled(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part["type"] != "video":
        return part
    both: dict[str, Sequence[Any]] = {
        name: [value for value in part[name] for _ in range(2)] for name in ("frames", "times")
    }
    return {**part, **both}
