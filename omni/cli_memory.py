"""Commands about what was given and kept: `omni ingest`, `omni replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from omni.shell import check_output, console, fail, show, size, warn


def ingest(
    files: Annotated[
        list[Path], typer.Argument(help="pictures, PDFs, videos, sounds; first of all a memory to add to")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="where to keep it: talk.omni")],
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    context: Annotated[int | None, typer.Option(help="tokens that the files may take")] = None,
    evs: Annotated[float | None, typer.Option(help="share of a video's tokens to remove")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="remove them in one pass instead of two")] = False,
    kv: Annotated[str, typer.Option(help="keys and values: exact, bfloat16, float8, int8")] = "exact",
    fps: Annotated[float | None, typer.Option(help="frames of a video to look at, a second")] = None,
    frames: Annotated[int | None, typer.Option(help="frames of a video to look at, in all")] = None,
    password: Annotated[str | None, typer.Option(help="of the PDFs that are encrypted")] = None,
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="how it will be asked; matters only where a system text says so")
    ] = True,
) -> None:
    """Read files once and keep what the model remembers; `omni ask talk.omni "..."` goes on from there."""
    check_output("--output", output, (".omni",), files[1:])  # a memory may grow in its place

    from omni.ask import ingest as read
    from omni.kv_format import check

    try:
        check(kv)
        with console.status("loading") as status:
            memory = read(
                *files,
                model=model,
                context=context,
                video_pruning_rate=evs,
                evs="causal" if causal else "exact",
                fps=fps,
                frames=frames,
                think=think,
                password=password,
                progress=lambda at: status.update(
                    f"{escape(at.name)}: " + ("looked at" if at.scored else f"read, {at.memory.tokens} tokens so far")
                ),
            )
            memory.save(output, kv=kv)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        warn(f"interrupted; {output} was not written")
        raise typer.Exit(130) from None
    spent = sum(value for stage, value in memory.seen.memory.items() if stage != "tokens")
    show(
        f"{output}: {memory.tokens} tokens of {len(memory.given.items)} files, "
        f"{size(output.stat().st_size)}; decoded in {memory.given.seconds:.1f} s, read in {spent:.1f} s"
    )


def replay(
    receipt: Annotated[Path, typer.Argument(help="what `omni ask --receipt receipt.json` wrote")],
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    file: Annotated[list[str] | None, typer.Option(help="NAME=PATH: where a file of the receipt is now")] = None,
    password: Annotated[str | None, typer.Option(help="of the PDFs that are encrypted; no receipt has it")] = None,
) -> None:
    """Make an answer again from its receipt, or say what differs; ends with code 1 where the tokens are others."""
    nameless = [pair for pair in file or [] if not all(pair.partition("="))]
    if nameless:
        fail(f"--file {nameless[0]} came; want NAME=PATH, the name as the receipt has it")

    from omni.load import load
    from omni.receipt import Receipt
    from omni.replay import replay as again

    try:
        files = dict(pair.split("=", 1) for pair in file or [])
        made = again(Receipt.load(receipt), *load(model), files, password)
    except ValueError as error:
        fail(str(error))
    show(made.result.text)
    for difference in made.differences:
        warn(f"differs: {difference}")
    if not made.same:
        raise typer.Exit(1)
    warn(f"the same {len(made.result.tokens)} tokens", "green")
