"""What the commands share: the console, numbers for people, and how they end when something is wrong."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

console = Console()


def size(count: int) -> str:
    """Bytes in binary units."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.2f} {unit}"
    return f"{count} B"


def fail(message: str) -> NoReturn:
    """Say what is wrong, in red, and end with code 2."""
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(2)
