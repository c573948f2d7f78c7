"""The demo: visitors share the model and nothing else; what is wrong is told; no other file is opened."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import made_clips
import numpy as np
import pytest
import torch
from conversations import MODEL, TOKENIZER
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs Gradio: pip install 'omni[demo]'")

from demos import app, ask_tab, document_tab, hood_tab, listen_tab, tables, video_tab
from demos.desk import Desk
from demos.pages import found
from demos.samples import samples
from demos.session import LIMITS, Session, uploaded
from demos.talk import Talk, Told, Wish, file_part
from demos.timeline import linked
from demos.words import plain, seconds_in
from omni.answer import Piece
from omni.load import OmniProcessor
from processors.limits import MediaError
from processors.pdf import Word

WISH = Wish(most=16)
pytestmark = [  # the server and its clients leave sockets and event loops to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),  # Gradio on pandas 3
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def desk() -> Desk:
    processor = OmniProcessor.of(MODEL.config, TOKENIZER, LIMITS)
    return Desk(MODEL, processor, "small")


@pytest.fixture(scope="module", autouse=True)
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of uploads, with files of each kind; for this module alone."""
    folder = tmp_path_factory.mktemp("uploads")
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (96, 64), colour).save(folder / name)
    Image.new("RGB", (200, 280), "white").save(folder / "page.pdf")
    made_clips.clip(folder / "clip.mp4", frames=6, fps=1)
    made_clips.clip(folder / "beeps.wav", picture=False, sound="pcm_s16le", frames=90, rate=16000)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    before = os.environ.get(app.FOLDER)
    os.environ[app.FOLDER] = str(folder)
    yield folder
    os.environ.pop(app.FOLDER)
    if before is not None:
        os.environ[app.FOLDER] = before


def asked(desk: Desk, session: Session, text: str, *files: Path) -> list[Any]:
    """All that the Ask tab showed for a message."""
    message = {"text": text, "files": [str(file) for file in files]}
    return list(ask_tab.respond(desk, session, message, WISH))


def told(desk: Desk, talk: Talk, question: str, *files: Path) -> Told:
    parts = [file_part(uploaded(file)) for file in files]
    *_, last = talk.say(desk, question, parts, WISH)
    assert isinstance(last, Told)
    return last


def test_visitors_at_once_are_answered_as_each_would_be_alone(desk: Desk, uploads: Path) -> None:
    turns = {"red.png": ("What?", "And now?"), "blue.png": ("Which colour?", "Sure?"), "clip.mp4": ("When?", "Why?")}

    def visit(name: str) -> list[tuple[int, ...]]:
        talk, (first, second) = Talk(), turns[name]
        return [told(desk, talk, first, uploads / name).result.tokens, told(desk, talk, second).result.tokens]

    alone = {name: visit(name) for name in turns}
    with ThreadPoolExecutor(len(turns)) as pool:
        together = dict(zip(turns, pool.map(visit, turns), strict=True))
    assert together == alone
    assert len({tokens[0] for tokens in alone.values()}) == 3


def test_an_answer_is_written_while_another_visitors_video_is_read(desk: Desk, uploads: Path) -> None:
    part = {"type": "video", "path": uploaded(uploads / "clip.mp4"), "fps": 1.0}
    reading = desk.read([{"role": "user", "content": [part]}], segment=2, video_pruning_rate=0.5)
    next(reading)
    assert told(desk, Talk(), "Who?").result.tokens  # ends though the reading has not been taken to its end
    rest = list(reading)
    assert rest[-1].memory.tokens > 0


def test_a_talk_makes_one_answer_at_a_time(desk: Desk) -> None:
    talk = Talk()
    writing = talk.say(desk, "First?", [], Wish(most=16))
    next(writing)
    with pytest.raises(ValueError, match="still being written here"):
        told(desk, talk, "Second?")
    *_, first = writing
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]
    left = talk.say(desk, "Third?", [], Wish(most=16))
    next(left)
    left.close()  # the visitor is gone
    assert isinstance(first, Told)
    assert told(desk, talk, "Fourth?").result.tokens


def test_a_desk_that_is_closed_tells_all_who_wait_and_works_no_more(uploads: Path) -> None:
    desk = Desk(MODEL, OmniProcessor.of(MODEL.config, TOKENIZER, LIMITS), "small")
    reading = desk.read([{"role": "user", "content": [file_part(uploaded(uploads / "clip.mp4"))]}])
    writing = Talk().say(desk, "What?", [], Wish(most=10_000))
    next(writing)
    (writer,) = desk._threads
    with ThreadPoolExecutor(2) as pool:
        with desk.turn:  # nobody goes on meanwhile
            read, closed = pool.submit(list, reading), pool.submit(desk.close)
            assert desk._closed.wait(60)
        closed.result()
    assert not writer.is_alive()
    for left in (read.result, partial(list, writing)):
        with pytest.raises(ValueError, match="being closed"):
            left()
    with pytest.raises(ValueError, match="being closed"):
        told(desk, Talk(), "And now?")


def test_a_talk_goes_on_from_its_files_and_its_turns(desk: Desk, uploads: Path) -> None:
    talk = Talk()
    first = told(desk, talk, "What?", uploads / "red.png")
    second = told(desk, talk, "And this?", uploads / "blue.png")
    names = [item.name for item in second.result.receipt.seen.given.items]
    assert names == ["red.png", "blue.png"]
    text = "".join(piece for piece in second.result.receipt.pieces if isinstance(piece, str))
    assert text.index("What?") < text.index("And this?")
    assert second.state_tokens > first.state_tokens


def test_a_bad_file_is_told_and_nothing_is_lost(desk: Desk, uploads: Path) -> None:
    session = Session()
    asked(desk, session, "What?", uploads / "red.png")
    before = list(session.shown)
    shown, box, notice, _ = asked(desk, session, "And this?", uploads / "broken.png")[-1]
    with pytest.raises(MediaError) as wrong:
        desk.processor.plan(
            [{"role": "user", "content": [{"type": "image", "path": uploaded(uploads / "broken.png")}]}]
        )
    assert escape(str(wrong.value).removeprefix("media: ")) in notice
    assert shown == before == session.shown
    assert box.value["text"] == "And this?"
    assert asked(desk, session, "And now?")[-1][2] == ""
    for tab in (
        lambda: document_tab.opened(desk, session, str(uploads / "broken.png"))[0],
        lambda: video_tab.opened(desk, session, str(uploads / "red.png"), 50, 1)[0],
        lambda: list(listen_tab.file_heard(desk, session, str(uploads / "red.png")))[-1],
    ):
        assert 'role="alert"' in tab()


def test_no_path_but_an_uploads_is_opened(desk: Desk, uploads: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "green").save(outside)
    (uploads / "link.png").symlink_to(outside)
    (uploads / "folder").mkdir()
    for path in (outside, uploads / "link.png", uploads / ".." / outside.name, "/etc/passwd", uploads / "folder", ""):
        with pytest.raises(MediaError, match="not uploaded"):
            uploaded(path)
        assert 'role="alert"' in asked(desk, Session(), "What?", Path(path))[-1][2]
        assert asked(desk, Session(), "What?", Path(path))[-1][1].value["files"] == []
    with pytest.raises(MediaError, match="local files are off"):
        desk.processor.plan([{"role": "user", "content": [{"type": "image", "path": str(outside)}]}])
    session = Session()
    asked(desk, session, f"{outside} file://{outside} ![]({outside})")
    assert session.last is not None
    assert session.last.result.receipt.seen.given.items == ()


def test_what_is_stopped_stays_as_far_as_it_was_written(desk: Desk) -> None:
    talk, pieces = Talk(), list[str]()
    for piece in talk.say(desk, "Tell me.", [], Wish(most=400)):
        assert isinstance(piece, Piece)
        pieces.append(piece.text)
        talk.stopped = len(pieces) == 5
    assert len(pieces) == 5
    assert talk.turns[-1] == {"role": "assistant", "content": "".join(pieces).strip()}
    assert told(desk, Talk(), "Who?").result.tokens  # the engine is free again


def test_thinking_is_folded_apart_from_the_answer(desk: Desk) -> None:
    session = Session()
    list(ask_tab.respond(desk, session, {"text": "Why?", "files": []}, Wish(budget=16, most=64)))
    thinking = [message for message in session.shown if message.metadata]
    assert [message.metadata for message in thinking] == [{"title": "Thinking", "status": "done"}]
    assert session.last is not None
    assert 0 < session.last.result.thinking_tokens <= 32


def test_a_documents_pages_are_shown_and_its_table_is_written(
    desk: Desk, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    pages = document_tab.opened(desk, session, str(uploads / "page.pdf"))[0]
    assert pages.count("<figure") == 1
    assert "used" not in pages
    rows = [("Item", "Price"), ("Ink", "3.50"), ("Paper", "=1+1")]
    words = [word(cell, 100 * i, 20 * j) for j, row in enumerate(rows) for i, cell in enumerate(row)]
    page = session.document.pages[0]
    session.document.pages = [type(page)(number=1, jpeg=page.jpeg, size=page.size, words=tuple(words))]
    _, download, _ = document_tab.to_csv(desk, session, 1)
    assert Path(download.value["path"]).read_text("utf-8-sig").split() == ["Item,Price", "Ink,3.50", "Paper,'=1+1"]

    *_, last = document_tab.respond(desk, session, "What?")
    assert session.last is not None
    assert session.document.answer == session.last.result.text
    assert last[1].visible
    session.document.answer = "| a | b |\n|---|---|\n| 1 | 2 |"
    shown, _, _ = document_tab.to_csv(desk, session, 1)
    assert shown.value["data"] == [["1", "2"]]


def word(text: str, left: float, top: float) -> Word:
    return Word(text=text, box=(float(left), float(top), left + 8.0 * len(text), top + 10.0))


def test_a_table_begins_and_ends_with_the_lines_that_have_most_cells() -> None:
    lines = ["No|LJ367", "Item|Qty|Sum", "Wire|2|3.00", "Rope||4.00", "Nail|9|5.00", "Total|12.00"]
    words = [
        word(cell, 90 * (i if len(line.split("|")) == 3 else 2 * i), 15 * j)
        for j, line in enumerate(lines)
        for i, cell in enumerate(line.split("|"))
        if cell
    ]
    table = tables.of_words(words)
    assert table is not None
    assert table.columns == ("Item", "Qty", "Sum")
    assert table.rows == (("Wire", "2", "3.00"), ("Rope", "", "4.00"), ("Nail", "9", "5.00"))
    assert tables.of_words([word("alone", 0, 0), word("below", 0, 30)]) is None
    assert tables.of_answer("no table") is None
    assert tables.of_answer(json.dumps({"columns": ["a"], "rows": [["1"], ["2"]]})) == tables.Table(
        columns=("a",), rows=(("1",), ("2",))
    )


def test_marked_are_the_words_of_the_answer_that_tell_something() -> None:
    page = [word(text, 0, 0) for text in "Price of Audit : 93.13 USD , of the total 93.1 Anna Stone".split()]
    assert found("93.13", "What is the price of Audit?", page) == {4}
    assert found("It is of the Audit.", "What is the price of Audit?", page) == set()
    assert found("Anna Stone", "Who?", page) == {11, 12}


def test_times_of_an_answer_are_true_ones_that_can_be_clicked(desk: Desk, uploads: Path) -> None:
    texts = {"at 2.00 seconds, 3 s or 1:02:03.5": [2.0, 3.0, 3723.5], "3:05 of 10 sheep, 4stone, 12.5": [185.0]}
    assert {text: [second for *_, second in seconds_in(text)] for text in texts} == texts
    session = Session()
    assert "tokens" in video_tab.opened(desk, session, str(uploads / "clip.mp4"), 50, 1)[0]
    *_, last = video_tab.reading(desk, session, 0.5, 1.0, False)
    strip, table = last[0], last[1]
    assert strip.count('class="frame"') == 3
    assert "pruned" in strip
    assert "50%" in table
    seen = session.film.shown.seen
    item = seen.given.items[0]
    item.details["told_seconds"] = [second / 2 for second in item.details["true_seconds"]]
    assert 'data-seconds="4.000"' in linked("<b>At 2 seconds</b>", seen)
    assert "<b>" not in linked("<b>At 2 seconds</b>", seen)
    assert seen.memory["tokens"] == session.film.made[0].tokens
    assert session.film.made[0].kept == session.film.made[0].every // 2


def test_a_microphones_pieces_make_the_sound_that_came() -> None:
    t = np.arange(48000) / 48000
    tone = (8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    resample = listen_tab.Resampler()
    pieces = [resample(48000, piece) for piece in np.array_split(tone, 7)]
    whole = listen_tab.Resampler()(48000, np.stack([tone, tone], 1))
    heard = torch.cat(pieces)
    assert abs(len(heard) - 16000) < 64
    shortest = min(len(heard), len(whole))
    assert torch.allclose(heard[:shortest], whole[:shortest], atol=1e-6)


def test_questions_leave_what_is_heard_as_it_was(desk: Desk, uploads: Path) -> None:
    def visit(asking: bool) -> list[str]:
        session, rng = Session(), np.random.default_rng(0)
        for _ in range(7):
            sound = (16000, (0.1 * rng.standard_normal(16000)).astype(np.float32))
            assert "alert" not in listen_tab.heard(desk, session, sound)
            if asking:
                assert "As of" in list(listen_tab.respond(desk, session, "What?"))[-1].value
        listen_tab.ended(desk, session)
        assert (session.last is not None) == asking
        return [line.text for line in session.hearing.lines]

    assert visit(True) == visit(False) != []
    session = Session()
    *_, page = listen_tab.file_heard(desk, session, str(uploads / "beeps.wav"))
    assert "3.00 s heard" in page
    assert session.hearing.ended


def test_the_hood_shows_the_last_answers_plan_and_receipt(desk: Desk, uploads: Path) -> None:
    session = Session()
    assert hood_tab.filled(session)[0] == hood_tab.HINT
    asked(desk, session, "<script>alert(1)</script>", uploads / "red.png")
    figures, page, values, receipt = hood_tab.filled(session)
    assert session.last is not None
    planned = session.last.plans[0].items[0].tokens
    assert f"<td>red.png</td><td>image</td><td>{planned}</td><td>{planned}</td>" in figures
    assert "<script>" not in figures + receipt
    assert json.loads(Path(values.value["path"]).read_text())["answer"]["text"] == session.last.result.text
    assert page.visible


def test_text_of_a_model_loads_nothing() -> None:
    assert (
        plain("![x](http://a/b) <img src=x> 1 < 2\x1b")
        == "!\\[x](http://a/b) &lt;img src=x> 1 < 2\N{REPLACEMENT CHARACTER}"
    )


def test_samples_are_read_tolerantly(tmp_path: Path) -> None:
    assert samples(tmp_path) == []
    (tmp_path / "a.png").write_bytes(b"a")
    listed = [{"files": ["a.png"], "question": "What?"}, {"files": ["gone.png"], "question": "What?"}, 3]
    outside = [{"files": ["../a.png"], "question": "What?"}, {"question": "What?"}]
    (tmp_path / "questions.json").write_text(json.dumps([*listed, *outside]))
    assert [sample.files for sample in samples(tmp_path)] == [(tmp_path / "a.png",)]
    assert all(file.is_file() for sample in samples() for file in sample.files)


@pytest.fixture(scope="module")
def address(desk: Desk, uploads: Path) -> Iterator[str]:
    """Of a running demo."""
    served = app.build(desk)
    app.serve(served, None, share=False, wait=False)
    yield served.local_url
    served.close()
    del served
    gc.collect()


def test_the_server_gives_out_no_file_but_uploads_and_samples(address: str, uploads: Path, tmp_path: Path) -> None:
    import httpx

    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in ("/etc/passwd", secret, Path(app.__file__), Path("pyproject.toml").resolve()):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403
    assert httpx.get(f"{address}gradio_api/file={uploads / 'red.png'}").status_code == 200


def test_two_clients_have_chats_of_their_own(address: str, uploads: Path, tmp_path: Path) -> None:
    import httpx
    from gradio_client import Client, handle_file

    clients = [Client(address, verbose=False, download_files=False, httpx_kwargs={"timeout": 120}) for _ in range(2)]

    def ask(client: Any, text: str, files: list[Any]) -> Any:
        return client.predict({"text": text, "files": files}, 0, 32, api_name="/ask")

    with ThreadPoolExecutor(2) as pool:
        red = pool.submit(ask, clients[0], "Red?", [handle_file(str(uploads / "red.png"))])
        blue = pool.submit(ask, clients[1], "Blue?", [handle_file(str(uploads / "blue.png"))])
        first, second = (json.dumps(future.result()) for future in (red, blue))
    assert "red.png" in first
    assert "blue" not in first.lower()
    assert "blue.png" in second
    assert "red" not in second.lower().replace("rendered", "")
    again = json.dumps(ask(clients[0], "Again?", []))
    assert "Red?" in again
    assert "Blue?" not in again
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "green").save(secret)
    data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    call = f"{address}gradio_api/call/ask"
    event = httpx.post(call, json={"data": [{"text": "What?", "files": [data]}, 0, 32]}, timeout=60).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in answer
    assert "event: complete" not in answer
