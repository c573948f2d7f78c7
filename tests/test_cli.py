"""The command line says what it was asked, and what is wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import made_clips
import pytest
import released
import tokens
from PIL import Image
from typer.testing import CliRunner

from omni.cli import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    return result.exit_code, result.output


def test_doctor_names_torch_kernels_and_decoders() -> None:
    code, text = run("doctor")
    assert code == 0
    for word in ("torch", "kernels", "pypdfium2", "decord2", "av ", "memory"):
        assert word in text


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.cli.PARTS", {"ghost": ("no-such-package", "")})
    assert "pip install no-such-package" in run("doctor")[1]


def test_inspect_tells_a_models_anatomy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released.nano_3()))
    code, text = run("inspect", str(tmp_path))
    assert code == 0
    for word in (released.NANO_3, "31.58B", "3.23B", "3.58B", "6.00 KiB", "58.82 GiB"):
        assert word in text
    code, text = run("inspect", str(tmp_path / "config.json"), "--json")
    values = json.loads(text)
    assert (values["total"], values["kv_bytes_per_token"]) == (31_577_937_344, 6144)
    code, text = run("inspect", str(tmp_path / "config.json"), "--json", "--context", "1000")
    assert json.loads(text)["context_bytes"] == 1000 * 6144 + values["state_bytes"]
    assert run("inspect", str(tmp_path / "config.json"), "--context", "-5")[0] == 2


def test_inspect_says_what_is_wrong(tmp_path: Path) -> None:
    code, text = run("inspect", str(tmp_path))
    assert code == 2
    assert "config.json is missing" in text


def test_plan_tells_tokens_and_dpi_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released.omni()))
    tokens.tokenizer().save_pretrained(tmp_path)
    page = tmp_path / "page.pdf"
    Image.new("RGB", (850, 1100)).save(page, resolution=100)
    sound = made_clips.clip(tmp_path / "a.wav", sound="pcm_s16le", picture=False)
    code, text = run("plan", str(page), str(sound), "--model", str(tmp_path), "--context", "2000")
    assert code == 0
    for word in ("page.pdf", "effective_dpi", "a.wav", "seconds 2.0", "state after the prompt"):
        assert word in text
    code, text = run("plan", str(page), "--model", str(tmp_path), "--json")
    assert json.loads(text)["items"][0]["tokens"] > 1000
    code, text = run("plan", str(page), "--model", str(tmp_path), "--preset", "what")
    assert code == 2
    assert "preset 'what' is unknown" in text


@pytest.mark.slow
def test_bench_states_ratios_and_memory() -> None:
    code, text = run("bench", "media", "--minutes", "1", "--pages", "6", "--repeats", "1")
    assert code == 0
    values = json.loads(text.splitlines()[-1])
    assert [row["name"] for row in values["results"]] == ["4 pictures 1080p", "1 minutes 720p at 1 fps", "6 PDF pages"]
    assert all(row["ratio"] > 0 for row in values["results"])
    assert values["hour_frames"] == 3600
    assert run("bench", "what")[0] == 2
