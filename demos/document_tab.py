"""Document: its pages beside the answer, the words of the answer marked on them; a page's table as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import gradio as gr

from demos import tables
from demos.desk import Desk
from demos.pages import Page, drawn, marked_pages, sheet
from demos.samples import Sample
from demos.session import LIMITS, Session, uploaded, uploads
from demos.talk import Talk, Told, Wish, file_part
from demos.words import cost, paced, said, trouble
from omni.answer import Piece
from omni.long_video import Progress
from processors.plan import PlannedItem
from processors.source import Source

HINT = '<p class="hint">Choose a PDF or a picture: its pages appear here.</p>'
NOTE = {
    True: "Marked: where the words of the answer stand on the pages.",
    False: "The answer's words are not in the text layer of these pages; all of them were read.",
}


@dataclass(slots=True)
class Paper:
    """An open document. item: how its pages are to be read. answer: the last one, which stands on the pages in
    `marked`, as far as that is known.
    """

    source: Source
    pages: list[Page]
    item: PlannedItem
    talk: Talk = field(default_factory=Talk)
    answer: str = ""
    marked: frozenset[int] = frozenset()


def build(desk: Desk, session: gr.State, every: list[Sample]) -> None:
    """Lay the tab out."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            file = gr.File(label="Document", file_count="single", height=120, elem_classes="upload")
            pages = gr.HTML(HINT, elem_classes="paper")
        with gr.Column(scale=4, min_width=300):
            question = gr.Textbox(label="Question", placeholder="What is the total?", submit_btn="Ask", lines=1)
            answer = gr.HTML(said("", ""), elem_classes="said", visible=False)
            with gr.Row(elem_classes="tools"):
                page = gr.Dropdown([], label="Table on page", interactive=True, min_width=120)
                extract = gr.Button("Table to CSV", min_width=140)
            table = gr.Dataframe(visible=False, interactive=False, wrap=True, label="Table")
            download = gr.DownloadButton("Download CSV", visible=False)
            if every:
                gr.Markdown("Try one of these:", elem_classes="hint")
            samples = [gr.Button(sample.question, size="sm") for sample in every]

    quiet: dict[str, Any] = {"concurrency_limit": None, "show_progress": "minimal"}

    def look(session: Session, path: str | None) -> tuple[Any, ...]:
        return opened(desk, session, path)

    def say(session: Session, question: str) -> Iterator[tuple[Any, ...]]:
        yield from respond(desk, session, question)

    def write(session: Session, page: int | None) -> tuple[Any, ...]:
        return to_csv(desk, session, page)

    shown = [pages, answer, page, table, download]
    file.change(look, [session, file], shown, api_name="open_document", **quiet)
    question.submit(
        say, [session, question], [pages, answer, page], api_name="ask_document", concurrency_limit=None,
        show_progress="hidden",
    ).then(None, js="() => window.omni.reveal('.page.used')", api_visibility="private")  # fmt: skip
    extract.click(write, [session, page], [table, download, answer], api_name="table", **quiet)
    for button, sample in zip(samples, every, strict=True):
        value = (str(sample.files[0]), sample.question)
        button.click(_constant(value), None, [file, question], show_progress="hidden", api_visibility="private")


def _constant(value: tuple[str, str]) -> Any:
    return lambda: value


def opened(desk: Desk, session: Session, path: str | None) -> tuple[Any, ...]:
    """Show a document's pages, or what is wrong with it; one that was open before is closed."""
    gone = (gr.HTML(visible=False), gr.Dropdown(choices=[], value=None), gr.Dataframe(visible=False))
    nothing = (*gone, gr.DownloadButton(visible=False))
    session.document = None
    if path is None:
        return HINT, *nothing
    try:
        source = uploaded(path)
        plan = desk.processor.plan([{"role": "user", "content": [file_part(source)]}], context=desk.context)
        paper = Paper(source=source, pages=drawn(source, LIMITS), item=plan.items[0])
    except Exception as error:  # a bad file is told, whatever is wrong with it
        return trouble(error), *nothing
    session.document = paper
    choices = [(f"{page.number}", page.number) for page in paper.pages]
    picker = gr.Dropdown(choices=choices, value=choices[0][1] if choices else None)
    return sheet(paper.pages, {}, paper.item), nothing[0], picker, nothing[2], nothing[3]


def respond(desk: Desk, session: Session, question: str) -> Iterator[tuple[Any, ...]]:
    """Answer about the open document: the pages, the answer and the page chosen for a table, as they change."""
    paper, same = session.document, gr.skip()
    if paper is None:
        yield same, gr.HTML(trouble("Choose a document first."), visible=True), same
        return
    try:
        text, parts = "", [] if paper.talk.memory else [file_part(paper.source)]
        for piece, due in paced(paper.talk.say(desk, question, parts, Wish())):
            if isinstance(piece, Progress):
                yield same, gr.HTML(said("", f"Reading: {piece.memory.tokens:,} tokens so far"), visible=True), same
            if isinstance(piece, Piece):
                text += piece.text
                if due:
                    yield same, gr.HTML(said(text), visible=True), same
            if isinstance(piece, Told):
                yield _finished(session, paper, piece, question)
    except Exception as error:  # the visitor is told, and can ask again
        yield same, gr.HTML(trouble(error), visible=True), same


def _finished(session: Session, paper: Paper, told: Told, question: str) -> tuple[Any, ...]:
    session.last = replace(told, where="Document")
    paper.answer = told.result.text
    marks = marked_pages(paper.pages, paper.answer, question)
    paper.marked = frozenset(marks)
    page = gr.Dropdown(value=min(marks)) if marks else gr.skip()
    note = f"{NOTE[bool(marks)]} {cost(told)}"
    return sheet(paper.pages, marks, paper.item), gr.HTML(said(paper.answer, note), visible=True), page


def to_csv(desk: Desk, session: Session, number: int | None) -> tuple[Any, ...]:
    """The table of the answer, where that stands on the page, else the page's own: of its text layer, or as the model
    reads it.
    """
    paper: Paper | None = session.document
    try:
        if paper is None:
            raise ValueError("Choose a document first.")
        page = next((page for page in paper.pages if page.number == number), None)
        if page is None:
            raise ValueError("Choose a page first.")
        answered = number in paper.marked or len(paper.pages) == 1
        table = tables.of_answer(paper.answer) if answered else None
        table = table or (tables.of_words(page.words) if page.words else _read_table(desk, session, paper, page))
        if table is None:
            raise ValueError(f"There is no table on page {number}.")
    except Exception as error:  # the visitor is told, and can try another page
        return gr.skip(), gr.skip(), gr.HTML(trouble(error), visible=True)
    path = _file(f"{Path(paper.source.name).stem}-page-{number}.csv")
    path.write_text(table.to_csv(), encoding="utf-8-sig", newline="")
    shown = gr.Dataframe(
        value={"headers": list(table.columns), "data": [list(row) for row in table.rows]}, visible=True
    )
    return shown, gr.DownloadButton(value=str(path), visible=True), gr.skip()


def _file(name: str) -> Path:
    folder = uploads() / token_hex(16)
    folder.mkdir(parents=True)
    return folder / name


def _read_table(desk: Desk, session: Session, paper: Paper, page: Page) -> tables.Table | None:
    """The table of a scan's page, as the model reads it."""
    parts = [] if paper.talk.memory else [file_part(paper.source)]
    for piece in paper.talk.say(
        desk, f"On page {page.number}: {tables.QUESTION}", parts, Wish(schema=tables.SCHEMA, most=1024)
    ):
        if isinstance(piece, Told):
            session.last = replace(piece, where="Document")
            return tables.of_answer(piece.result.text)
    return None
