"""`omni listen`: live sound from a pipe or a microphone, written down with times, asked while it goes on."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from queue import Empty, Queue
from select import select
from typing import Annotated, Any

import typer

from omni.shell import check_output, fail, show, size, warn

PIECE = 0.5  # seconds of sound taken in at a time
MOST = 60  # seconds heard together, and tokens of look-ahead
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
    keep: Annotated[float | None, typer.Option(help="minutes of sound kept word for word, at least; none: all")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="what was heard, to be asked later")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
) -> None:
    """Hear live sound: `arecord -f S16_LE -r 16000 | omni listen --questions /dev/tty`, or `omni listen < talk.wav`.

    Ctrl-C ends the sound: what is left is written down, the last questions are answered, the memory is kept.
    """
    numbers = {
        "chunk": (chunk, 0.08, MOST),
        "partial": (partial, 0, math.inf),
        "channels": (channels, 1, 64),
        "rate": (rate, 1, 10**7),
        "ahead": (ahead, 0, MOST),
        "keep": (keep, 0.01, math.inf),
    }
    for option, (value, least, most) in numbers.items():
        if value is not None and not least <= value <= most:
            wanted = f"{least} to {most}" if most < math.inf else f"at least {least}"
            fail(f"listen: --{option} {value} came; want {wanted}")
    if output is not None:
        check_output("--output", output, (".omni",))

    import torch

    from omni.ear import window
    from omni.listen import WRITTEN, Listener
    from omni.load import load
    from processors import stream

    stopped = threading.Event()
    try:
        reader, processor = load(model)
        listener = Listener(
            reader,
            processor,
            heard=window(reader, chunk, ahead=ahead),
            transcript=WRITTEN if transcript else None,
            keep=None if keep is None else 60 * keep,
        )
    except ValueError as error:
        fail(str(error))
    pipe = Pipe(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer), stopped)
    pieces = stream.microphone(PIECE, device) if microphone else stream.sound_chunks(pipe, PIECE, rate, channels)
    told = Told(as_json, f"up to {listener.ear.latency:.1f} s behind")

    def answer(question: str) -> None:
        try:
            told.answer(listener.seconds, question, listener.ask(question).text)
        except ValueError as error:
            warn(f"{question!r} is not answered: {error}")

    broken: Exception | None = None
    for kind, value in _events(pieces, _lines(questions), stopped, patience=0.2 if microphone else 2.0):
        if broken is not None and kind == "sound":
            continue  # what waits behind a gap would be told too early
        try:
            if kind == "sound":
                told.lines(listener.hear(value.samples))
                if partial and told.due(listener.seconds, partial):
                    told.partial(listener.partial())
            elif kind == "question":
                answer(value)
            elif kind == "broken sound":
                raise value
            else:
                why = getattr(value, "strerror", None) or value
                warn(f"--questions {questions}: {why}; the sound goes on without them")
        except (ValueError, OSError) as error:
            broken = error
            stopped.set()
    if broken is not None and not listener.seconds:
        fail(str(broken))
    if broken is not None:
        warn(f"{broken}; what was heard until then is kept", "red")
    told.lines(listener.hear(torch.zeros(0), last=True))
    for question in ask or []:
        answer(question)
    if output is not None:
        try:
            listener.memory.save(output)
        except ValueError as error:
            fail(str(error))
    told.end(listener.seconds, listener.memory.tokens, listener.nbytes)
    if broken is not None:
        raise typer.Exit(1)


class Pipe(RawIOBase):
    """Standard input that ends once `stopped` is set, so that a decoder hands out the last piece of a second.

    Without the buffer of sys.stdin, whose lock a thread that waits for sound would hold when the program ends.
    """

    def __init__(self, pipe: Any, stopped: threading.Event) -> None:
        self._pipe, self._stopped = pipe, stopped
        try:
            self._waits = [pipe.fileno()]
        except OSError:
            self._waits = []  # bytes in memory

    def read(self, size: int = -1) -> bytes:
        """What has come, at most `size` bytes; nothing at the end."""
        while not self._stopped.is_set():
            if not self._waits or select(self._waits, [], [], 0.1)[0]:
                return self._pipe.read(size) or b""
        return b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._pipe.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._pipe.seek(offset, whence)

    def tell(self) -> int:
        return self._pipe.tell()


def _lines(path: Path | None) -> Iterator[str]:
    """Questions, as they are written; a line that is no text is left out."""
    if path is None:
        return
    with path.open("rb") as file:
        for line in file:
            try:
                question = line.decode().strip()
            except UnicodeDecodeError:
                warn(f"--questions {path}: a line is no UTF-8 and is left out: {line!r:.60}")
                continue
            if question:
                yield question


def _events(
    pieces: Iterable[Any], questions: Iterable[str], stopped: threading.Event, patience: float = 2.0
) -> Iterator[tuple[str, Any]]:
    """Pieces of sound and questions in the order in which they come, and the errors that end them, until the sound ends
    and the questions that wait are told. Ctrl-C sets `stopped`: the sound then has `patience` seconds to end.
    """
    queue: Queue[tuple[str, Any]] = Queue(AHEAD)

    def stop(*_: Any) -> None:
        warn("interrupted; the sound ends here")
        stopped.set()
        signal.signal(signal.SIGINT, before)  # once more, and it ends at once

    def feed(kind: str, things: Iterable[Any]) -> None:
        try:
            for thing in things:
                queue.put((kind, thing))
        except Exception as error:  # whatever ends a thread is told to the one that waits; nothing heard is lost
            queue.put((f"broken {kind}", error))
        finally:
            queue.put(("end", kind))

    for kind, things in (("question", questions), ("sound", pieces)):
        threading.Thread(target=feed, args=(kind, things), daemon=True).start()
    before, going, idle = signal.signal(signal.SIGINT, stop), {"question", "sound"}, 0.0
    try:
        while going:
            try:
                kind, value = queue.get(timeout=0.1)
            except Empty:
                idle += 0.1
                if ("sound" not in going and idle > 0.15) or (stopped.is_set() and idle > patience):
                    return
                continue
            idle = 0.0
            if kind == "end":
                going.discard(value)
            else:
                yield kind, value
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
            if line.text and not self._told("line", **_values(line)):
                show(f"{_clock(line.start)}  ", "bold", end="")
                show(line.text)

    def partial(self, line: Any) -> None:
        """A line that is still open."""
        if line is not None and line.text and not self._told("partial", **_values(line)):
            show(f"{_clock(line.start)}  {line.text} …", "dim")

    def answer(self, seconds: float, question: str, text: str) -> None:
        """A question and its answer, for what was heard until then."""
        if not self._told("answer", at=round(seconds, 2), question=question, text=text):
            show(f"{_clock(seconds)}  {question}", "cyan")
            show(text)

    def end(self, seconds: float, tokens: int, nbytes: int) -> None:
        """What it came to."""
        if not self._told("end", seconds=round(seconds, 2), tokens=tokens, state_bytes=nbytes):
            show(f"{_clock(seconds)} heard, {tokens} tokens, a state of {size(nbytes)}", "dim", aside=True)

    def _told(self, kind: str, **values: Any) -> bool:
        """Print it as a JSON line, if that is wanted."""
        if self.as_json:
            typer.echo(json.dumps({"kind": kind, **values}))
            sys.stdout.flush()
        return self.as_json


def _values(line: Any) -> dict[str, Any]:
    return {"start": line.start, "end": line.end, "text": line.text}


def _clock(seconds: float) -> str:
    """0:07.2, 61:00.0."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
