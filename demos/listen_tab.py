"""Listen: a microphone or a file, written down while it is heard; questions at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from demos.desk import Desk
from demos.samples import Sample
from demos.session import LIMITS, Session, uploaded
from demos.talk import Told, Wish
from demos.words import cost, paced, said, shown, trouble
from omni.answer import Piece, Result
from omni.listen import Line, Listener
from omni.receipt_page import clock_time
from omni.shell import size
from processors.sound import RATE, Tape, mono, open_sound

PARTIAL = 2.0  # seconds after which the open line is written down again
TAKEN = 2  # seconds of a file taken in at a time
LONGEST = 3600.0  # seconds of sound whose keys and values are kept, where attention allows it
HINT = '<p class="hint">Press record, or choose a sound. What is said is written down here.</p>'
Sound = tuple[int, np.ndarray]  # samples a second, (samples,) or (samples, channels)


class Resampler:
    """Pieces of a microphone's sound as 16 kHz mono, without seams between them."""

    def __init__(self) -> None:
        self._resampler, self._rate = None, 0

    def __call__(self, rate: int, samples: np.ndarray) -> Float[Tensor, " samples"]:
        """samples: int16 or floats in -1..1, (samples,) or (samples, channels)."""
        import av

        if self._resampler is None or rate != self._rate:
            self._resampler, self._rate = av.AudioResampler(format="flt", layout="mono", rate=RATE), rate
        heard = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
        heard = heard.mean(1) if heard.ndim == 2 else heard
        if not len(heard):
            return torch.zeros(0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(heard, np.float32)[None], "flt", "mono")
        frame.sample_rate = rate
        return torch.cat([torch.zeros(0), *(mono(part) for part in self._resampler.resample(frame))])


@dataclass(slots=True)
class Hearing:
    """A sound that goes on. lines: complete ones; open: the one that is being said. drawn: second of the last drawing
    of it. used: held while the listener hears or is forked.
    """

    listener: Listener
    resample: Resampler = field(default_factory=Resampler)
    lines: list[Line] = field(default_factory=list)
    open: Line | None = None
    drawn: float = 0.0
    ended: bool = False
    used: Any = field(default_factory=Lock)


def build(desk: Desk, session: gr.State, every: list[Sample]) -> None:
    """Lay the tab out."""
    if desk.model.audio is None:
        gr.Markdown("This model hears nothing. Load one with an audio tower to listen.")
        return
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            live = gr.Audio(sources=["microphone"], streaming=True, label="Microphone", type="numpy")
            file = gr.Audio(sources=["upload"], label="Or a file", type="filepath", elem_id="sound")
            with gr.Row(elem_classes="tools"):
                again = gr.Button("Start anew", min_width=110)
            if every:
                gr.Markdown("Try one of these:", elem_classes="hint")
            samples = [gr.Button(sample.files[0].name, size="sm") for sample in _by_file(every)]
        with gr.Column(scale=5, min_width=300):
            text = gr.HTML(HINT, elem_classes="transcript")
            question = gr.Textbox(label="Question, at any time", placeholder="What was said so far?", submit_btn="Ask")
            answer = gr.HTML(visible=False, elem_classes="said")

    def stream(session: Session, sound: Sound | None) -> str:
        return heard(desk, session, sound)

    def whole(session: Session, path: str | None) -> Iterator[str]:
        yield from file_heard(desk, session, path)

    def say(session: Session, question: str) -> Iterator[Any]:
        yield from respond(desk, session, question)

    quiet: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    live.start_recording(begin, session, [text, answer], api_visibility="private", **quiet)
    live.stream(stream, [session, live], text, stream_every=1.0, time_limit=LONGEST, api_name="hear", **quiet)
    live.stop_recording(lambda s: ended(desk, s), session, text, api_visibility="private", **quiet)
    file.change(whole, [session, file], text, api_name="hear_file", **quiet)
    again.click(begin, session, [text, answer], api_visibility="private", **quiet).then(
        lambda: (None, None), None, [live, file], api_visibility="private"
    )
    question.submit(say, [session, question], answer, api_name="ask_sound", **quiet)
    for button, sample in zip(samples, _by_file(every), strict=True):
        value = (str(sample.files[0]), sample.question)
        button.click(_constant(value), None, [file, question], show_progress="hidden", api_visibility="private")


def _by_file(every: list[Sample]) -> list[Sample]:
    return list({sample.files: sample for sample in every}.values())


def _constant(value: tuple[str, str]) -> Any:
    return lambda: value


def begin(session: Session) -> tuple[Any, Any]:
    """Forget what was heard."""
    session.hearing = None
    return HINT, gr.HTML(visible=False)


def _hearing(desk: Desk, session: Session) -> Hearing:
    """What listens now; a new one where nothing does."""
    if session.hearing is None or session.hearing.ended:
        with desk.turn:
            session.hearing = Hearing(listener=Listener(desk.model, desk.processor))
    return session.hearing


def heard(desk: Desk, session: Session, sound: Sound | None) -> str:
    """Hear a piece from the microphone: all that was written down so far."""
    if sound is None:
        return _page(session.hearing)
    try:
        hearing = _hearing(desk, session)
        with hearing.used:
            _hear(desk, hearing, hearing.resample(*sound))
        return _page(hearing)
    except Exception as error:  # the visitor is told; what was heard stays
        return _page(session.hearing) + trouble(error)


def ended(desk: Desk, session: Session) -> str:
    """The microphone was stopped: write down what is left."""
    hearing: Hearing | None = session.hearing
    if hearing is not None and not hearing.ended:
        with hearing.used:
            _hear(desk, hearing, torch.zeros(0), last=True)
    return _page(hearing)


def _hear(desk: Desk, hearing: Hearing, samples: Float[Tensor, " samples"], last: bool = False) -> None:
    listener = hearing.listener
    with desk.turn, torch.inference_mode():
        lines = listener.hear(samples, last=last)
        hearing.lines += lines
        due = listener.seconds - hearing.drawn >= PARTIAL
        if lines or due or last:
            hearing.open, hearing.drawn = None if last else listener.partial(), listener.seconds
    hearing.ended = last


def file_heard(desk: Desk, session: Session, path: str | None) -> Iterator[str]:
    """Hear a file piece by piece: what was written down so far."""
    if path is None:
        return
    begin(session)
    try:
        sound = open_sound(uploaded(path), LIMITS)
        assert sound is not None
        hearing, tape, step = _hearing(desk, session), Tape(sound), TAKEN * RATE
        for start in range(0, sound.samples, step):
            stop = min(start + step, sound.samples)
            with hearing.used:
                _hear(desk, hearing, tape.read(start, stop), last=stop == sound.samples)
            if session.hearing is not hearing:  # the visitor began anew meanwhile
                return
            yield _page(hearing)
    except Exception as error:  # the visitor is told; what was heard stays
        yield _page(session.hearing) + trouble(error)


def _page(hearing: Hearing | None) -> str:
    """What was written down, and what it took."""
    if hearing is None:
        return HINT
    lines = [_line(line, "") for line in hearing.lines if line.text]
    lines += [_line(hearing.open, "open")] if hearing.open and hearing.open.text else []
    body = "".join(lines) or '<p class="hint">Listening. Nothing was said yet.</p>'
    listener = hearing.listener
    state = f"{clock_time(listener.seconds)} heard, a state of {size(listener.nbytes)}"
    return f'<div class="lines" aria-live="polite">{body}</div><p class="note">{state}</p>'


def _line(line: Line, kind: str) -> str:
    more = " …" if kind else ""
    return f'<p class="{kind}"><b>{clock_time(line.start)}</b> {shown(line.text)}{more}</p>'


def respond(desk: Desk, session: Session, question: str) -> Iterator[Any]:
    """Answer about what was heard so far; the sound goes on meanwhile."""
    hearing: Hearing | None = session.hearing
    if hearing is None or not question.strip():
        missing = "Let me hear something first." if hearing is None else "The question is empty."
        yield gr.HTML(trouble(missing), visible=True)
        return
    try:
        with hearing.used, desk.turn:
            hearing.listener.settle()
            memory, at = hearing.listener.memory, hearing.listener.seconds
        batch = desk.processor.ask(question, after=memory.given, enable_thinking=False)
        text = ""
        for piece, due in paced(desk.answer(batch, Wish().settings, memory)):
            text += piece.text if isinstance(piece, Piece) else ""
            if isinstance(piece, Result):
                told = Told(result=piece, state_bytes=memory.nbytes, state_tokens=memory.tokens, where="Listen")
                session.last = told
                yield gr.HTML(said(piece.text, f"As of {clock_time(at)}. {cost(told)}"), visible=True)
            elif due:
                yield gr.HTML(said(text), visible=True)
    except Exception as error:  # the visitor is told, and can ask again
        yield gr.HTML(trouble(error), visible=True)
