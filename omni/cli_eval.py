"""`omni eval`: benchmarks from files, the package's own suite, two runs side by side, and studies with plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from omni.shell import console, fail, show, warn

if TYPE_CHECKING:
    from omni.eval.result import Figure, Result
    from omni.eval.spec import Spec

evaluate = typer.Typer(help="Benchmarks that anyone can repeat: a file each, no guess.", no_args_is_help=True)
MODEL = typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")
JSON = typer.Option("--json", help="print one JSON object")
MISSING = "pip install 'omni[eval]'"
SHOWN = 3  # items that could not be asked


@contextmanager
def _told() -> Iterator[None]:
    """Say what is wrong in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"eval: {error.name} is not installed; {MISSING}")
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"eval: {error.filename or 'file'}: {error.strerror or error}")


@contextmanager
def _bar(hidden: bool) -> Iterator[Callable[[str, int], Callable[[int, int, float], None]]]:
    """A progress bar; what it gives begins a line of it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[mean]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:

        def begin(name: str, total: int) -> Callable[[int, int, float], None]:
            line = bar.add_task(escape(name), total=total, mean="")
            return lambda done, most, mean: bar.update(line, completed=done, total=most, mean=f"{mean:.1%}")

        yield begin


@evaluate.command("list")
def list_tasks(as_json: Annotated[bool, JSON] = False) -> None:
    """The tasks, and the rules that answers can be marked by."""
    with _told():
        from omni.eval.scorers import ALL as SCORERS
        from omni.eval.tasks import ALL
    if as_json:
        tasks = {task.name: task.spec().to_dict() | {"about": task.about} for task in ALL}
        typer.echo(json.dumps({"tasks": tasks, "rules": {scorer.name: scorer.about for scorer in SCORERS}}))
        return
    table = Table("task", "rule", "data", "what")
    for task in ALL:
        data = " ".join(str(task.source[key]) for key in ("path", "name", "split") if key in task.source)
        table.add_row(task.name, task.rule, escape(data or "made here"), escape(task.about))
    console.print(table)
    rules = Table("rule", "what", "better")
    for scorer in SCORERS:
        rules.add_row(scorer.name, escape(scorer.about), "less" if scorer.errors else "more")
    console.print(rules)


@evaluate.command()
def spec(
    what: Annotated[str, typer.Argument(metavar="SPEC", help="a task's name, or a file")],
) -> None:
    """Print a whole spec as YAML, every default stated: save it, change it, run it."""
    with _told():
        from omni.eval.tasks import spec_of

        made = spec_of(what)
    show(made.to_yaml(), end="")
    warn(f"hash {made.hash}")


@evaluate.command()
def run(
    what: Annotated[str, typer.Argument(metavar="SPEC", help="a .yaml or .toml file, or a task's name")],
    model: Annotated[str, MODEL] = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="the records, .jsonl; a run that stopped goes on there (results/SPEC.jsonl)")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="only so many items")] = None,
    source: Annotated[str | None, typer.Option(help="the data, instead of the spec's: a folder in its schema")] = None,
    media: Annotated[str | None, typer.Option(help="the folder of its videos or documents")] = None,
    receipts: Annotated[Path | None, typer.Option(help="a folder for each item's whole receipt")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Run a benchmark: a record an item in a JSONL file, and the result beside it, in SPEC.json."""
    with _told():
        from omni.eval.tasks import named, spec_of

        made = spec_of(what)
        changed = {"limit": limit, "source": {"path": source, "media": media}}
        made = named(made.task).spec(_merged(made.to_dict(), changed))
        path = out or Path("results") / f"{Path(what).stem}.jsonl"
        if path.suffix != ".jsonl":
            fail(f"--out: {path} ends in {path.suffix or 'nothing'}; want .jsonl")
        items = named(made.task).items(made)

        from omni.eval.result import summarise
        from omni.eval.run import Run, check
        from omni.load import load

        check(made, items)
        path.parent.mkdir(parents=True, exist_ok=True)
        with console.status("loading"):
            loaded, processor = load(model, quantize=quantize)  # pyright: ignore[reportArgumentType]  (it checks)
        with _bar(as_json) as begin:
            running = Run(made, loaded, processor, path, receipts)
            records, times = running.go(items, begin(made.task, len(items)))
        found = summarise(records, times, made.scoring.on_failure)
        values = _result(made, model, running.weights, found)
        path.with_suffix(".json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        typer.echo(json.dumps(values))
        return
    _print(made, found)
    unasked = [f"{record.item} was not asked: {record.error}" for record in records if record.error]
    for line in unasked[:SHOWN]:
        warn(line)
    if len(unasked) > SHOWN:
        warn(f"and {len(unasked) - SHOWN} more")
    show(f"records {path}, result {path.with_suffix('.json')}, spec {made.hash[:12]}")


@evaluate.command()
def suite(
    model: Annotated[str, MODEL] = "tiny",
    out: Annotated[Path, typer.Option(help="a folder for the records; what is there is not asked again")] = Path(
        "results/suite"
    ),
    limit: Annotated[int | None, typer.Option(help="only so many items a task")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """The package's own tasks, made here on held-out seeds, fonts and voices: the model card's rows."""
    with _told():
        from omni.eval.suite import suite as parts
        from omni.load import load
        from omni.train.exam import table

        with console.status("loading"):
            loaded, processor = load(model)
        with _bar(as_json) as begin:
            done = list(parts(loaded, processor, out, limit=limit, begin=lambda task, total: begin(task.name, total)))
        rows = {part.task.name: _result(part.spec, model, loaded.identity.fingerprint, part.result) for part in done}
        (out / "suite.json").write_text(json.dumps(rows, indent=1) + "\n")
    show(json.dumps(rows) if as_json else table([part.score for part in done]))


@evaluate.command()
def compare(
    before: Annotated[Path, typer.Argument(help="records of a run")],
    after: Annotated[Path, typer.Argument(help="records of another run of the same benchmark")],
    shown: Annotated[int, typer.Option(help="flipped items to show, each way")] = 5,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Two runs over the same items: the paired difference with its interval, and the items that flipped."""
    with _told():
        from omni.eval.compare import compare as pair
        from omni.eval.record import read

        runs = [read(path) for path in (before, after)]
        for path, records in zip((before, after), runs, strict=True):
            if not records:
                fail(f"compare: {path} holds no records; pass the .jsonl files of two runs")
        found = pair(*runs)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    table = Table("items", before.stem, after.stem, "difference", "95 % interval", "better", "worse")
    counts = (str(len(found.better)), str(len(found.worse)))
    spread = f"{found.low:+.1%} to {found.high:+.1%}"
    table.add_row(
        str(found.items), f"{found.before:.1%}", f"{found.after:.1%}", f"{found.difference:+.1%}", spread, *counts
    )
    console.print(table)
    for name, flips in (("better", found.better), ("worse", found.worse)):
        for flip in flips[:shown]:
            show(f"{name} {flip.item}: {flip.question[-120:]!r} {flip.truth!r}: {flip.before!r} → {flip.after!r}")
    if found.apart:
        warn(f"{found.apart} items are in one run only, and do not count")
    if found.asked_otherwise:
        warn(f"{found.asked_otherwise} questions differ between the runs")


def _merged(values: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """With what was given on the command line."""
    found = dict(values)
    for name, value in changed.items():
        if isinstance(value, dict):
            found[name] = _merged(found[name], value)
        elif value is not None:
            found[name] = value
    return found


def _result(made: Spec, model: str, weights: str, found: Result) -> dict[str, Any]:
    return {
        "spec": made.to_dict(),
        "hash": made.hash,
        "model": {"path": model, "fingerprint": weights},
        "result": found.to_dict(),
    }


def _print(made: Spec, found: Result) -> None:
    table = Table(made.task, "result", "95 % interval", "items")
    table.add_row(made.scoring.rule, *_cells(found.figure))
    for name, value in found.further.items():
        table.add_row(name, f"{value:.1%}", "", "")
    for kind, names in found.groups.items():
        table.add_section()
        for name, figure in names.items():
            table.add_row(escape(f"{kind}: {name}"), *_cells(figure))
    console.print(table)
    counted = "counted as wrong" if made.scoring.on_failure == "wrong" else "left out"
    show(f"nothing could be read from {found.failures:.1%} of the answers ({counted}); {found.unasked:.1%} not asked")
    if found.first_token_seconds is not None:
        show(f"medians: {found.tokens['prompt']:g} tokens in, first token after {found.first_token_seconds:.2f} s")


def _cells(figure: Figure) -> tuple[str, str, str]:
    return f"{figure.value:.1%}", f"{figure.low:.1%} to {figure.high:.1%}", str(figure.questions)


@evaluate.command()
def study(
    kind: Annotated[str, typer.Argument(help="evs, dpi, pages, thinking or format")],
    model: Annotated[str, MODEL] = "tiny",
    out: Annotated[Path, typer.Option(help="a folder for records, figures and the plot")] = Path("results/study"),
    limit: Annotated[int | None, typer.Option(help="only so many items a point")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """One figure along one setting, on the package's own tasks, drawn as KIND.png."""
    with _told():
        from omni.eval.study import kind_of
        from omni.eval.study import study as measure
        from omni.eval.study_plot import plot
        from omni.load import load

        chosen = kind_of(kind)
        with _bar(as_json) as begin:
            found = measure(chosen, lambda form: load(model, quantize=form), out, limit=limit, begin=begin)
        plot(chosen, found, out / f"{chosen}.png", f"{Path(model).name}: {chosen}")
    if as_json:
        typer.echo((out / f"{kind}.json").read_text())
        return
    table = Table("panel", "series", "at", "right", "95 % interval", "first token, s", "tokens")
    for each in found:
        at = each.label or f"{each.x:g}"
        spread, seconds = f"{each.low:.1%} to {each.high:.1%}", f"{each.first_token_seconds:.3f}"
        table.add_row(each.panel, each.series, at, f"{each.value:.1%}", spread, seconds, f"{each.tokens:g}")
    console.print(table)
    show(f"plot {out / f'{kind}.png'}")
