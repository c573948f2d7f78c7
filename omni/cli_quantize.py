"""`omni quantize`: a checkpoint in eight or four bits, in a folder that loads in moments."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from omni.shell import check_folder, console, fail, show, size


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
    from omni.packed_file import is_packed

    if form not in FORMATS:
        fail(f"quantize: format {form!r} is unknown; want one of {', '.join(FORMATS)}")
    if is_packed(Path(model)):
        fail(f"quantize: {model} is packed already; give the checkpoint that it was made of")
    started = time.perf_counter()
    try:
        with _all_or_nothing(output), console.status(f"quantizing {escape(model)}"):
            made = OmniModel.from_pretrained(model, device="cpu", quantize=form)
            made.save_pretrained(output)
            off = rounded(made)
            folder = folder_of(model, TOKENIZER)
            for path in (path for pattern in TOKENIZER for path in folder.glob(pattern)):
                if path.name != "config.json" and not path.name.endswith(".index.json"):
                    shutil.copy(path, output / path.name)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"quantize: {output} cannot be written ({error.strerror or error}); make room, or choose another place")
    total = sum(path.stat().st_size for path in output.iterdir())
    show(f"{output}: {size(total)} in {form}, weights {off:.2%} off, {time.perf_counter() - started:.0f} s")


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Fill an empty or new folder, which is looked at first; whatever ends this early leaves it as it was."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_folder("quantize", folder)
        yield
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        if new:
            folder.rmdir()
        raise
