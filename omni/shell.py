"""What the commands share: how a model's words are printed, numbers for people, and how a command ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

WIDE = 240  # letters of a line where there is no terminal to fit
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
CONTROL = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
CONTROL = {code: shown for code, shown in CONTROL.items() if chr(code) not in "\n\t"}


def show(text: str, style: str = "", end: str = "\n", aside: bool = False) -> None:
    """Print what a model or a user wrote, as it was written: no markup, no wrapping, no emoji codes.

    On a terminal in a style, and control characters cannot act. Elsewhere plain; what is aside then goes to stderr.
    """
    if console.is_terminal:
        console.print(Text(text.translate(CONTROL), style=style), end=end, soft_wrap=True, highlight=False)
        return
    file = sys.stderr if aside else sys.stdout
    coding = getattr(file, "encoding", None) or "utf-8"
    file.write((text + end).encode(coding, "backslashreplace").decode(coding))
    file.flush()


def size(count: int) -> str:
    """Bytes in binary units."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.2f} {unit}"
    return f"{count} B"


def fail(message: str) -> NoReturn:
    """Say what is wrong, in red, and end with code 2."""
    warn(message, "red")
    raise typer.Exit(2)


def warn(message: str, colour: str = "yellow") -> None:
    """Say something in one line on stderr."""
    shown = "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= letter < "\ue000" else letter for letter in message)
    typer.secho(shown.translate(CONTROL), err=True, fg=colour)


def check_output(option: str, path: Path, suffixes: tuple[str, ...], inputs: Iterable[str | Path] = ()) -> None:
    """End at once, before any work, where a file cannot be written there or would replace one that is read."""
    if path.suffix not in suffixes:
        fail(f"{option}: {path} ends in {path.suffix or 'nothing'}; want {' or '.join(suffixes)}")
    if not path.parent.is_dir() or path.is_dir():
        wrong = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        fail(f"{option}: {wrong}; choose another place, or make the folder first")
    if any(path.resolve() == Path(file).resolve() for file in inputs):
        fail(f"{option}: {path} is one of the files to be read; choose another name")
    check_folder(option, path.parent)


def check_folder(option: str, folder: Path) -> None:
    """End at once where no file can be written in a folder."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        fail(f"{option}: nothing can be written in {folder} ({error.strerror or error}); choose another place")


class Commands(TyperGroup):
    """The commands. Ctrl-C ends one with a single line and code 130, whatever it was at, imports included."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """All of it, the arguments' reading included."""
        self._invoked = False
        try:
            return super().main(*args, **kwargs)
        except KeyboardInterrupt:
            warn("interrupted")
            sys.exit(130)
        except SystemExit as end:
            if end.code == 130 and not self._invoked:
                warn("interrupted")
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        self._invoked = True
        pressed = threading.Event()

        def stop(number: int, frame: FrameType | None) -> NoReturn:
            pressed.set()
            raise KeyboardInterrupt

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, stop) if main else None
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except BaseException as error:  # an import that is interrupted may end in any error
            if not (pressed.is_set() or isinstance(error, KeyboardInterrupt)):
                raise
            warn("interrupted")
            raise typer.Exit(130) from None
        finally:
            if main:
                signal.signal(signal.SIGINT, before)
