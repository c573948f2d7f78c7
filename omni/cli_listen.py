"""`omni listen`: live sound from a pipe or a microphone, written down with times, asked while it goes on."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from omni.shell import console, fail, size

PIECE = 0.5  # seconds of sound taken in at a time
AHEAD = 64  # pieces and questions that may wait: past that a pipe waits too


def listen(
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    rate: Annotated[int | None, typer.Option(help="of raw 16-bit PCM; none: WAV, FLAC, Ogg, …")] = None,
    channels: Annotated[int, typer.Option(help="of raw PCM, interleaved")] = 1,
    microphone: Annotated[bool, typer.Option("--microphone", help="hear a microphone, not the pipe")] = False,
    device: Annotated[str, typer.Option(help="the microphone's name")] = "default",
    ask: Annotated[list[str] | None, typer.Option(help="a question for the end; may be given again")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="questions while it goes on, one a line: a file, a named pipe or /dev/tty")
    ] = None,
    transcript: Annotated[bool, typer.Option("--transcript/--no-transcript", help="write down what is said")] = True,
    partial: Annotated[float, typer.Option(help="seconds after which an open line is shown as it stands; 0: not")] = 0,
    chunk: Annotated[float, typer.Option(help="seconds heard together; less is sooner, and worse")] = 4.0,
    ahead: Annotated[int | None, typer.Option(help="tokens of look-ahead a layer, at most as trained")] = None,
    keep: Annotated[float | None, typer.Option(help="minutes of sound kept word for word; none: all")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="what was heard, to be asked later")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
) -> None:
    """Hear live sound: `arecord -f S16_LE -r 16000 | omni listen --questions /dev/tty`, or `omni listen < talk.wav`.

    Ctrl-C ends the sound: what is left is written down, the last questions are answered, the memory is kept.
    """
    from omni.ear import window
    from omni.listen import WRITTEN, Listener
    from omni.load import load
    from processors import stream

    try:
        reader, processor = load(model)
        listener = Listener(
            reader,
            processor,
            heard=window(reader, chunk, ahead=ahead),
            transcript=WRITTEN if transcript else None,
            keep=None if keep is None else 60 * keep,
        )
        pieces = stream.microphone(PIECE, device) if microphone else stream.sound_chunks(_pipe(), PIECE, rate, channels)
        told = Told(as_json, f"up to {listener.ear.latency:.1f} s behind")
        for kind, value in _events(pieces, _lines(questions)):
            if kind == "question":
                told.answer(listener.seconds, value, listener.ask(value).text)
                continue
            told.lines(listener.hear(value.samples))
            if partial and told.due(listener.seconds, partial):
                told.partial(listener.partial())
        told.lines(listener.hear(torch.zeros(0), last=True))
        for question in ask or []:
            told.answer(listener.seconds, question, listener.ask(question).text)
        if output is not None:
            listener.memory.save(output)
    except ValueError as error:
        fail(str(error))
    told.end(listener.seconds, listener.memory.tokens, listener.nbytes)


def _pipe() -> Any:
    """Standard input without its buffer, whose lock a thread that waits for sound would hold when the program ends."""
    return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _lines(path: Path | None) -> Iterator[str]:
    """Questions, as they are written."""
    if path is None:
        return
    with path.open() as file:
        yield from (line.strip() for line in file if line.strip())


def _events(pieces: Iterable[Any], questions: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Pieces of sound and questions in the order in which they come, until the sound ends or Ctrl-C ends it."""
    queue: Queue[tuple[str, Any]] = Queue(AHEAD)
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        typer.secho("interrupted; the sound ends here", err=True, fg="yellow")
        stopped.set()
        signal.signal(signal.SIGINT, before)  # once more, and it ends at once

    def feed(kind: str, things: Iterable[Any]) -> None:
        try:
            for thing in things:
                queue.put((kind, thing))
            queue.put(("end", kind))
        except (ValueError, OSError) as error:
            queue.put(("broken", error))

    for kind, things in (("question", questions), ("sound", pieces)):
        threading.Thread(target=feed, args=(kind, things), daemon=True).start()
    before = signal.signal(signal.SIGINT, stop)
    try:
        while not stopped.is_set():
            try:
                kind, value = queue.get(timeout=0.1)
            except Empty:
                continue
            if kind == "broken":
                raise ValueError(str(value)) from None
            if kind != "end":
                yield kind, value
            elif value == "sound":
                return
    finally:
        signal.signal(signal.SIGINT, before)


class Told:
    """Prints what happens, for people or as JSON lines."""

    def __init__(self, as_json: bool, note: str) -> None:
        self.as_json, self._shown = as_json, 0.0
        if not as_json:
            typer.secho(f"listening, {note}", err=True, dim=True)

    def due(self, seconds: float, every: float) -> bool:
        """Whether it is time for another partial line."""
        if seconds - self._shown < every:
            return False
        self._shown = seconds
        return True

    def lines(self, lines: Iterable[Any]) -> None:
        """Complete lines of the transcript; silent ones are left out."""
        for line in lines:
            if line.text:
                self._print("line", f"[bold]{_clock(line.start)}[/bold]  {escape(line.text)}", **_values(line))

    def partial(self, line: Any) -> None:
        """A line that is still open."""
        if line is not None and line.text:
            self._print("partial", f"[dim]{_clock(line.start)}  {escape(line.text)} …[/dim]", **_values(line))

    def answer(self, seconds: float, question: str, text: str) -> None:
        """A question and its answer, for what was heard until then."""
        shown = f"[cyan]{_clock(seconds)}  {escape(question)}[/cyan]\n{escape(text)}"
        self._print("answer", shown, at=round(seconds, 2), question=question, text=text)

    def end(self, seconds: float, tokens: int, nbytes: int) -> None:
        """What it came to."""
        shown = f"[dim]{_clock(seconds)} heard, {tokens} tokens, a state of {size(nbytes)}[/dim]"
        self._print("end", shown, seconds=round(seconds, 2), tokens=tokens, state_bytes=nbytes)

    def _print(self, kind: str, shown: str, **values: Any) -> None:
        if self.as_json:
            typer.echo(json.dumps({"kind": kind, **values}))
            sys.stdout.flush()
        else:
            console.print(shown, highlight=False)


def _values(line: Any) -> dict[str, Any]:
    return {"start": line.start, "end": line.end, "text": line.text}


def _clock(seconds: float) -> str:
    """0:07.2, 61:00.0."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
