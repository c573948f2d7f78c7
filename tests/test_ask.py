"""Asking in one call, from Python and from the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_clips
import pytest
import talker
from conversations import MODEL, PROCESSOR, user
from made_pictures import locked, numbered_pages, pdf
from PIL import Image
from typer.testing import CliRunner

import omni
from omni.cli import app
from omni.load import OmniProcessor
from omni.receipt import Receipt
from processors.batch import Media

MOST = 12
Loaded = tuple[omni.OmniModel, OmniProcessor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that sees and speaks, and a picture."""
    made = tmp_path_factory.mktemp("model")
    talker.talker(talker.SEES).save_pretrained(made)
    talker.TOKENIZER.save_pretrained(made)
    Image.new("RGB", (64, 48), "red").save(made / "red.png")
    return made


@pytest.fixture(scope="module")
def conversant() -> Loaded:
    """A small model that draws on a clip's pixels, and its processor; clips lose half of their tokens."""
    processor = OmniProcessor.of(MODEL.config, PROCESSOR.tokenizer)
    processor.rules = replace(processor.rules, pruning=0.5)
    return MODEL, processor


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_clips.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=40, fps=1)


@pytest.fixture
def answer(folder: Path) -> omni.Result:
    return omni.ask("What?", folder / "red.png", model=folder, think=False, max_new_tokens=MOST)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ask", *map(str, arguments)])
    return result.exit_code, result.output


def test_asking_equals_the_steps_one_by_one(folder: Path, answer: omni.Result) -> None:
    model, processor = omni.load(folder)
    content = [{"type": "image", "path": str(folder / "red.png")}, {"type": "text", "text": "What?"}]
    batch = processor([{"role": "user", "content": content}], enable_thinking=False)
    want = model.generate(batch, max_new_tokens=MOST, thinking_budget=0)
    assert isinstance(want, omni.Result)
    assert answer.tokens == want.tokens
    assert answer.prompt_tokens == want.prompt_tokens > 200


def test_files_may_be_paths_bytes_or_strings_and_a_model_may_be_at_hand(folder: Path, answer: omni.Result) -> None:
    loaded = omni.load(folder)
    for file in (str(folder / "red.png"), (folder / "red.png").read_bytes()):
        assert omni.ask("What?", file, model=loaded, think=False, max_new_tokens=MOST).tokens == answer.tokens


def test_a_budget_of_zero_asks_without_thinking(folder: Path, answer: omni.Result) -> None:
    result = omni.ask("What?", folder / "red.png", model=folder, budget=0, max_new_tokens=MOST)
    assert result.tokens == answer.tokens
    assert omni.ask("What?", model=folder, budget=3, grace=0, max_new_tokens=20).thinking_tokens <= 3


def test_pieces_come_as_they_are_written(folder: Path, answer: omni.Result) -> None:
    pieces = omni.ask("What?", folder / "red.png", model=folder, think=False, max_new_tokens=MOST, stream=True)
    assert "".join(piece.text for piece in pieces) == answer.text


def test_the_shell_prints_the_answer_or_json(folder: Path, answer: omni.Result) -> None:
    options = ("--model", folder, "--no-think", "--max-new-tokens", MOST)
    code, text = run(folder / "red.png", "What?", *options)
    assert code == 0
    assert f"cut off after {MOST} tokens" in text
    code, text = run(folder / "red.png", "What?", *options, "--json")
    values = json.loads(text)
    assert tuple(values["tokens"]) == answer.tokens
    assert (values["text"], values["stopped"]) == (answer.text, "length")
    code, text = run("What?", "--model", folder, "--budget", 2, "--max-new-tokens", 30, "--json")
    assert json.loads(text)["thinking_tokens"] <= 2 + 16


def test_what_is_wrong_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    code, text = run(folder / "blue.png", "What?", "--model", folder)
    assert code == 2
    assert "blue.png" in text
    code, text = run("What?", "--model", tmp_path / "nowhere")
    assert code == 2
    assert "no folder and no hub id" in text


def test_an_encrypted_document_is_asked_kept_and_replayed_with_its_password(folder: Path, tmp_path: Path) -> None:
    paper, plain = tmp_path / "paper.pdf", tmp_path / "plain.pdf"
    plain.write_bytes(pdf(numbered_pages(2)))
    paper.write_bytes(locked(plain.read_bytes(), "secret"))
    options = ("--model", folder, "--no-think", "--max-new-tokens", 4)
    code, text = run(paper, folder / "red.png", "What?", *options)
    assert (code, "pass its password" in text) == (2, True)
    code, text = run(paper, folder / "red.png", "What?", *options, "--password", "secret", "--json",
                     "--receipt", tmp_path / "r.json")  # fmt: skip
    assert code == 0, text
    wanted = omni.ask("What?", plain, folder / "red.png", model=folder, think=False, max_new_tokens=4)
    assert tuple(json.loads(text)["tokens"]) == wanted.tokens
    assert "secret" not in (tmp_path / "r.json").read_text()
    replay = ["replay", str(tmp_path / "r.json"), "--model", str(folder)]
    assert CliRunner().invoke(app, replay).exit_code == 2
    assert CliRunner().invoke(app, [*replay, "--password", "secret"]).exit_code == 0
    kept = ["ingest", str(paper), "--model", str(folder), "-o", str(tmp_path / "p.omni"), "--password", "secret"]
    assert CliRunner().invoke(app, kept).exit_code == 0


def test_where_nothing_can_be_written_is_said_before_anything_is_read(folder: Path) -> None:
    code, text = run(folder / "red.png", "What?", "--model", "no-such-model", "--receipt", "/proc/receipt.json")
    assert code == 2
    assert "nothing can be written in /proc" in text


def test_the_package_says_when_its_own_weights_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("omni.checkpoint.TINY", tmp_path)
    with pytest.raises(ValueError, match="weights of the model in the package are missing"):
        omni.load("tiny")


def test_files_are_read_stretch_by_stretch_and_the_answer_is_that_of_a_memory(
    conversant: Loaded, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = conversant
    encoded, encode = list[int](), type(model).encode

    def spy(self: omni.OmniModel, media: Media) -> Any:
        encoded.append(media.counts["tubelet"])
        return encode(self, media)

    batch = processor(user({"type": "file", "path": str(clip)}, "What?"), enable_thinking=False)
    whole = model.generate(batch, MOST)
    monkeypatch.setattr(type(model), "encode", spy)
    result = omni.ask("What?", clip, model=conversant, think=False, max_new_tokens=MOST)
    assert max(encoded) == 8
    assert sum(encoded) >= batch.media.counts["tubelet"] == 20
    memory = omni.ingest(clip, model=conversant)
    kept = omni.ask("What?", memory, model=conversant, think=False, max_new_tokens=MOST)
    assert isinstance(whole, omni.Result)
    assert result.tokens == kept.tokens == whole.tokens
    assert result.prompt_tokens == kept.prompt_tokens == whole.prompt_tokens
    assert not result.receipt.seen.memory  # its reading belongs to the answer
    assert kept.receipt.seen.memory["tokens"] == memory.tokens
    assert result.seconds["encode"] > 2 * kept.seconds["encode"]
    assert result.seconds["all"] > result.seconds["encode"] + result.seconds["prefill"]
    more = omni.ask("What?", memory, clip, model=conversant, think=False, max_new_tokens=MOST, draft=2)
    assert more.receipt.seen.memory["tokens"] == memory.tokens
    assert more.prompt_tokens > 1.9 * memory.tokens


def test_a_budget_is_kept_but_not_told_so_that_a_memory_answers_the_same(conversant: Loaded, clip: Path) -> None:
    settings: dict[str, Any] = {"model": conversant, "budget": 7, "max_new_tokens": 40}
    direct = omni.ask("What?", clip, **settings)
    assert direct.tokens == omni.ask("What?", omni.ingest(clip, model=conversant), **settings).tokens


def test_files_in_memory_are_taken_once_and_settings_are_checked_before_reading(
    conversant: Loaded, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = omni.ask("What?", clip, model=conversant, think=False, max_new_tokens=3)
    with clip.open("rb") as file:
        assert omni.ask("What?", file, model=conversant, think=False, max_new_tokens=3).tokens == want.tokens
    monkeypatch.setattr(sys.modules["omni.ask"], "read_long", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="want numbers from 0 on"):
        omni.ask("What?", clip, model=conversant, budget=-1)
    with pytest.raises(ValueError, match="a memory goes first, and only one"):
        omni.ask("What?", clip, "talk.omni", model=conversant)
    with pytest.raises(ValueError, match="state a larger one"):
        omni.ask("What? " * 50, model=conversant, context=100)


WRONG = """
import sys
sys.path.insert(0, sys.argv[1])
import omni, conversations
for settings in (
    {"choices": "yes"}, {"choices": []}, {"choices": [1]}, {"schema": False}, {"schema": {"enum": [{1}]}},
    {"draft": "fast"}, {"seed": "x"}, {"stop": [3.5]}, {"question": " "},
):
    try:
        omni.ask(settings.pop("question", "What?"), model=(conversations.MODEL, conversations.PROCESSOR), **settings)
    except ValueError as error:
        print(error)
"""


def test_settings_of_another_type_are_refused_by_what_was_wanted() -> None:
    """In a process whose types nobody checks."""
    run = [sys.executable, "-c", WRONG, str(Path(__file__).parent)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    wanted = (
        "choices 'yes' came; want a list",
        "choices [] came; want a list",
        "(1,) came as choices; want a list of texts",
        "False came as a schema; want a mapping",
        "the schema is not plain JSON",
        "a draft of 'fast' tokens; want 0 to",
        "the seed is 'x'; want a whole number",
        "3.5 came among `stop`; want strings",
        "the question is empty",
    )
    for line, words in zip(done.stdout.splitlines(), wanted, strict=True):
        assert words in line


def test_json_is_printed_though_its_receipt_cannot_be_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Receipt, path: Path) -> None:
        raise ValueError("receipt: no room")

    monkeypatch.setattr(Receipt, "save", full)
    options = ("--model", folder, "--no-think", "--choice", "yes", "--choice", "no", "--json")
    code, text = run("What?", *options, "--receipt", tmp_path / "a.json")
    values, error = text.splitlines()
    assert (code, error) == (2, "receipt: no room")
    assert json.loads(values)["text"] in ("yes", "no")


def test_a_video_is_looked_at_as_often_as_was_asked_and_other_files_as_ever(conversant: Loaded, clip: Path) -> None:
    sound = made_clips.clip(clip.parent / "tone.wav", sound="pcm_s16le", picture=False)
    for settings, frames in (({"frames": 8}, 8), ({"fps": 0.5}, 20), ({}, 40)):
        film, tone = omni.ingest(clip, sound, model=conversant, **settings).given.items
        assert (film.details["frames"], tone.kind) == (frames, "audio")
    with pytest.raises(ValueError, match="want one of them"):
        omni.ingest(clip, model=conversant, fps=1.0, frames=3)
