"""Live sound: heard piece by piece it is what a recording is; a question disturbs nothing; the state is bounded."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import tokens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from torch import Tensor
from typer.testing import CliRunner

from encoders.window import Window
from omni.answer import Settings
from omni.cli import app
from omni.codec import Codec
from omni.ear import Ear, window
from omni.engine import Engine
from omni.listen import Line, Listener, Transcript
from omni.load import OmniProcessor
from omni.memory import Memory
from omni.prefill import CELL, LINE
from omni.replay import replay
from omni.state import KVState
from processors import stream
from processors.batch import Batch
from processors.limits import MediaError
from processors.mel_stream import Levels
from processors.stream import SoundChunk

TOKENIZER = tokens.tokenizer()
OMNI = small.FAMILIES["Omni"]
CONFIG = replace(OMNI, backbone=replace(OMNI.backbone, vocabulary=288))
MODEL = small.model(CONFIG)
MODEL.codec = Codec.of(TOKENIZER, CONFIG)
PROCESSOR = OmniProcessor.of(CONFIG, TOKENIZER)
SHORT = Window(chunk=5, left=20, ahead=2)
QUICK = Levels(warmup=0.4)


def noise(seconds: float, seed: int = 0) -> Tensor:
    """Sound whose loudness comes and goes."""
    made = torch.randn(int(seconds * 16000), generator=torch.Generator().manual_seed(seed))
    swell = torch.sin(torch.arange(len(made)) / 7000 + seed).abs() + 0.01
    return 0.1 * made * swell


def listener(**settings: Any) -> Listener:
    return Listener(MODEL, PROCESSOR, **{"heard": SHORT, "levels": QUICK, "transcript": None, **settings})


def heard(samples: Tensor, sizes: list[int], **settings: Any) -> tuple[Listener, list[Line]]:
    """A listener that has heard all of a sound, cut into pieces of these sizes again and again."""
    made, lines, at, turn = listener(**settings), [], 0, 0
    while at < len(samples):
        lines += made.hear(samples[at : at + sizes[turn % len(sizes)]])
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return made, lines + made.hear(samples[:0], last=True)


def recorded(samples: Tensor, question: str) -> Batch:
    sound = {"type": "audio", "audio": samples.numpy(), "rate": 16000}
    return PROCESSOR([{"role": "user", "content": [sound, question]}], enable_thinking=False)


@settings(max_examples=8, deadline=None)
@given(seconds=st.floats(0.1, 5.0), sizes=st.lists(st.integers(100, 30000), min_size=1, max_size=4))
def test_heard_under_a_window_as_long_as_the_sound_it_is_answered_as_a_recording(
    seconds: float, sizes: list[int]
) -> None:
    samples = noise(seconds)
    live, _ = heard(samples, sizes, heard=Window(chunk=100, left=0, ahead=0), levels=Levels(warmup=9.0))
    batch = recorded(samples, "What is heard?")
    fork = live.memory
    rest = PROCESSOR.ask("What is heard?", after=fork.given, enable_thinking=False)
    with torch.no_grad():
        want = MODEL(batch)
        prefix = fork.prefix()
        prefix.append(rest, MODEL.embed(rest))
        assert torch.equal(prefix.tokens, want.tokens)
        assert relative_error(prefix.finish(MODEL), want.hidden[-1:]) <= 1e-4
    assert live.ask("What is heard?", max_new_tokens=5).tokens == MODEL.generate(batch, max_new_tokens=5).tokens  # pyright: ignore[reportAttributeAccessIssue]  (a Result)


@settings(max_examples=6, deadline=None)
@given(sizes=st.lists(st.integers(100, 30000), min_size=1, max_size=4), seed=st.integers(0, 5))
def test_it_hears_the_same_for_any_cutting(sizes: list[int], seed: int) -> None:
    samples = noise(6.0, seed)
    (one, lines), (other, others) = (
        heard(samples, cut, transcript=Transcript(longest=2.0)) for cut in (sizes, [96000])
    )
    a, b = one.memory.prefix(), other.memory.prefix()
    assert torch.equal(a.tokens, b.tokens)
    with torch.no_grad():
        assert relative_error(a.finish(MODEL), b.finish(MODEL)) <= 1e-4
    assert [(line.start, line.end) for line in lines] == [(line.start, line.end) for line in others]


def test_questions_at_any_moment_answer_for_what_was_heard_and_disturb_nothing() -> None:
    samples = noise(8.0)
    live, quiet = listener(), listener()
    for at in range(0, len(samples), 16000):
        live.hear(samples[at : at + 16000])
        quiet.hear(samples[at : at + 16000])
        early = listener()
        early.hear(samples[: at + 16000])
        question = f"What came in second {at // 16000}?"
        assert live.ask(question, max_new_tokens=4).tokens == early.ask(question, max_new_tokens=4).tokens
    a, b = live.memory.prefix(), quiet.memory.prefix()
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.unread, b.unread)
    for one, other in zip(a.state.layers, b.state.layers, strict=True):
        if isinstance(one, KVState) and isinstance(other, KVState):
            assert torch.equal(one.keys[0][:, : one.lengths[0]], other.keys[0][:, : other.lengths[0]])


def test_what_was_heard_can_be_saved_and_asked_later_and_says_what_it_is(tmp_path: Path) -> None:
    live, _ = heard(noise(30.0), [16000])
    live.memory.save(tmp_path / "talk.omni")
    kept = Memory.load(tmp_path / "talk.omni", MODEL)
    question = PROCESSOR.ask("Who speaks?", after=kept.given, enable_thinking=False)
    assert (
        MODEL.generate(question, memory=kept, max_new_tokens=5).tokens
        == live.ask("Who speaks?", max_new_tokens=5).tokens
    )  # pyright: ignore[reportAttributeAccessIssue]  (a Result)
    (item,) = kept.given.items
    assert (item.name, item.details["seconds"], item.tokens, item.size) == ("live sound", 30.0, 375, 4 * 480000)
    assert [len(places) for places in kept.seen.by_item()] == [item.slots]
    other, _ = heard(noise(30.0, 1), [16000])
    assert other.memory.key != kept.key


def test_the_key_of_a_live_sound_tells_how_it_was_heard_and_a_replay_is_refused() -> None:
    samples = noise(4.0)
    ways: list[dict[str, Any]] = [
        {},
        {"heard": Window(chunk=10, left=20, ahead=2)},
        {"levels": Levels()},
        {"keep": 9.0},
    ]
    keys = [heard(samples, [16000], **way)[0].memory.key for way in ways]
    assert len(set(keys)) == len(ways)
    live, _ = heard(samples, [8000])
    assert live.memory.key == keys[0]
    with pytest.raises(ValueError, match="live sound, which came in its time"):
        replay(live.ask("What?", max_new_tokens=3).receipt, MODEL, PROCESSOR)


# The transcript


def transcribed(features: Tensor, question: str, most: int) -> str:
    """A stretch's own features as the recording of one prompt, written by the engine."""
    shown = PROCESSOR.ingest(
        [
            {
                "role": "user",
                "content": [{"type": "audio", "audio": np.zeros(1280 * len(features), np.float32), "rate": 16000}],
            }
        ]
    )
    rest = PROCESSOR.ask(question, after=shown.given[0], enable_thinking=False)
    batch = Batch(
        tokens=torch.cat((shown.tokens, rest.tokens)),
        lengths=torch.tensor([len(shown.tokens) + len(rest.tokens)]),
        slots=shown.slots,
        media=shown.media,
    )
    made = MODEL.encode(shown.media)
    assert made.counts["audio"] == [len(features)]
    engine = Engine(MODEL)
    request = engine.submit(batch, Settings(max_new_tokens=most), features=replace(made, audio=features))
    while engine.busy:
        engine.step()
    assert request.result
    return request.result.text.strip()


def test_the_lines_tile_the_stream_and_each_is_what_its_own_features_say() -> None:
    samples = noise(10.0, 2)
    rule = Transcript(longest=2.0, pause=0.2, pace=2.0)
    _, lines = heard(samples, [9999], transcript=rule)
    assert lines[0].start == 0
    assert [line.end for line in lines[:-1]] == [line.start for line in lines[1:]]
    assert lines[-1].end == 10.0
    assert all(0.9 <= line.end - line.start <= 2.0 for line in lines[:-1])
    ear = Ear(MODEL, SHORT, QUICK)
    features = ear(samples, ear.new_state(), last=True)
    for line in lines:
        part = features[round(line.start * 12.5) : round(line.end * 12.5)]
        most = int(len(part) / 12.5 * rule.pace) + 16
        assert line.text == transcribed(part, rule.question, most)
    loudness = samples.view(-1, 1280).square().mean(1)
    for line in lines[:-1]:  # cut where it is quieter than on average
        cut = round(line.end * 12.5)
        assert loudness[cut - 1 : cut + 2].mean() < loudness[round(line.start * 12.5) : cut + 3].mean()


def test_silence_is_not_transcribed_and_an_open_line_is_told_without_being_kept() -> None:
    samples = torch.cat((torch.zeros(40000), noise(2.0)))
    live, lines = heard(samples[:40000], [8000], transcript=Transcript(longest=1.0, pause=0.1))
    assert {line.text for line in lines} == {""}
    rule = Transcript(longest=6.0)
    live, quiet = (listener(transcript=rule) for _ in range(2))
    assert live.partial() is None
    for one in (live, quiet):
        one.hear(samples)
    told = live.partial()
    assert told is not None
    assert (told.start, told.text != "") == (0.0, True)
    assert told.end <= 4.5
    assert live.hear(samples[:0], last=True) == quiet.hear(samples[:0], last=True)
    assert live.partial() is None


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(made)
    TOKENIZER.save_pretrained(made)
    return made


def pcm(samples: Tensor) -> bytes:
    return (samples * 32767).short().numpy().astype("<i2").tobytes()


def told(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_the_command_writes_lines_answers_and_keeps_what_it_heard(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "questions").write_text("Who is it?\n\n")
    arguments = ["listen", "--model", folder, "--rate", 16000, "--chunk", 0.4, "--partial", 2, "--keep", 60]
    arguments += ["--ask", "What was said?", "--questions", tmp_path / "questions", "-o", tmp_path / "talk.omni"]
    runner = CliRunner(env={"COLUMNS": "200"})
    run = runner.invoke(app, [*map(str, arguments), "--json"], input=pcm(noise(14.0)))
    assert run.exit_code == 0, run.output
    happened = told(run.output)
    lines = [each for each in happened if each["kind"] == "line"]
    assert (lines[0]["start"], lines[-1]["end"]) == (0.0, 14.0)
    assert [each["question"] for each in happened if each["kind"] == "answer"] == ["Who is it?", "What was said?"]
    assert any(each["kind"] == "partial" for each in happened)
    (end,) = (each for each in happened if each["kind"] == "end")
    kept = Memory.load(tmp_path / "talk.omni", MODEL)
    assert (end["seconds"], end["tokens"]) == (14.0, kept.tokens)
    shown = runner.invoke(app, [*map(str, arguments[:9]), "--no-transcript"], input=pcm(noise(1.0)))
    assert "0:01.0 heard" in shown.output
    broken = runner.invoke(app, ["listen", "--model", str(folder)], input=b"no sound at all" * 9)
    assert broken.exit_code == 2
    assert "send WAV" in broken.output


def test_a_broken_source_of_questions_or_of_sound_loses_nothing_that_was_heard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "questions").write_bytes(b"Who?\n\xff\xfe\nWhere?\n")
    base = ["listen", "--model", str(folder), "--chunk", "0.4", "--no-transcript", "--json"]
    raw = [*base, "--rate", "16000", "-o", str(tmp_path / "talk.omni"), "--questions"]
    runner = CliRunner()
    run = runner.invoke(app, [*raw, str(tmp_path / "questions")], input=pcm(noise(2.0)))
    assert run.exit_code == 0, run.output
    assert [each["question"] for each in told(run.stdout) if each["kind"] == "answer"] == ["Who?", "Where?"]
    assert "a line is no UTF-8" in run.stderr
    run = runner.invoke(app, [*raw, str(tmp_path / "none")], input=pcm(noise(2.0)))
    assert run.exit_code == 0, run.output
    assert "No such file or directory; the sound goes on without them" in run.stderr
    assert told(run.stdout)[-1]["seconds"] == 2.0

    def breaks(*arguments: Any) -> Iterator[SoundChunk]:
        yield from islice(sound_chunks(*arguments), 6)
        raise MediaError("stream: broken after 3.0 s (bad data); start it again")

    sound_chunks = stream.sound_chunks
    monkeypatch.setattr(stream, "sound_chunks", breaks)
    end = ["--rate", "16000", "--ask", "What was said?", "-o", str(tmp_path / "part.omni")]
    run = runner.invoke(app, [*base, *end], input=pcm(noise(8.0)))
    happened = told(run.stdout)
    assert (run.exit_code, happened[0]["question"]) == (1, "What was said?")
    assert "broken after" in run.stderr
    assert happened[-1]["seconds"] == 3.0
    assert Memory.load(tmp_path / "part.omni", MODEL).tokens == happened[-1]["tokens"]


def test_interrupted_it_ends_in_order(folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", folder, "--rate", 16000, "--chunk", 0.4, "--partial", 1, "-o", tmp_path / "talk.omni"]
    command = [sys.executable, "-c", "from omni.cli import app; app()", "listen", "--json", *map(str, arguments)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False, cwd=root) as run:
        assert run.stdin
        assert run.stdout
        run.stdin.write(pcm(noise(7.3)))
        run.stdin.flush()
        first = run.stdout.readline()  # it hears; more might be said
        time.sleep(1.0)
        run.send_signal(signal.SIGINT)
        happened = told((first + run.stdout.read()).decode())
        assert run.wait(60) == 0
    assert happened[-1]["kind"] == "end"
    assert happened[-1]["seconds"] == 7.3  # the last piece too, which is no whole half second
    assert Memory.load(tmp_path / "talk.omni", MODEL).tokens == happened[-1]["tokens"]


# Memory


def test_kept_seconds_bound_the_state_and_only_the_oldest_sound_is_forgotten() -> None:
    live, whole = listener(keep=8.0), listener()
    sizes = []
    for piece in range(75):  # a line of the grid is 82 seconds
        for one in (live, whole):
            one.hear(noise(4.0, piece))
        sizes.append(live.nbytes)
        if piece % 20 == 10:
            live.settle()
    assert max(sizes[45:]) <= max(sizes[24:45]) + 1
    assert max(sizes) < whole.nbytes - 128 * 200
    assert live.memory.file_bytes() < whole.memory.file_bytes() - 128 * 200
    whole.settle()
    live.settle()
    a, b = live.memory.prefix(), whole.memory.prefix()
    held = next(layer for layer in a.state.layers if isinstance(layer, KVState))
    full = next(layer for layer in b.state.layers if isinstance(layer, KVState))
    first = len(PROCESSOR.ingest([{"role": "user", "content": ""}]).tokens) + 1
    assert 100 <= held.lengths[0] - a.ahead - first < 100 + CELL
    gone = full.lengths[0] - held.lengths[0]  # the one attention layer stands below all that could have missed them
    kept = torch.cat((full.keys[0][:, :first], full.keys[0][:, first + gone : full.lengths[0]]), 1)
    torch.testing.assert_close(held.keys[0][:, : held.lengths[0]], kept)
    assert live.ask("And?", max_new_tokens=3).tokens


@pytest.mark.slow
def test_an_hour_of_sound_costs_its_keys_and_values_and_a_constant() -> None:
    live = listener(heard=Window(chunk=25, left=50, ahead=2))
    piece = noise(10.0)
    sizes, allocated = [], []
    for _ in range(360):
        live.hear(piece)
        sizes.append((live.nbytes, live.memory.tokens))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        allocated.append(int(status["RssAnon"].split()[0]) * 1024)
    assert max(allocated) - sizes[-1][0] < 1.1 * (max(allocated[:30]) - sizes[29][0])
    (early, few), (late, many) = sizes[29], sizes[-1]
    assert many > 44900
    assert abs(late - early - (many - few) * 128) <= LINE * (128 + 32 * 4)  # what is unread varies within a line
    assert live.ask("What was that?", max_new_tokens=3).tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Listener(small.model(small.FAMILIES["V2 VL"]), PROCESSOR), "hears nothing"),
        (lambda: window(small.model(small.FAMILIES["Nano 3"])), "hears nothing"),
        (lambda: listener(keep=0.0), "more than 0"),
        (lambda: Transcript(longest=0.5), "at least 1 s"),
        (lambda: MODEL.new_state().forget(3, 5), "0 are held"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sound_that_is_no_number_ends_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gap(*arguments: Any) -> Iterator[SoundChunk]:
        for number, chunk in enumerate(whole(*arguments)):
            if number == 3:
                chunk.samples[4000:4100] = math.nan
            yield chunk

    whole = stream.sound_chunks
    monkeypatch.setattr(stream, "sound_chunks", gap)
    base = ["listen", "--model", str(folder), "--chunk", "0.4", "--no-transcript", "--json", "--rate", "16000"]
    run = CliRunner().invoke(app, base, input=pcm(noise(8.0)))
    assert run.exit_code == 1
    assert "the sound at 1.75 s is no number" in run.stderr
    assert told(run.stdout)[-1]["seconds"] == 1.5


@pytest.mark.parametrize("option", [("--chunk", "inf"), ("--chunk", "1e9"), ("--keep", "nan"), ("--channels", "0")])
def test_numbers_out_of_bounds_are_refused_at_once(option: tuple[str, str]) -> None:
    run = CliRunner().invoke(app, ["listen", "--model", "no-such-model", *option], input=b"")
    assert run.exit_code == 2
    assert f"listen: {option[0]} " in run.stderr
