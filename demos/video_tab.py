"""Long video: read once, with as many tokens as wanted; its timeline; answers whose times move the film."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import gradio as gr
import torch

from demos.desk import Desk
from demos.samples import Sample
from demos.session import LIMITS, Session, uploaded
from demos.talk import Talk, Told, Wish
from demos.timeline import Reading, film, linked, readings
from demos.words import cost, paced, shown, trouble
from omni.answer import Piece
from omni.listen import Line, Listener
from omni.memory import Memory
from processors.plan import PlannedItem
from processors.sound import RATE, Tape, open_sound
from processors.source import Source

HEARD = 4  # seconds of sound taken in at a time
HINT = '<p class="hint">Choose a video, then press Read. The film strip shows what is kept and what is pruned.</p>'


@dataclass(slots=True)
class Film:
    """An open video. length: seconds. fps, talk: of the last whole reading. shown: what the strip is drawn from.

    made: the readings so far. lines: what is said, all of it once it was heard. stopped: by the visitor.
    """

    source: Source
    length: float
    fps: float
    talk: Talk = field(default_factory=Talk)
    shown: Memory | None = None
    stopped: bool = False
    made: list[Reading] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    heard: bool = False


def build(desk: Desk, session: gr.State, every: list[Sample]) -> None:
    """Lay the tab out."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            video = gr.Video(label="Video", sources=["upload"], height=300, elem_id="film")
        with gr.Column(scale=5, min_width=300):
            rate = gr.Slider(0, 95, 50, step=5, label="Visual tokens to remove (EVS), %")
            fps = gr.Slider(0.5, 4, 1, step=0.5, label="Frames a second to look at")
            estimate = gr.HTML(elem_classes="estimate")
            with gr.Row(elem_classes="tools"):
                speech = gr.Checkbox(desk.model.audio is not None, label="Write down what is said", min_width=180,
                                     interactive=desk.model.audio is not None)  # fmt: skip
                read = gr.Button("Read", variant="primary", min_width=110)
                stop = gr.Button("Stop", min_width=80)
            table = gr.HTML()
    strip = gr.HTML(HINT)
    question = gr.Textbox(label="Question", placeholder="When does the circle turn green?", submit_btn="Ask", lines=1)
    answer = gr.HTML(visible=False, elem_classes="said")
    if every:
        gr.Markdown("Try one of these:", elem_classes="hint")
        with gr.Row(elem_classes="samples"):
            buttons = [gr.Button(sample.question, size="sm", min_width=200) for sample in every]
        for button, sample in zip(buttons, every, strict=True):
            value = (str(sample.files[0]), sample.question)
            button.click(_constant(value), None, [video, question], show_progress="hidden", api_visibility="private")

    def look(session: Session, path: str | None, rate: float, fps: float) -> tuple[Any, ...]:
        return opened(desk, session, path, rate, fps)

    def guess(session: Session, rate: float, fps: float) -> str:
        return expected(desk, session, rate, fps)

    def go(session: Session, rate: float, fps: float, speech: bool) -> Iterator[tuple[Any, ...]]:
        yield from reading(desk, session, rate / 100, fps, speech)

    def say(session: Session, question: str, rate: float, fps: float) -> Iterator[tuple[Any, ...]]:
        yield from respond(desk, session, question, rate / 100, fps)

    quiet: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    told = [session, rate, fps]
    video.change(look, [session, video, rate, fps], [estimate, strip, table, answer], api_name="open_video", **quiet)
    gr.on([rate.release, rate.change, fps.release], guess, told, estimate, trigger_mode="always_last",
          api_visibility="private", **quiet)  # fmt: skip
    read.click(go, [*told, speech], [strip, table, answer, estimate], api_name="read_video", **quiet)
    question.submit(say, [session, question, rate, fps], [strip, table, answer], api_name="ask_video", **quiet)
    stop.click(halt, session, None, queue=False, api_visibility="private")


def _constant(value: tuple[str, str]) -> Any:
    return lambda: value


def halt(session: Session) -> None:
    """Stop reading and writing."""
    if session.film is not None:
        session.film.stopped = session.film.talk.stopped = True


def _part(film: Film, fps: float) -> dict[str, Any]:
    return {"type": "video", "path": film.source, "fps": fps}


def _planned(desk: Desk, film: Film, rate: float, fps: float) -> PlannedItem:
    messages = [{"role": "user", "content": [_part(film, fps)]}]
    return desk.processor.plan(messages, video_pruning_rate=rate).items[0]


def opened(desk: Desk, session: Session, path: str | None, rate: float, fps: float) -> tuple[Any, ...]:
    """Open a film: what it will cost; a former one is closed. Errors are told."""
    session.film = None
    if path is None:
        return "", HINT, "", gr.HTML(visible=False)
    try:
        made = Film(source=uploaded(path), length=0.0, fps=fps)
        details = _planned(desk, made, 0.0, fps).details
        made.length = max(details["true_seconds"][-1], details["sound_seconds"] or 0.0)
    except Exception as error:  # a bad file is told, whatever is wrong with it
        return trouble(error), HINT, "", gr.HTML(visible=False)
    session.film = made
    return expected(desk, session, rate, fps), HINT, "", gr.HTML(visible=False)


def expected(desk: Desk, session: Session, rate: float, fps: float) -> str:
    """What reading at a rate (in percent) will cost, in tokens and, once it was read before, in seconds."""
    if session.film is None:
        return ""
    try:
        item, whole = (_planned(desk, session.film, share, fps) for share in (rate / 100, 0.0))
    except ValueError as error:
        return trouble(error)
    tokens, most = item.tokens + item.text_tokens, whole.tokens + whole.text_tokens
    like = [each for each in session.film.made if session.film.fps == fps]
    took = f", about {like[-1].expected(tokens):.1f} s" if like else ""
    share = 100 * tokens / max(1, most)
    return (
        f"<p><b>{tokens:,} tokens</b> of {most:,}{took}: {item.details['frames']} frames, {most - tokens:,} visual "
        "tokens removed.</p>"
        f'<div class="gauge"><i style="width:{share:.1f}%"></i></div>'
    )


def reading(desk: Desk, session: Session, rate: float, fps: float, speech: bool) -> Iterator[tuple[Any, ...]]:
    """Read the film anew: the strip as it grows, then the table of readings, and what is said."""
    made: Film | None = session.film
    if made is None:
        yield HINT, "", gr.HTML(trouble("Choose a video first."), visible=True), ""
        return
    same = gr.skip()
    try:
        yield same, same, gr.HTML(visible=False), same
        for _ in _read(desk, made, rate, fps):
            yield _strip(made), same, same, same
        yield _strip(made), readings(made.made), same, expected(desk, session, 100 * rate, fps)
        if speech and not made.heard:
            for _ in _listen(desk, made):
                yield _strip(made), same, same, same
    except InterruptedError:
        made.shown = made.talk.memory or made.shown
        yield _strip(made), same, gr.HTML(trouble("Stopped."), visible=True), same
    except Exception as error:  # the visitor is told, and can go on
        yield same, same, gr.HTML(trouble(error), visible=True), same


def _read(desk: Desk, made: Film, rate: float, fps: float) -> Iterator[None]:
    """Read it into a new talk, shown once a piece was read. Raises InterruptedError where the visitor stops it."""
    talk, made.stopped = Talk(), False
    with closing(talk.read(desk, [_part(made, fps)], context=None, video_pruning_rate=rate)) as pieces:
        for at in pieces:
            if made.stopped:
                raise InterruptedError
            if not at.scored:
                made.shown = at.memory
            yield
    assert talk.memory is not None
    made.talk, made.fps, made.shown = talk, fps, talk.memory
    made.made.append(Reading.of(talk.memory, rate))


def _listen(desk: Desk, made: Film) -> Iterator[None]:
    """Write down what is said, line by line."""
    sound = open_sound(made.source, LIMITS, with_video=True) if desk.model.audio is not None else None
    if sound is None:
        return
    with desk.turn:
        listener, tape = Listener(desk.model, desk.processor), Tape(sound)
    made.lines.clear()
    for start in range(0, sound.samples, HEARD * RATE):
        stop = min(start + HEARD * RATE, sound.samples)
        with desk.turn, torch.inference_mode():
            made.lines += listener.hear(tape.read(start, stop), last=stop == sound.samples)
        if made.stopped:
            raise InterruptedError
        yield
    made.heard = True


def _strip(made: Film, answer: str = "") -> str:
    return film(made.shown.seen, made.lines, made.length, answer) if made.shown else HINT


def respond(desk: Desk, session: Session, question: str, rate: float, fps: float) -> Iterator[tuple[Any, ...]]:
    """Answer about the film, which is read first where it was not: strip, table and answer as they change."""
    made: Film | None = session.film
    same = gr.skip()
    if made is None:
        yield same, same, gr.HTML(trouble("Choose a video first."), visible=True)
        return
    try:
        if not made.made:
            for _ in _read(desk, made, rate, fps):
                yield _strip(made), same, gr.HTML(_answered("", made, "Reading the video first"), visible=True)
            yield _strip(made), readings(made.made), same
        text = ""
        for piece, due in paced(made.talk.say(desk, question, [], Wish())):
            text += piece.text if isinstance(piece, Piece) else ""
            if isinstance(piece, Told):
                session.last = replace(piece, where="Long video")
                shown = _answered(piece.result.text, made, cost(piece))
                yield _strip(made, piece.result.text), same, gr.HTML(shown, visible=True)
            elif due:
                yield same, same, gr.HTML(_answered(text, made, ""), visible=True)
    except InterruptedError:
        yield _strip(made), same, gr.HTML(trouble("Stopped before the video was read."), visible=True)
    except Exception as error:  # the visitor is told, and can go on
        yield same, same, gr.HTML(trouble(error), visible=True)


def _answered(text: str, made: Film, note: str) -> str:
    body = linked(text, made.shown.seen) if made.shown else shown(text)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="answer" aria-live="polite">{body or "…"}</div>{below}'
