"""Benchmarks as commands: `omni bench media`, `omni bench drafts`. A table for people, then one JSON line."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from omni.shell import console, fail, size

bench = typer.Typer(help="Time a part side by side with its reference, results checked first.", no_args_is_help=True)


@bench.command()
def media(
    minutes: Annotated[int, typer.Option(help="length of the clip")] = 10,
    pages: Annotated[int, typer.Option(help="pages of the PDF")] = 300,
    repeats: Annotated[int, typer.Option(help="timed runs of each side, in turns")] = 5,
) -> None:
    """Files to numbers, against transformers' processor in one run."""
    from omni import bench as benchmarks

    results, memory = benchmarks.media(minutes, pages, repeats)
    table = Table("what", "ours, s", "theirs, s", "ratio", "spread", "note")
    for r in results:
        table.add_row(r.name, f"{r.ours:.2f}", f"{r.theirs:.2f}", f"{r.ratio:.2f}", f"{r.spread:.0%}", r.note)
    console.print(table)
    grown = memory["hour_bytes"] - memory["minute_bytes"]
    console.print(f"an hour at 1 fps by segments: peak {size(grown)} above that of a minute")
    typer.echo(benchmarks.report(results, memory))


@bench.command()
def model(
    prompt: Annotated[int, typer.Option(help="tokens to read")] = 2048,
    new: Annotated[int, typer.Option(help="tokens to write after them")] = 32,
    repeats: Annotated[int, typer.Option(help="timed runs")] = 5,
    threads: Annotated[int, typer.Option(help="threads; 0: as torch has them")] = 0,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="transformers and llama.cpp, where installed")
    ] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="each format also with compiled steps")] = False,
) -> None:
    """Reading and writing of a 616M hybrid in each format, against this machine's ceilings and other engines."""
    import torch

    from omni import bench_model

    if threads:
        torch.set_num_threads(threads)
    try:
        here, speeds = bench_model.measure(prompt=prompt, new=new, repeats=repeats, peers=peers, compiled=compiled)
    except ValueError as error:
        fail(str(error))
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in here.products.items())
    console.print(f"{here.threads} threads: {here.read:.0f} GB/s read; products {products} GFLOP/s")
    table = Table("engine", "format", "prefill, tok/s", "of the products", "decode, tok/s", "of the reads", "spread")
    for s in speeds:
        shares = [f"{share:.0%}" if share is not None else "" for share in (s.share_of_products, s.share_of_reads)]
        table.add_row(
            s.engine, s.format, f"{s.prefill:.0f}", shares[0], f"{s.decode:.1f}", shares[1], f"{s.spread:.0%}"
        )
    console.print(table)
    typer.echo(bench_model.report(here, speeds))


@bench.command()
def drafts(
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    prompts: Annotated[int, typer.Option(help="questions to ask")] = 200,
    max_new_tokens: Annotated[int, typer.Option(help="of each answer")] = 64,
    think: Annotated[bool, typer.Option("--think/--no-think", help="think before answering")] = False,
) -> None:
    """Answers with the multi-token head and without: equal, and how much sooner."""
    from omni.bench_drafts import drafts as measure
    from omni.bench_drafts import questions, report
    from omni.load import load

    try:
        answering, processor = load(model)
        asked = [
            processor([{"role": "user", "content": question}], enable_thinking=think) for question in questions(prompts)
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
    typer.echo(report(rows))
