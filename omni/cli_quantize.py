"""`omni quantize`: a checkpoint in eight or four bits, in a folder that loads in moments."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from omni.shell import console, fail, show, size


def quantize(
    model: Annotated[str, typer.Argument(help="a checkpoint's folder, or a hub repository's id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="an empty or new folder")],
    form: Annotated[str, typer.Option("--format", help="int8 or int4")] = "int4",
) -> None:
    """Write a checkpoint in eight or four bits; weights stream through, so the peak is the small model's size."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        fail(f"quantize: {output} exists and is not an empty folder; give another")
    from omni.checkpoint import folder_of
    from omni.load import TOKENIZER
    from omni.model import OmniModel
    from omni.packed import FORMATS, rounded

    if form not in FORMATS:
        fail(f"quantize: format {form!r} is unknown; want one of {', '.join(FORMATS)}")
    started = time.perf_counter()
    try:
        with console.status(f"quantizing {escape(model)}"):
            made = OmniModel.from_pretrained(model, device="cpu", quantize=form)
            made.save_pretrained(output)
            off = rounded(made)
    except ValueError as error:
        fail(str(error))
    folder = folder_of(model, TOKENIZER)
    for pattern in TOKENIZER:
        for path in folder.glob(pattern):
            if path.name != "config.json" and not path.name.endswith(".index.json"):
                shutil.copy(path, output / path.name)
    total = sum(path.stat().st_size for path in output.iterdir())
    show(f"{output}: {size(total)} in {form}, weights {off:.2%} off, {time.perf_counter() - started:.0f} s")
