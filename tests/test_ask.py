"""Asking in one call, from Python and from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import talker
from PIL import Image
from typer.testing import CliRunner

import omni
from omni.cli import app

MOST = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that sees and speaks, and a picture."""
    made = tmp_path_factory.mktemp("model")
    talker.talker(talker.SEES).save_pretrained(made)
    talker.TOKENIZER.save_pretrained(made)
    Image.new("RGB", (64, 48), "red").save(made / "red.png")
    return made


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


def test_the_package_says_when_its_own_weights_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("omni.checkpoint.TINY", tmp_path)
    with pytest.raises(ValueError, match="weights of the model in the package are missing"):
        omni.load("tiny")
