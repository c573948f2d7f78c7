"""Tasks read each benchmark's own columns, from a local folder as from the hub, and ask what its rule can mark."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import conversations
import made_clips
import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.eval.run import Run
from omni.eval.spec import Spec
from omni.eval.subtitles import Line, from_json, from_srt, interleaved
from omni.eval.tasks import TASKS
from omni.eval.tasks.haystacks import Haystack

datasets = pytest.importorskip("datasets", reason="needs the eval extra's datasets")

OPTIONS = ["A. red", "B. green", "C. blue", "D. none"]
PLAIN = ["red", "green", "blue"]


def picture() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def sound() -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(8000) / 5).astype(np.float32), 16000, format="WAV")
    return {"bytes": file.getvalue(), "path": "a.wav"}


ASKED = {"question": "What colour?", "answer": "B", "candidates": OPTIONS}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {  # a row, an answer that is right, what is asked
    "docvqa": ({"questionId": "7", "question": "Total?", "image": picture, "answers": ["$5.00"]}, "$5.00", "Total?"),
    "infovqa": ({"questionId": "8", "question": "How many?", "image": picture, "answers": ["12"]}, "12", "single word"),
    "chartqa": ({"type": "human_test", "question": "How much?", "answer": "14", "image": picture}, "14.5", "How much?"),
    "textvqa": (
        {"question_id": 3, "question": "what is it?", "image": picture, "answers": ["stop"] * 10}, "stop", "What is",
    ),
    "ai2d": ({"question": "Which?", "options": PLAIN, "answer": "2", "image": picture}, "C", "C. blue"),
    "ocrbench": (
        {"dataset": "IIIT5K", "question": "Word?", "question_type": "Regular Text Recognition", "answer": ["EXIT"],
         "image": picture}, "It is exit", "Word?",
    ),
    "ocrbench_v2": (
        {"id": 1, "type": "text recognition en", "question": "Word?", "answers": ["EXIT"], "eval": "None",
         "image": picture}, "exit", "Word?",
    ),
    "mmlongbench_doc": (
        {"doc_id": "a.pdf", "doc_type": "Brochure", "question": "How many?", "answer": "3", "answer_format": "Int",
         "evidence_pages": "[1]", "evidence_sources": "['Chart']"}, "3", "Not answerable",
    ),
    "videomme": (
        {"video_id": "001", "videoID": "clip", "question_id": "001-1", "duration": "short", "domain": "Life",
         "sub_category": "x", "task_type": "Counting", "question": "What colour?", "options": OPTIONS, "answer": "B"},
        "B. green", "A. red\nB. green",
    ),
    "longvideobench": (
        {"id": "1_0", "video_path": "clip.mp4", "question": "What colour?", "correct_choice": 1, "duration_group": 15,
         "question_category": "S2E",
         "option0": "red", "option1": "green", "option2": "blue", "option3": "N/A", "option4": "N/A"},
        "green", "C. blue",
    ),
    "videomme_subtitles": (
        {"video_id": "001", "videoID": "clip", "question_id": "001-1", "duration": "short", "domain": "Life",
         "sub_category": "x", "task_type": "Counting", "question": "What colour?", "options": OPTIONS, "answer": "B"},
        "B", "subtitles are listed below:\nIt is green.\nGood bye.\nSelect",
    ),
    "longvideobench_subtitles": (
        {"id": "1_0", "video_path": "clip.mp4", "question": "What colour?", "correct_choice": 1, "duration_group": 15,
         "question_category": "S2E", "candidates": PLAIN, "duration": 2.0, "subtitle_path": "clip_en.json",
         "starting_timestamp_for_subtitles": 10}, "green", "C. blue",
    ),
    "mvbench": (
        {"video": "clip.mp4", "question": "What colour?", "candidates": PLAIN, "answer": "green"}, "(B)", "B. green",
    ),
    "worldsense": (
        {**ASKED, "index": 4, "video": "clip", "task_domain": "Music", "task_type": "x", "duration": "<1min",
         "audio_class": ["Music"]}, "B", "D. none",
    ),
    "dailyomni": (
        {"Question": "What colour?", "Choice": OPTIONS, "Answer": "B", "video_id": "clip", "Type": "AV",
         "video_duration": "30s"}, "The answer is B.", "A. red",
    ),
    "asr": ({"audio": sound, "text": "HELLO WORLD", "id": "1-2"}, "hello, world", "Transcribe"),
    "voicebench": (
        {"audio": sound, "prompt": "What is sweet?\n(A) salt\n(B) sugar\n(C) sand\n(D) soap", "reference": "B"},
        "sugar", "",
    ),
    "mmau": (
        {"id": "m", "audio": sound, "question": "Which?", "choices": json.dumps(["(A) cat", "(B) dog"]),
         "answer": "(B) dog", "task": "sound", "difficulty": "easy"}, "(B) dog", "B. (B) dog",
    ),
    "mmlu_pro": (
        {"question_id": 5, "question": "2+2?", "options": ["3", "4", "N/A"], "answer": "B", "answer_index": 1,
         "category": "math"}, "so the answer is (B)", "question about math",
    ),
    "gsm8k": ({"question": "3 and 15?", "answer": "3+15=18\n#### 18"}, "#### 18", "Think step by step"),
    "screenspot": (
        {"file_name": "a.png", "instruction": "close", "bbox": [0.2, 0.4, 0.4, 0.6], "data_type": "icon",
         "data_source": "web", "image": picture}, "0.3, 0.5", "shares of the picture",
    ),
}  # fmt: skip


SRT = """1
00:00:00,000 --> 00:00:00,400
<font color="white" size=".72c">It is green.</font>

2
00:00:00,400 --> 00:00:00,700
Good
bye.
"""
SAID = [
    {"timestamp": [10.0, 10.4], "text": "It is green."},
    {"start": "00:00:11.0", "end": "00:00:11.5", "line": "Bye."},
]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "media"
    for each in (folder, folder.parent / "subtitle", folder.parent / "subtitles"):
        each.mkdir()
    (folder.parent / "subtitle" / "clip.srt").write_text(SRT)
    (folder.parent / "subtitles" / "clip_en.json").write_text(json.dumps(SAID))
    made_clips.clip(folder / "clip.mp4", sound="aac")
    Image.new("RGB", (100, 100), "white").save(folder / "a.pdf")
    return folder


def written(folder: Path, name: str, media: Path) -> Spec:
    """The row as a table on disk, and the task's spec for it."""
    row = {key: value() if callable(value) else value for key, value in ROWS[name][0].items()}
    table = datasets.Dataset.from_list([row])
    for column in ("image", "audio"):
        if column in row:
            kind = datasets.Image(decode=False) if column == "image" else datasets.Audio(decode=False)
            table = table.cast_column(column, kind)
    values = TASKS[name].spec().to_dict()
    place = folder / (values["source"]["name"] or "")
    place.mkdir(parents=True, exist_ok=True)
    table.to_parquet(place / f"{values['source']['split']}.parquet")
    source = {**values["source"], "path": str(folder), "media": str(media)}
    return TASKS[name].spec({**values, "source": source, "decoding": {"max_new_tokens": 2}})


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_question_that_is_marked(name: str, tmp_path: Path, media: Path) -> None:
    spec = written(tmp_path / "data", name, media)
    running = Run(spec, conversations.MODEL, conversations.PROCESSOR, tmp_path / "a.jsonl")
    items = TASKS[name].items(spec)
    ((made,), _) = running.go(items)
    assert made.error is None
    assert ROWS[name][2] in made.question
    mark = running.scorer.mark(ROWS[name][1], items[0])
    assert mark.got == (0.0 if running.scorer.errors else 1.0)


def test_every_task_that_is_read_has_a_row() -> None:
    assert {task for task in TASKS if task != "needles" and not task.startswith("own-")} == ROWS.keys()


def test_what_is_missing_is_named(tmp_path: Path, media: Path) -> None:
    spec = written(tmp_path, "videomme", tmp_path)
    with pytest.raises(ValueError, match=r"clip\.mkv is missing; source\.media names the folder"):
        TASKS["videomme"].items(spec)[0]
    with pytest.raises(ValueError, match="has no column image, instruction, bbox"):
        TASKS["screenspot"].items(spec)
    with pytest.raises(ValueError, match="has no file of split validation"):
        TASKS["docvqa"].items(TASKS["docvqa"].spec({"source": {"path": str(tmp_path), "name": None}}))
    outside = written(tmp_path / "b", "mmlongbench_doc", media / "inner")
    table = datasets.Dataset.from_list([{**ROWS["mmlongbench_doc"][0], "doc_id": "../a.pdf"}])
    table.to_parquet(tmp_path / "b" / "train.parquet")
    with pytest.raises(ValueError, match="lies outside"):
        TASKS["mmlongbench_doc"].items(outside)[0]


def test_subtitles_of_the_sampled_frames_are_listed(tmp_path: Path, media: Path) -> None:
    values = written(tmp_path, "videomme_subtitles", media).to_dict()
    frames = {**values, "options": {"subtitles": "frames"}}
    made = TASKS["videomme_subtitles"]

    def told(**shown: Any) -> str:
        spec = made.spec({**frames, "preprocessing": shown})
        return made.items(spec)[0].fields["subtitles"]

    assert told(frames=1) == "It is green."  # the first frame
    assert told(fps=5.0) == "It is green.\nGood bye."
    with pytest.raises(ValueError, match=r"state preprocessing\.frames"):
        told()
    with pytest.raises(ValueError, match=r"options\.subtitles is 'some'; want 'all' or 'frames'"):
        made.items(made.spec({**values, "options": {"subtitles": "some"}}))[0]
    with pytest.raises(ValueError, match=r"none is missing; options\.folder names"):
        made.items(made.spec({**values, "options": {"folder": str(tmp_path / "none")}}))[0]
    (tmp_path / "other").mkdir()
    (item,) = made.items(made.spec({**values, "options": {"folder": str(tmp_path / "other")}}))
    assert item.fields["subtitles"] == "No subtitles available"


def test_subtitles_stand_between_the_frames_by_time(tmp_path: Path, media: Path) -> None:
    spec = written(tmp_path, "longvideobench_subtitles", media)
    clip = {"type": "video", "path": str(media / "clip.mp4"), "sound": False}
    (item,) = TASKS["longvideobench_subtitles"].items(spec)  # a frame a second: 0 and 1
    said = [{"type": "text", "text": f"{text}\n"} for text in ("It is green.", "Bye.")]
    assert list(item.media) == [{**clip, "times": [0.0]}, said[0], {**clip, "times": [1.0]}, said[1]]
    lines = [Line(start=a, end=b, text=str(b)) for a, b in ((0.0, 1.8), (2.6, 2.9), (3.2, 3.3), (4.0, 9.0))]
    made = list(interleaved({"path": "x"}, lines, [0.0, 1.0, 2.0, 3.0]))
    rest = {"path": "x", "sound": False}
    assert made == [{**rest, "times": [0.0]}, {"type": "text", "text": "1.8\n"}, {**rest, "times": [1.0, 2.0]},
                    {"type": "text", "text": "2.9\n"}, {**rest, "times": [3.0]},
                    {"type": "text", "text": "3.3\n"}]  # nothing is seen during the last one  # fmt: skip
    for text in ("[1]", "{", '[{"timestamp": [1.0]}]', '[{"start": "1", "end": "2", "line": ""}]'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: .*want a list with timestamp and text"):
            from_json(tmp_path / "bad.json", 0.0, 2.0)
    (tmp_path / "bad.srt").write_text("1\n\nno times")
    with pytest.raises(ValueError, match=r"bad\.srt holds no subtitles"):
        from_srt(tmp_path / "bad.srt")


def test_a_row_that_is_otherwise_is_named(tmp_path: Path, media: Path) -> None:
    def broken(name: str, **changed: Any) -> None:
        spec = written(tmp_path / name, name, media)
        row = {**ROWS[name][0], **changed}
        row = {key: value() if callable(value) else value for key, value in row.items()}
        (table,) = Path(spec.source.path).rglob("*.parquet")
        datasets.Dataset.from_list([row]).to_parquet(table)
        TASKS[name].items(spec)[0]

    with pytest.raises(ValueError, match=r"the truth 'pink' is none of the options \['red', 'green', 'blue'\]"):
        broken("mvbench", answer="pink")
    with pytest.raises(ValueError, match=r"row 0 is not as ai2d has them \(IndexError: .*\); check the data"):
        broken("ai2d", answer="99")
    with pytest.raises(ValueError, match=r"asks for a table in neither HTML nor Markdown; check the data"):
        broken("ocrbench_v2", type="table parsing en", question="Read it.")
    with pytest.raises(ValueError, match="row 1 has no bbox_list or content; check the data"):
        broken("ocrbench_v2", type="text spotting en", bbox_list=[[0, 0, 9, 0, 9, 9, 0, 9]])
    broken("ocrbench_v2", type="text spotting en", bbox_list=[[0, 0, 9, 0, 9, 9, 0, 9]], content=["a"])
    with pytest.raises(ValueError, match="no rule for type singing en"):
        broken("ocrbench_v2", type="singing en")


@pytest.mark.parametrize("kind", ["single", "keys", "values", "queries"])
def test_needles_lie_in_a_text_of_the_length_asked_for(kind: Any) -> None:
    spec = TASKS["needles"].spec({"options": {"kind": kind, "words": 400, "items": 3}})
    items = TASKS["needles"].items(spec)
    again = TASKS["needles"].items(spec)
    for item, same in zip(items, again, strict=True):
        question = item.fields["question"]
        assert question == same.fields["question"]
        assert all(question.count(value) == 1 for value in item.truth)
        assert len(item.truth) == (4 if kind in ("values", "queries") else 1)
        assert 380 <= len(question.split()) <= 480
    assert items[0].fields["question"] != items[1].fields["question"]


def test_a_needles_depth_is_where_it_says() -> None:
    hay = Haystack(kind="single", text="sentences", form="plain", words=300, count=1)
    for depth in (0.0, 0.5, 1.0):
        item = hay.item("1", Random(3), depth)
        question = item.fields["question"]
        assert abs(question.index(item.truth[0]) / len(question) - depth) < 0.12
    with pytest.raises(ValueError, match=r"options\.kind is 'many'"):
        TASKS["needles"].items(TASKS["needles"].spec({"options": {"kind": "many"}}))
