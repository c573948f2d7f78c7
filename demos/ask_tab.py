"""Ask: a chat about pictures, PDFs, videos and sounds; the answer comes as it is written, its thinking folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from mimetypes import guess_type
from typing import Any

import gradio as gr

from demos.desk import Desk
from demos.samples import Sample
from demos.session import Session, is_upload, uploaded
from demos.talk import Told, Wish, file_part
from demos.words import cost, paced, plain, trouble
from omni.answer import Piece
from omni.long_video import Progress

WELCOME = "### Ask about anything\nDrop in pictures, PDFs, videos or sounds and ask away."
Update = tuple[Any, Any, Any, Any]


def build(desk: Desk, session: gr.State, every: list[Sample]) -> None:
    """Lay the tab out."""
    chat = gr.Chatbot(
        label="Chat",
        show_label=False,
        height="46vh",
        min_height=260,
        placeholder=WELCOME,
        buttons=["copy"],
        layout="bubble",
    )
    notice = gr.HTML(elem_classes="notice")
    box = gr.MultimodalTextbox(
        label="Question and files",
        show_label=False,
        placeholder="Ask something. Add files with the clip, or drop them here.",
        file_count="multiple",
        sources=["upload", "microphone"],
        autofocus=True,
        elem_classes="chatbox",
        max_plain_text_length=100_000,
    )
    with gr.Row(elem_classes="tools"):
        budget = gr.Slider(0, 1024, 0, step=32, label="Thinking budget (tokens, 0: none)", scale=3)
        most = gr.Slider(32, 2048, 512, step=32, label="Longest answer (tokens)", scale=3)
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        new = gr.Button("New chat", scale=1, min_width=110)
    if every:
        gr.Markdown("Try one of these:", elem_classes="hint")
        with gr.Row(elem_classes="samples"):
            for sample in every:
                button = gr.Button(_title(sample), size="sm", min_width=200)
                button.click(_filled(sample), None, box, show_progress="hidden", api_visibility="private")

    def say(session: Session, message: dict[str, Any] | None, budget: float, most: float) -> Iterator[Update]:
        yield from respond(desk, session, message, Wish(budget=int(budget), most=int(most)))

    many: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    box.submit(say, [session, box, budget, most], [chat, box, notice, stop], api_name="ask", **many)
    stop.click(halt, session, None, queue=False, api_visibility="private")
    gr.on([new.click, chat.clear], clear, session, [chat, notice, box], api_visibility="private", **many)


def _title(sample: Sample) -> str:
    return f"{', '.join(file.name for file in sample.files)}: {sample.question}"


def _filled(sample: Sample) -> Any:
    value = {"text": sample.question, "files": [str(file) for file in sample.files]}
    return lambda: value


def respond(desk: Desk, session: Session, message: dict[str, Any] | None, wish: Wish) -> Iterator[Update]:
    """Answer a message; the window, the box, a notice and the stop button as they change.

    Where a file is bad, the window is as it was before, and text and files are in the box again.
    """
    message = {"text": (message or {}).get("text") or "", "files": (message or {}).get("files") or []}
    talk, before, idle = session.chat, list(session.shown), gr.Button(interactive=False)
    try:
        parts = [file_part(uploaded(path)) for path in message["files"]]
        asked = [*before, *_asked(message)]
        yield asked, gr.MultimodalTextbox(value=None, interactive=False), "", gr.Button(interactive=True)
        for shown in _answered(desk, session, message["text"], parts, wish):
            if session.chat is not talk:  # the visitor began anew meanwhile
                talk.stopped = True
                break
            session.shown = [*asked, *shown]
            yield session.shown, gr.skip(), gr.skip(), gr.skip()
    except Exception as error:  # whatever it was, the visitor is told, and can go on
        session.shown = before if session.chat is talk else session.shown
        kept = {**message, "files": [path for path in message["files"] if is_upload(path)]}
        yield session.shown, gr.MultimodalTextbox(value=kept, interactive=True), trouble(error), idle
        return
    yield session.shown, gr.MultimodalTextbox(interactive=True), "", idle


def _asked(message: dict[str, Any]) -> list[gr.ChatMessage]:
    files = [
        gr.ChatMessage(role="user", content=gr.FileData(path=path, mime_type=guess_type(path)[0]))
        for path in message["files"]
    ]
    return [*files, gr.ChatMessage(role="user", content=plain(message["text"]))]


def _answered(
    desk: Desk, session: Session, question: str, parts: list[dict[str, Any]], wish: Wish
) -> Iterator[list[gr.ChatMessage]]:
    """The window's answer as it grows."""
    talk, reading = session.chat, list[gr.ChatMessage]()
    texts = {True: "", False: ""}  # of thinking, of the answer
    for piece, due in paced(talk.say(desk, question, parts, wish)):
        if isinstance(piece, Progress):
            reading = [_reading(piece)]
        if isinstance(piece, Piece):
            reading = []
            texts[piece.thinking] += piece.text
        if isinstance(piece, Told):
            session.last = replace(piece, where="Ask")
            texts = {True: piece.result.thinking, False: piece.result.text}
            yield _written(texts, True, cost(piece))
        elif due:
            yield reading or _written(texts, bool(texts[False]), "")
    if talk.stopped:
        yield _written(texts, True, "Stopped.")


def _reading(at: Progress) -> gr.ChatMessage:
    done = "looked through" if at.scored else f"{at.memory.tokens:,} tokens read"
    title = f"Reading {plain(at.name)}"
    return gr.ChatMessage(role="assistant", content=f"{done}", metadata={"title": title, "status": "pending"})


def _written(texts: dict[bool, str], thought: bool, note: str) -> list[gr.ChatMessage]:
    shown = list[gr.ChatMessage]()
    if texts[True].strip():
        status = "done" if thought else "pending"
        shown.append(
            gr.ChatMessage(
                role="assistant", content=plain(texts[True]), metadata={"title": "Thinking", "status": status}
            )
        )
    if texts[False] or note:
        below = f"\n\n<small>{note}</small>" if note else ""
        shown.append(gr.ChatMessage(role="assistant", content=(plain(texts[False]) or "*No answer.*") + below))
    return shown


def halt(session: Session) -> None:
    """Stop writing; what is written stays."""
    session.chat.stopped = True


def clear(session: Session) -> tuple[Any, Any, Any]:
    """Forget the chat."""
    session.chat.stopped = True
    session.chat, session.shown = type(session.chat)(), []
    return [], "", gr.MultimodalTextbox(value=None, interactive=True)
