"""Benchmarks as commands: `omni bench media`, `towers`, `model`, `real`, `first`, `batch`, `drafts`.

Each prints a table for people, then one JSON line; with --plot it draws a figure too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from omni.bench_plot import Panel, bars, plot
from omni.shell import check_output, console, fail, size

if TYPE_CHECKING:
    import torch

bench = typer.Typer(help="Time a part side by side with its reference, results checked first.", no_args_is_help=True)
Plot = Annotated[Path | None, typer.Option("--plot", help="also draw a figure, a .png or .svg")]
Repeats = Annotated[int, typer.Option(help="timed runs", min=1)]
Threads = Annotated[int, typer.Option(help="threads; 0: as torch has them", min=0)]


def _dtype(name: str) -> torch.dtype:
    """What --dtype names; another word ends the command."""
    import torch

    from omni.precision import multiplied_in

    kinds = {"auto": multiplied_in(torch.bfloat16), "bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in kinds:
        fail(f"--dtype: {name!r} came; want auto, bfloat16 or float32")
    return kinds[name]


def _begin(threads: int, file: Path | None) -> None:
    """Before any work: threads set, and the place of the figure good."""
    import torch

    if file is not None:
        check_output("--plot", file, (".png", ".svg"))
    if threads:
        torch.set_num_threads(threads)


def _draw(file: Path | None, panels: Sequence[Panel], title: str) -> None:
    if file is not None:
        try:
            plot(panels, file, title)
        except ValueError as error:
            fail(str(error))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _sides(rows: Sequence[tuple[str, ...]]) -> None:
    table = Table("what", "ours, s", "theirs, s", "ratio", "spread", "note")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@bench.command()
def media(
    minutes: Annotated[int, typer.Option(help="length of the clip", min=1)] = 10,
    pages: Annotated[int, typer.Option(help="pages of the PDF", min=1)] = 300,
    repeats: Repeats = 5,
    file: Plot = None,
) -> None:
    """Files to numbers, against transformers' processor in one run."""
    _begin(0, file)
    from omni import bench as benchmarks
    from omni.bench_result import rows

    results, memory = benchmarks.media(minutes, pages, repeats)
    _sides(rows(results))
    _draw(file, [bars("theirs over ours", {r.name: r.ratio for r in results})], "omni bench media")
    grown = memory["hour_bytes"] - memory["minute_bytes"]
    console.print(f"an hour at 1 fps by segments: peak {size(grown)} above that of a minute")
    typer.echo(benchmarks.report(results, memory))


@bench.command()
def towers(
    patches: Annotated[str, typer.Option(help="patches of each picture")] = "1024,4096",
    seconds: Annotated[str, typer.Option(help="of each sound")] = "60,1800",
    repeats: Repeats = 5,
    long_repeats: Annotated[int, typer.Option(help="timed runs of sounds of ten minutes and more", min=1)] = 2,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32; auto: the faster one here")] = "auto",
    layers: Annotated[int, typer.Option(help="as deep as a model of so many layers has them", min=1)] = 52,
    width_scale: Annotated[float, typer.Option(help="of the released sizes")] = 1.0,
    threads: Threads = 0,
    file: Plot = None,
) -> None:
    """The released towers with random weights, against transformers on the same ones."""
    _begin(threads, file)
    from omni import bench_towers
    from omni.bench_random import OMNI, shrunk
    from omni.bench_result import numbers, rows

    try:
        results = bench_towers.measure(
            shrunk(OMNI, layers, width_scale),
            _dtype(dtype),
            numbers("--patches", patches),
            numbers("--seconds", seconds),
            repeats,
            long_repeats,
        )
    except ValueError as error:
        fail(str(error))
    _sides(rows(results))
    _draw(file, [bars("transformers' time over ours", {r.name: r.ratio for r in results})], "omni bench towers")
    typer.echo(bench_towers.report(results))


@bench.command()
def model(
    prompt: Annotated[int, typer.Option(help="tokens to read", min=1)] = 2048,
    new: Annotated[int, typer.Option(help="tokens to write after them", min=1)] = 32,
    repeats: Repeats = 5,
    threads: Threads = 0,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="transformers and llama.cpp, where installed")
    ] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="each format also with compiled steps")] = False,
    file: Plot = None,
) -> None:
    """Reading and writing of a 616M hybrid in each format, against this machine's ceilings and other engines."""
    _begin(threads, file)
    from omni import bench_model

    try:
        here, speeds = bench_model.measure(prompt=prompt, new=new, repeats=repeats, peers=peers, compiled=compiled)
    except ValueError as error:
        fail(str(error))
    console.print(here.words())
    table = Table(
        "engine", "format", "prefill, tok/s", "of the products", "decode, tok/s", "of the reads", "beside products",
        "spread",
    )  # fmt: skip
    for s in speeds:
        products, reads, beside = map(_share, (s.share_of_products, s.share_of_reads, s.outside_products))
        table.add_row(
            s.engine, s.format, f"{s.prefill:.0f}", products, f"{s.decode:.1f}", reads, beside, f"{s.spread:.0%}"
        )
    console.print(table)
    names = [f"{s.engine} {s.format}" for s in speeds]
    panels = [
        bars("prefill, tokens a second", dict(zip(names, (s.prefill for s in speeds), strict=True))),
        bars("decode, tokens a second", dict(zip(names, (s.decode for s in speeds), strict=True))),
    ]
    _draw(file, panels, "omni bench model")
    typer.echo(bench_model.report(here, speeds))


@bench.command()
def real(
    form: Annotated[str, typer.Option("--format", help="of the language model: bf16, int8 or int4")] = "int4",
    towers: Annotated[str, typer.Option(help="format of both towers")] = "int8",
    layers: Annotated[int, typer.Option(help="the first layers; towers as deep in proportion", min=1)] = 52,
    width_scale: Annotated[float, typer.Option(help="of the released sizes")] = 1.0,
    prompt: Annotated[int, typer.Option(help="tokens to read", min=1)] = 2048,
    new: Annotated[int, typer.Option(help="tokens to write", min=1)] = 32,
    contexts: Annotated[str, typer.Option(help="tokens held while more are written")] = "1024,65536",
    compiled: Annotated[bool, typer.Option("--compile", help="single tokens through compiled kernels")] = False,
    repeats: Repeats = 5,
    threads: Threads = 0,
    file: Plot = None,
) -> None:
    """The released Omni's shapes with random weights: memory, reading, writing, and what a long context costs."""
    _begin(threads, file)
    from omni import bench_real
    from omni.bench_random import OMNI, formats, shrunk
    from omni.bench_result import numbers

    try:
        text, media, held = formats(form)[0], formats(towers)[0], numbers("--contexts", contexts)
        config = shrunk(OMNI, layers, width_scale)
        here, found = bench_real.measure(config, text, media, prompt, new, repeats, held, compiled)
    except ValueError as error:
        fail(str(error))
    console.print(here.words())
    table = Table("what", "measured", "share")
    for row in bench_real.rows(found):
        table.add_row(*row)
    console.print(table)
    gib = {"resident": found.held / 2**30, "peak": found.peak / 2**30}
    shares = {"reading, of products": found.share_of_products, "writing, of reads": found.share_of_reads}
    after = {f"after {tokens}": 1000 * each for tokens, each in found.after.items()}
    panels = [bars("GiB", gib), bars("share of the ceiling", shares), bars("ms a token", after)]
    panels.append(bars("share of writing's time", found.operators))
    _draw(file, panels, "omni bench real")
    typer.echo(bench_real.report(here, found))


@bench.command()
def first(
    size: Annotated[str, typer.Option(help="small, mid, or real (61 GiB in bf16: take --format int4)")] = "mid",
    form: Annotated[str, typer.Option("--format", help="of all weights: bf16, int8 or int4")] = "bf16",
    frames: Annotated[int, typer.Option(help="of the clip", min=2)] = 64,
    patches: Annotated[int, typer.Option(help="of a frame", min=4)] = 1024,
    rate: Annotated[float, typer.Option(help="share of the clip's tokens that EVS removes")] = 0.5,
    repeats: Repeats = 3,
    threads: Threads = 0,
    file: Plot = None,
) -> None:
    """From a clip and a question to the first token: frames alone, EVS, tubelets, both."""
    _begin(threads, file)
    from omni import bench_first
    from omni.bench_random import formats

    if size not in bench_first.SIZES:
        fail(f"--size: {size!r} came; want one of {', '.join(bench_first.SIZES)}")
    try:
        found = bench_first.measure(bench_first.SIZES[size], formats(form)[0], frames, rate, patches, repeats)
    except ValueError as error:
        fail(str(error))
    table = Table("way", "tokens", *(f"{stage}, s" for stage in bench_first.STAGES), "all, s", "ratio", "spread")
    for each in found:
        seconds = [f"{each.seconds[stage]:.2f}" for stage in bench_first.STAGES]
        table.add_row(
            each.way, str(each.tokens), *seconds, f"{each.total:.2f}", f"{each.ratio:.2f}", f"{each.spread:.0%}"
        )
    console.print(table)
    kept = bench_first.in_order({each.way: each.total for each in found})
    console.print(f"both < tubelets < EVS < none: {'yes' if kept else 'no'}")
    stages = Panel(title="seconds to the first token", bars={each.way: each.seconds for each in found})
    _draw(file, [stages, bars("ratio to none", {each.way: each.ratio for each in found})], "omni bench first")
    typer.echo(bench_first.report(found))


@bench.command()
def batch(
    forms: Annotated[str, typer.Option("--formats", help="some of bf16, int8, int4")] = "bf16,int8,int4",
    batches: Annotated[str, typer.Option(help="sequences side by side")] = "1,2,4,8,16",
    context: Annotated[int, typer.Option(help="tokens that each has read", min=1)] = 1024,
    new: Annotated[int, typer.Option(help="tokens that each writes", min=1)] = 16,
    layers: Annotated[int, typer.Option(help="of the 616M hybrid", min=1)] = 16,
    width_scale: Annotated[float, typer.Option(help="of its sizes")] = 1.0,
    repeats: Repeats = 5,
    threads: Threads = 0,
    file: Plot = None,
) -> None:
    """Writing of a 616M hybrid for several sequences side by side, in each format."""
    _begin(threads, file)
    from omni import bench_batch
    from omni.bench_model import HYBRID
    from omni.bench_random import formats, shrunk
    from omni.bench_result import numbers

    try:
        chosen, sizes = formats(forms), numbers("--batches", batches)
        here, found = bench_batch.measure(shrunk(HYBRID, layers, width_scale), chosen, sizes, context, new, repeats)
    except ValueError as error:
        fail(str(error))
    console.print(here.words())
    table = Table("format", "batch", "decode, tok/s", "gain", "of the reads", "spread")
    for b in found:
        rate, shares = f"{b.decode:.1f}", (_share(b.share_of_reads), _share(b.spread))
        table.add_row(b.format, str(b.batch), rate, f"{b.gain:.2f}x", *shares)
    console.print(table)
    lines = {f: [(b.batch, b.decode) for b in found if b.format == f] for f in dict.fromkeys(b.format for b in found)}
    panel = Panel(title="tokens a second of all together", lines=lines, across="sequences side by side")
    _draw(file, [panel], "omni bench batch")
    typer.echo(bench_batch.report(here, found))


@bench.command()
def drafts(
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    prompts: Annotated[int, typer.Option(help="questions to ask")] = 200,
    max_new_tokens: Annotated[int, typer.Option(help="of each answer")] = 64,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="think before answering; default: about sums")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32, in which all rounding agrees")] = "bfloat16",
    file: Plot = None,
) -> None:
    """Answers with the multi-token head and without: equal, and how much sooner."""
    _begin(0, file)
    from omni.bench_drafts import drafts as measure
    from omni.bench_drafts import questions, report
    from omni.load import load

    try:
        answering, processor = load(model, _dtype(dtype))
        asked = [
            processor([{"role": "user", "content": question}], enable_thinking=sums if think is None else think)
            for question, sums in questions(prompts)
        ]
        rows = measure(answering, asked, max_new_tokens=max_new_tokens)
    except ValueError as error:
        fail(str(error))
    table = Table("drafted", "equal answers", "tokens a round", "tokens a second", "gain", "quartiles")
    for row in rows:
        table.add_row(
            str(row.depth),
            f"{row.equal} of {row.prompts}",
            f"{row.tokens_a_round:.2f}",
            f"{row.tokens_a_second:.0f}",
            f"{row.gain:.2f}x",
            f"{row.low:.2f} to {row.high:.2f}",
        )
    console.print(table)
    _draw(
        file, [bars("time without drafts over with", {str(row.depth): row.gain for row in rows})], "omni bench drafts"
    )
    typer.echo(report(rows))
