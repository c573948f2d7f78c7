"""`omni train`: the recipe of the model in the box, stage by stage, and the curves of its log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.shell import check_output, console, fail


def train(
    what: Annotated[str, typer.Argument(help="tiny: the model in the box")] = "tiny",
    stage: Annotated[
        str,
        typer.Option(
            help="all, or language, vision, audio, projection, binding, together, drafting, export; exam, keep, restore"
        ),
    ] = "all",
    folder: Annotated[Path, typer.Option(help="checkpoints and log; a stage goes on where it stopped")] = Path(
        "checkpoints/tiny"
    ),
    out: Annotated[Path, typer.Option(help="where export writes the model")] = Path("checkpoints/export"),
    threads: Annotated[int | None, typer.Option(help="of the processor; stages can run side by side", min=1)] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="a few steps of each stage, to see that all runs")] = False,
    curves: Annotated[Path | None, typer.Option(help="a PNG or SVG for the log's curves; nothing is trained")] = None,
) -> None:
    """Train the small model: towers and language model side by side, then joined, then the drafting head."""
    if what != "tiny":
        fail(f"train: {what!r} is unknown; want tiny")
    try:
        if curves is not None:
            check_output("--curves", curves, (".png", ".svg"))
            from omni.train.plot import plot

            plot(folder / "log.jsonl", curves)
            console.print(f"curves of {folder / 'log.jsonl'}: {curves}")
            return
        import torch

        from omni.train.recipe import SHIPPED, SMOKE, Recipe, tiny

        if threads is not None:
            torch.set_num_threads(threads)
        tiny(Recipe(folder=folder, sizes=SMOKE if smoke else SHIPPED, out=out), stage)
    except ModuleNotFoundError as error:
        fail(f"train: {error.name} is not installed; pip install 'omni[train]'")
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"train: {error.filename or folder}: {error.strerror or error}")
