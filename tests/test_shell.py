"""What the shell prints is what was written; outputs are checked before any work; Ctrl-C ends in one line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from omni import shell
from omni.cli import app

WILD = "a\tb :smile: \x1b[31mred\x07 [b]x " + "word " * 40 + "C:\\"


def test_on_a_terminal_text_is_as_it_was_written_and_control_characters_cannot_act(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shell, "console", Console(file=shown, force_terminal=True, color_system=None, width=40))
    shell.show(WILD)
    shell.show("thought", "dim", end="", aside=True)
    text = WILD.replace("\x1b", "\ufffd").replace("\x07", "\ufffd").replace("a\tb", "a       b")
    assert shown.getvalue() == text + "\nthought"


def test_into_a_pipe_goes_the_answer_alone_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    shell.show(WILD + "\udce9")
    shell.show("thought", "dim", aside=True)
    assert capsys.readouterr() == (WILD + "\\udce9\n", "thought\n")


def test_into_a_pipe_a_tables_rows_go_whole() -> None:
    free = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-c", "from omni.cli_bench import _sides; _sides([('one', 'so long a note ' * 9)])"]
    shown = subprocess.run(command, env=free, capture_output=True, text=True, check=True).stdout
    assert any("so long a note " * 8 in row for row in shown.splitlines())
    narrow = subprocess.run(command, env=free | {"COLUMNS": "60"}, capture_output=True, text=True, check=True).stdout
    assert max(map(len, narrow.splitlines())) == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "own.png", "-o", "own.png"], "ends in .png; want .omni"),
        (["ingest", "own.png", "-o", "no/x.omni"], "there is no folder no"),
        (["ingest", "own.png", "-o", "x.omni", "--kv", "foo"], "keys and values as 'foo'"),
        (["ingest", "own.png", "talk.omni", "-o", "talk.omni"], "one of the files to be read"),
        (["listen", "-o", "x.txt"], "ends in .txt; want .omni"),
        (["listen", "--chunk", "-1"], "--chunk -1.0 came; want 0.08 to 60"),
        (["listen", "--channels", "0"], "--channels 0 came; want 1 to 64"),
        (["ask", "own.png", "What?", "--receipt", "page.txt"], "want .json or .html"),
        (["ask", "own.png", "What?", "--receipt", "no/page.html"], "there is no folder no"),
        (["ask", "own.png"], 'the question is missing, own.png is a file; write: omni ask own.png "'),
        (["ask", "own.png", ""], "the question is empty"),
        (["ask", "What?", "--schema", "none.json"], "want a file with a JSON schema"),
        (["replay", "r.json", "--file", "pic.png"], "want NAME=PATH"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omni.model.OmniModel.from_pretrained", lambda *_: pytest.fail("a model was loaded"))
    Path("own.png").write_bytes(b"a picture")
    run = CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)
    assert run.exit_code == 2, run.output
    assert message in run.output
    assert Path("own.png").read_bytes() == b"a picture"


@pytest.mark.parametrize("seconds", [0.0, 1.0, 6.0])
def test_interrupted_while_it_loads_it_ends_in_one_line(seconds: float, tmp_path: Path) -> None:
    code = (
        "import sys; from omni import shell; from omni.cli import app; make = shell.Commands.make_context; "
        "shell.Commands.make_context = lambda *of, **how: (print('ready', flush=True), make(*of, **how))[1]; "
        "sys.argv[1:] = ['ask', 'What?', '--model', sys.argv[1]]; app()"
    )
    os.mkfifo(tmp_path / "config.json")  # reading the model's config would wait for ever
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        time.sleep(seconds)
        said = pressed_until_it_ends(run)
    assert (run.returncode, said) == (130, "interrupted\n")


def pressed_until_it_ends(run: subprocess.Popen[str], times: int = 3) -> str:
    """What it says on stderr. A library that is being imported may swallow a Ctrl-C: who waits presses again."""
    for _ in range(times):
        run.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return run.communicate(timeout=40)[1]
    run.kill()
    pytest.fail(f"Ctrl-C, pressed {times} times, did not end it")


def test_an_error_that_an_interrupt_became_ends_as_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("half a module")

    other = typer.Typer(cls=shell.Commands, pretty_exceptions_enable=False)
    other.callback()(lambda: None)
    other.command("load")(lambda: loading())
    run = CliRunner().invoke(other, ["load"])
    assert (run.exit_code, run.output) == (130, "interrupted\n")
