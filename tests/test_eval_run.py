"""A run is repeated byte by byte, interrupted or not; what it says of itself is checked before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import conversations
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from omni.cli import app
from omni.eval import record
from omni.eval.compare import compare
from omni.eval.item import Item
from omni.eval.record import Record, Times
from omni.eval.result import summarise
from omni.eval.run import Run
from omni.eval.spec import Spec
from omni.eval.suite import suite
from omni.eval.tasks import TASKS, own, spec_of
from omni.interval import difference, interval
from omni.train import exam
from omni.train.data.sounds import Mute

SHORT = {"max_new_tokens": 4, "batch": 2}
PLAIN: dict[str, Any] = {"task": "x", "prompt": "{question}", "scoring": {"rule": "exact"}, "decoding": SHORT}


def spec(**changed: Any) -> Spec:
    return Spec.of({**PLAIN, **changed})


def items(count: int = 5) -> list[Item]:
    pictures = (conversations.picture(), conversations.film(), {"type": "audio", "audio": conversations.NOISE,
                                                                "rate": 16000})  # fmt: skip
    return [
        Item(
            name=f"q{i}",
            media=(pictures[i % 3],),
            fields={"question": f"What {i}?"},
            truth="a",
            groups={"odd": str(i % 2)},
        )
        for i in range(count)
    ]


def run(path: Path, made: Spec | None = None, asked: list[Item] | None = None, **more: Any) -> list[Record]:
    running = Run(made or spec(), conversations.MODEL, conversations.PROCESSOR, path, **more)
    return running.go(asked or items())[0]


def test_a_run_is_repeated_and_resumed_byte_by_byte(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    records = run(whole)
    assert [r.item for r in records] == ["q0", "q1", "q2", "q3", "q4"]
    assert all(r.receipt["items"][0]["sha256"] and r.tokens["written"] <= 4 for r in records)
    assert record.read(whole) == records
    run(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == whole.read_bytes()

    lines, seconds = (p.read_text().splitlines(keepends=True) for p in (whole, record.times_path(whole)))
    for stopped in (0, 1, 3, 4):
        cut = tmp_path / f"cut{stopped}.jsonl"
        cut.write_text("".join(lines[:stopped]) + lines[stopped][:30])  # in the middle of a line
        record.times_path(cut).write_text("".join(seconds[: stopped + 1]))
        run(cut)
        assert cut.read_bytes() == whole.read_bytes()
        assert [t.item for t in record.read_times(cut)] == [r.item for r in records]
    before = whole.stat().st_mtime_ns, whole.read_bytes()
    assert run(whole) == records
    assert whole.read_bytes() == before[1]


def test_sampled_answers_are_those_of_the_seed_resumed_or_not(tmp_path: Path) -> None:
    warm = spec(decoding=SHORT | {"temperature": 1.5}, seed=7)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(whole, warm)
    run(cut, replace(warm, limit=2), items(2))
    kept = cut.read_text().replace(replace(warm, limit=2).hash, warm.hash)
    cut.write_text(kept)
    run(cut, warm)
    assert cut.read_bytes() == whole.read_bytes()
    assert run(tmp_path / "other.jsonl", replace(warm, seed=8))[0].answer != record.read(whole)[0].answer


def test_a_file_of_another_spec_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="written with another spec"):
        run(tmp_path / "a.jsonl", spec(seed=1))


def test_thinking_is_kept_apart_and_not_marked(tmp_path: Path) -> None:
    thinks = spec(thinking={"enabled": True, "budget": 3}, decoding={"max_new_tokens": 24})
    (made,) = run(tmp_path / "a.jsonl", thinks, items(1))
    assert made.tokens["thinking"] > 0
    assert made.thinking
    assert made.thinking not in made.answer


def test_an_item_that_cannot_be_asked_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    broken = Item(name="bad", media=({"type": "image", "image": b"no picture"},), fields={"question": "?"}, truth="a")
    records = run(tmp_path / "a.jsonl", asked=[broken, *items(2)])
    assert records[0].error
    assert [r.error for r in records[1:]] == [None, None]
    found = summarise(records)
    assert found.unasked == pytest.approx(1 / 3)
    assert found.figure.questions == 3


def test_each_items_whole_receipt_can_be_kept(tmp_path: Path) -> None:
    records = run(tmp_path / "a.jsonl", asked=items(2), receipts=tmp_path / "receipts")
    kept = [json.loads(path.read_text()) for path in (tmp_path / "receipts").iterdir()]
    assert sorted(r["answer"]["text"] for r in kept) == sorted(r.answer for r in records)


def test_frames_dpi_and_evs_of_a_spec_reach_the_model(tmp_path: Path) -> None:
    film = {"type": "video", "frames": list(np.zeros((8, 48, 64, 3), np.uint8)), "fps": 1.0}
    asked = [Item(name="f", media=(film,), fields={"question": "?"}, truth="a")]
    whole, pruned = (run(tmp_path / f"{e}.jsonl", spec(preprocessing={"evs": e}), asked)[0] for e in (0.0, 0.6))
    assert pruned.receipt["items"][0]["tokens"] < whole.receipt["items"][0]["tokens"]
    page = TASKS["own-documents"].spec({"options": {"examples": 1, "pdf": True}, "decoding": SHORT})
    tokens = []
    for dpi in (144, 36):
        made = replace(page, preprocessing=replace(page.preprocessing, dpi=dpi))
        (found, *_) = run(tmp_path / f"{dpi}.jsonl", made, list(TASKS["own-documents"].items(made)))
        tokens.append(found.receipt["items"][0]["details"]["effective_dpi"][0])
    assert tokens[1] < tokens[0]


def mark(item: str, got: float, most: float = 1.0, extracted: str | None = "x", **more: Any) -> Record:
    plain: dict[str, Any] = {
        "spec": "s", "model": "m", "rule": "exact", "item": item, "question": "?", "truth": "a", "answer": "x",
        "thinking": "", "stopped": "eos", "extracted": extracted, "got": got, "most": most,
        "tokens": {"prompt": 1, "thinking": 0, "written": 1},
    }  # fmt: skip
    return Record(**plain | more)


def test_failures_are_counted_apart_as_wrong_or_left_out() -> None:
    records = [mark("a", 1.0), mark("b", 0.0), mark("c", 0.0, extracted=None), mark("d", 1.0)]
    assert summarise(records).figure.value == 0.5
    assert summarise(records, on_failure="leave out").figure.value == pytest.approx(2 / 3)
    assert summarise(records).failures == 0.25
    with pytest.raises(ValueError, match="none that counts"):
        summarise([mark("c", 0.0, extracted=None)], on_failure="leave out")


def test_errors_are_summed_over_words_and_groups_told() -> None:
    records = [mark("a", 1.0, 2.0, groups={"set": "x"}), mark("b", 0.0, 8.0, groups={"set": "y"})]
    times = [Times(item="a", seconds={"encode": 1.0, "prefill": 2.0, "decode": 5.0, "all": 9.0}, when="")]
    found = summarise(records, times)
    assert found.figure.value == 0.1
    assert found.groups["set"]["x"].value == 0.5
    assert found.first_token_seconds == 3.0


def test_an_interval_holds_what_the_binomial_says() -> None:
    value, low, high = interval([(1.0, 1.0)] * 60 + [(0.0, 1.0)] * 40)
    assert value == 0.6
    assert low == pytest.approx(0.6 - 1.96 * 0.049, abs=0.02)
    assert high == pytest.approx(0.6 + 1.96 * 0.049, abs=0.02)
    assert interval([(1.0, 1.0), (0.0, 0.0)]) == (1.0, pytest.approx(1.0, abs=1), 1.0)
    with pytest.raises(ValueError, match="no question"):
        interval([])


def test_pairs_narrow_a_difference() -> None:
    """The same items were hard for both: their difference is known better than each figure."""
    hard = [(float(i % 2), 1.0) for i in range(100)]
    better = [(1.0, 1.0) if i == 0 else pair for i, pair in enumerate(hard)]
    value, low, high = difference(hard, better)
    assert value == pytest.approx(0.01)
    assert 0 <= low <= value <= high < 0.05


def test_two_runs_are_compared_in_pairs_and_flips_are_named() -> None:
    before = [mark("a", 0.0), mark("b", 1.0), mark("c", 1.0), mark("gone", 1.0)]
    after = [mark("c", 1.0), mark("b", 0.0), mark("a", 1.0, question="!")]
    found = compare(before, after)
    assert (found.items, found.apart, found.asked_otherwise, found.difference) == (3, 1, 1, 0.0)
    assert ([f.item for f in found.better], [f.item for f in found.worse]) == (["a"], ["b"])
    fewer = compare([mark("a", 3.0, 4.0, rule="word errors")], [mark("a", 1.0, 4.0, rule="word errors")])
    assert fewer.errors
    assert [f.item for f in fewer.better] == ["a"]
    with pytest.raises(ValueError, match="share no item"):
        compare([mark("a", 1.0)], [mark("b", 1.0)])
    with pytest.raises(ValueError, match="was marked by"):
        compare([mark("a", 1.0)], [mark("a", 1.0, truth="other")])


def test_the_suite_is_the_exam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same questions, answers and marks; so the card's table is what the command prints."""
    monkeypatch.setattr(own, "voice", Mute)
    paper = replace(exam.PAPERS[4], examples=3, longest=3)
    assert paper.name == "video questions"
    task = replace(TASKS["own-video"], options={"examples": 3, "questions": 1}, tokens=3)
    (part,) = suite(conversations.MODEL, conversations.PROCESSOR, tmp_path, tasks=[task])
    with torch.no_grad():
        marks = exam.marks_of(conversations.MODEL, conversations.PROCESSOR, Mute(), paper)
    assert part.score == exam.score(paper.name, marks)
    asked = exam.questions(Mute(), paper)
    answers = exam.ask(conversations.MODEL, conversations.PROCESSOR, asked, longest=3)
    records = record.read(tmp_path / "own-video.jsonl")
    assert [r.answer for r in records] == [a.text for a in answers]
    assert [r.truth for r in records] == [e.turns[t].answer for e, t in asked]


def test_a_spec_reads_back_from_yaml_and_toml_with_its_hash(tmp_path: Path) -> None:
    made = TASKS["chartqa"].spec({"limit": 5, "decoding": {"temperature": 1}})
    (tmp_path / "a.yaml").write_text(made.to_yaml())
    assert spec_of(str(tmp_path / "a.yaml")) == made
    assert "prompt: |-\n  {question}\n  Answer" in made.to_yaml()
    assert "  frames: null\n" in made.to_yaml()
    (tmp_path / "a.toml").write_text('task = "chartqa"\nlimit = 5\n[decoding]\ntemperature = 1.0\n')
    assert spec_of(str(tmp_path / "a.toml")).hash == made.hash
    assert replace(made, limit=6).hash != made.hash
    assert spec_of("chartqa").scoring.rule == "relaxed"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tusk": 1}, "tusk is unknown; a spec has task, prompt"),
        ({"decoding": {"batch": "many"}}, "decoding.batch is 'many'; want a whole number"),
        ({"decoding": {"batch": True}}, "decoding.batch is True; want a whole number"),
        ({"decoding": {"batch": 0}}, "decoding.batch is 0; want at least 1"),
        ({"decoding": {"stop": "x"}}, "decoding.stop is 'x'; want a list of texts"),
        ({"preprocessing": {"evs": 1.0}}, "preprocessing.evs is 1.0; want 0 <= evs < 1"),
        ({"preprocessing": {"frames": 4, "fps": 1}}, "has frames and fps; state one"),
        ({"preprocessing": {"preset": "best"}}, "preprocessing.preset is 'best'; want one of reference"),
        ({"preprocessing": {"overflow": "cut"}}, "preprocessing.overflow is 'cut'; want one of 'refuse', 'drop'"),
        ({"thinking": {"budget": 5}}, "thinking.budget stands without thinking.enabled"),
        ({"thinking": {True: True}}, "thinking.True is unknown"),
        ({"thinking": 5}, "thinking is 5; want fields below it"),
        ({"scoring": {}}, "scoring.rule is missing"),
        ({"limit": 0}, "limit is 0; want at least 1"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(values: dict[Any, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"spec: .*{said.replace('.', chr(92) + '.')}"):
        spec(**values)


def test_a_task_knows_its_options_and_its_prompts_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"options.depth is unknown; needles has kind"):
        TASKS["needles"].spec({"options": {"depth": 1}})
    with pytest.raises(ValueError, match=r"options.words is 'long'; want a value such as 1000"):
        TASKS["needles"].spec({"options": {"words": "long"}})
    for prompt in ("{what}", "{question.x}", "{question[0]}", "{question!r}", "{question:>9}", "{}", "{0}", "{"):
        with pytest.raises(ValueError, match="this task has question"):
            run(tmp_path / "a.jsonl", spec(prompt=prompt))
    assert Item(name="a", fields={"question": "{b}?"}).question("{{}} {question}{question}") == "{} {b}?{b}?"
    (tmp_path / "a.yaml").write_text("task: sleep")
    with pytest.raises(ValueError, match="the task 'sleep' is unknown"):
        spec_of(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("task: needles\ndecoding:\n  batch: 1\n  batch: 2\n")
    with pytest.raises(ValueError, match=r"'batch' stands twice .*line 4"):
        spec_of(str(tmp_path / "a.yaml"))
    with pytest.raises(ValueError, match="want a YAML or TOML file"):
        spec_of(str(tmp_path / "none.yaml"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    conversations.MODEL.save_pretrained(path)
    conversations.TOKENIZER.save_pretrained(path)
    return path


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    def said(text: str, *more: object) -> str:
        (tmp_path / "a.yaml").write_text(text)
        code, output = command("run", tmp_path / "a.yaml", "--model", tmp_path / "none", *more)
        assert code == 2
        return " ".join(output.split())

    assert "the prompt '{what}' does not fit" in said("{task: needles, prompt: '{what}'}")
    assert "scorer: 'guess' is unknown; want one of choice" in said("{task: needles, scoring: {rule: guess}}")
    assert "scoring.rule 'click' cannot mark needles" in said("{task: needles, scoring: {rule: click}}")
    assert "eval: there is no folder ./none" in said("{task: docvqa, source: {path: ./none}}")
    assert "ends in .txt; want .jsonl" in said("task: needles", "--out", tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    assert "File exists" in said("{task: needles, limit: 1}", "--out", tmp_path / "file" / "a.jsonl")
    assert "none" in said("{task: needles, limit: 1}", "--out", tmp_path / "a.jsonl")


def test_items_that_were_not_asked_are_told_with_the_reason(tmp_path: Path, checkpoint: Path) -> None:
    rows = [{"type": "x", "question": "How much?", "answer": "1", "image": f"{i}.png"} for i in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    out = tmp_path / "out.jsonl"
    code, text = command("run", "chartqa", "--source", tmp_path, "--model", checkpoint, "--out", out)
    assert code == 0, text
    assert "100.0% not asked" in text
    assert text.count("was not asked: ") == 3
    assert "and 2 more" in text


def test_the_command_lists_runs_and_compares(tmp_path: Path, checkpoint: Path) -> None:
    code, text = command("list")
    assert code == 0
    assert all(name in text for name in ("docvqa", "own-screens", "word errors"))
    code, text = command("spec", "needles")
    path = tmp_path / "few.yaml"
    path.write_text(text.partition("hash ")[0].replace("words: 1000", "words: 20").replace("128", "3"))
    out = tmp_path / "few.jsonl"
    code, text = command("run", path, "--model", checkpoint, "--out", out, "--limit", 3)
    assert code == 0, text
    assert "nothing could be read from 100.0% of the answers (counted as wrong)" in text
    values = json.loads((tmp_path / "few.json").read_text())
    assert values["result"]["figure"]["questions"] == 3
    assert values["spec"]["options"]["words"] == 20
    assert values["hash"] == record.read(out)[0].spec
    code, text = command("compare", out, path)
    assert code == 2
    assert "few.yaml holds no records" in text
    code, text = command("compare", out, out, "--json")
    assert json.loads(text)["difference"] == 0.0
    code, text = command("run", "docvqq")
    assert code == 2
    assert "'docvqq' is no task and no .yaml or .toml file; want one of docvqa" in text
    assert command("compare", tmp_path / "none.jsonl", out)[0] == 2


def test_a_file_that_another_run_writes_or_that_holds_too_much_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with record.held(path), pytest.raises(ValueError, match="another run is writing"):
        run(path)
    run(path)
    with pytest.raises(ValueError, match="holds 5 records, the spec has 2 items"):
        run(path, asked=items(2))
    path.write_text(path.read_text() * 2)
    for read in (run, record.read):
        with pytest.raises(ValueError, match="lines 1 and 6 are both of item q0"):
            read(path)
    path.write_bytes(b"\xd0\xff\n")
    with pytest.raises(ValueError, match="want what `omni eval run` wrote"):
        record.read(path)
