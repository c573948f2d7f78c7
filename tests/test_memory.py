"""A memory: asked, forked, grown, saved and loaded, it answers as if all had been read at once; a file that is not
whole, or not this model's, is refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from conversations import MODEL, NOISE, PROCESSOR, TOKENIZER, config, film, picture, ready, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni import sealed
from omni.anatomy import anatomy
from omni.answer import Result
from omni.attention import AttentionConfig
from omni.load import OmniProcessor
from omni.memory import KIND, Memory
from omni.prefill import LINE
from omni.seen import LOOKS

PARTS = [
    "long " * 300,
    picture(0),
    "and a film: ",
    film(1),
    "more " * 300,
    {"type": "audio", "audio": NOISE, "rate": 16000},
    picture(2),
]
QUESTIONS = ["What is it?", "Why?", "Where was the first of them seen, and by whom?"]


def ingested(*parts: Any, **settings: Any) -> Memory:
    return MODEL.ingest(PROCESSOR.ingest(user(*(parts or PARTS))), **settings)


def answer(question: str, memory: Memory, **settings: Any) -> Result:
    batch = PROCESSOR.ask(question, after=memory.given, enable_thinking=False)
    result = memory.model.generate(batch, 12, logprobs=True, memory=memory, **settings)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(result, Result)
    return result


def whole(question: str, *parts: Any, **settings: Any) -> Result:
    batch = PROCESSOR(user(*(parts or PARTS), question), enable_thinking=False)
    result = MODEL.generate(batch, 12, logprobs=True, **settings)
    assert isinstance(result, Result)
    return result


def same(one: Result, other: Result) -> None:
    assert one.tokens == other.tokens
    assert one.logprobs == other.logprobs
    assert one.prompt_tokens == other.prompt_tokens > 2 * LINE


def same_tokens(one: Result, other: Result) -> None:
    """For media that were encoded in other company: products of other shapes may round otherwise."""
    assert one.logprobs is not None
    assert one.tokens == other.tokens
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert one.prompt_tokens == other.prompt_tokens > 2 * LINE


@pytest.mark.parametrize("question", QUESTIONS)
def test_ingested_and_asked_equals_asked_at_once_bit_for_bit(question: str) -> None:
    same(answer(question, ingested()), whole(question))


def test_a_question_leaves_the_memory_as_it_was() -> None:
    memory = ingested()
    first = [answer(question, memory) for question in QUESTIONS]
    for question, before in zip(QUESTIONS, first, strict=True):
        same(answer(question, memory), before)


def test_several_questions_at_once_equal_each_alone() -> None:
    memory = ingested()
    batches = [PROCESSOR.ask(question, after=memory.given, enable_thinking=False) for question in QUESTIONS]
    results = MODEL.generate(type(batches[0]).pack(batches), 12, memory=memory)
    assert isinstance(results, list)
    assert [result.tokens for result in results] == [answer(question, memory).tokens for question in QUESTIONS]


def test_a_fork_knows_nothing_of_what_the_other_reads() -> None:
    memory = ingested(*PARTS[:4])
    fork = memory.fork()
    memory.append(PROCESSOR.ingest(user(*PARTS[4:]), after=memory.given))
    same_tokens(answer("Why?", memory), whole("Why?"))
    fork.append(PROCESSOR.ingest(user("other " * 100, picture(7)), after=fork.given))
    same_tokens(answer("Why?", fork), whole("Why?", *PARTS[:4], "other " * 100, picture(7)))


@pytest.mark.parametrize("cuts", [[2], [4], [2, 4, 6]])
def test_appended_piece_by_piece_equals_all_at_once(cuts: list[int]) -> None:
    memory = ingested(*PARTS[: cuts[0]])
    for start, stop in zip(cuts, [*cuts[1:], len(PARTS)], strict=True):
        memory.append(PROCESSOR.ingest(user(*PARTS[start:stop]), after=memory.given))
    got, want = answer(QUESTIONS[2], memory), whole(QUESTIONS[2])
    assert got.tokens == want.tokens  # towers see other packs, so features may round otherwise
    torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(want.logprobs), rtol=1e-4, atol=1e-5)
    assert memory.tokens == ingested().tokens
    assert [place.start for place in memory.seen.places] == [place.start for place in ingested().seen.places]


@pytest.mark.parametrize("draft", [None, 3])
@pytest.mark.parametrize(("parts", "ahead"), [(PARTS, 0), (PARTS[:4], 512), (["long " * 150], 512)])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, parts: list[Any], ahead: int, draft: int | None) -> None:
    memory = ingested(*parts, draft=draft is not None)
    memory.save(tmp_path / "talk.omni")
    loaded = Memory.load(tmp_path / "talk.omni", MODEL)
    assert loaded.prefix().ahead == memory.prefix().ahead == ahead
    assert answer("Why?", loaded, draft=draft).logprobs == answer("Why?", memory, draft=draft).logprobs
    assert (loaded.tokens, loaded.nbytes, loaded.key) == (memory.tokens, memory.nbytes, memory.key)
    assert json.dumps(loaded.seen.with_looks(0).to_dict()) == json.dumps(memory.seen.with_looks(0).to_dict())
    for one in (memory, loaded):
        one.append(PROCESSOR.ingest(user(picture(9), "more " * 300), after=one.given))  # over the next line
    assert answer("Why?", loaded, draft=draft).logprobs == answer("Why?", memory, draft=draft).logprobs


def test_drafted_answers_from_a_memory_are_those_without_drafts() -> None:
    memory, plain = ingested(draft=True), ingested()
    for question in QUESTIONS:
        want = answer(question, plain).tokens
        assert answer(question, memory, draft=4).tokens == want
        assert answer(question, plain, draft=4).tokens == want


# Files


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "talk.omni"
    ingested().save(path)
    return path


def test_another_model_is_refused(file: Path) -> None:
    other = ready(config(), seed=1)
    with pytest.raises(ValueError, match="another model"):
        Memory.load(file, other)
    trained = ready(config())
    assert Memory.load(file, trained).tokens  # the same weights are the same model
    with torch.no_grad():
        trained.backbone.layers[0].mixer.in_proj.weight.mul_(1.0001)  # pyright: ignore
    with pytest.raises(ValueError, match="another model"):
        Memory.load(file, trained)
    bent = replace(config(), backbone=replace(config().backbone, eps=1e-4))
    with pytest.raises(ValueError, match="another model"):
        Memory.load(file, ready(bent))


def test_the_same_weights_in_another_dtype_take_the_memory(tmp_path: Path) -> None:
    wide, half = (ready(config()).bfloat16() for _ in range(2))
    wide.float()
    assert wide.identity.fingerprint == half.identity.fingerprint != MODEL.identity.fingerprint
    wide.ingest(PROCESSOR.ingest(user(*PARTS))).save(tmp_path / "wide.omni")
    memory = Memory.load(tmp_path / "wide.omni", half)
    kinds = {keys.dtype for layer in memory.prefix().state.layers for keys in getattr(layer, "keys", [])}
    assert kinds == {torch.bfloat16}
    assert len(answer("Why?", memory).tokens) == 12


def test_another_version_or_kind_is_refused(file: Path, tmp_path: Path) -> None:
    header, parts = sealed.read(file, KIND)
    sealed.write(tmp_path / "new.omni", KIND, header | {"version": 99}, parts)
    with pytest.raises(ValueError, match=r"version 99 .*ingest the files again"):
        Memory.load(tmp_path / "new.omni", MODEL)
    sealed.write(tmp_path / "other.omni", "omni recipe", header, parts)
    with pytest.raises(ValueError, match="another kind"):
        Memory.load(tmp_path / "other.omni", MODEL)
    with pytest.raises(ValueError, match="no file"):
        Memory.load(tmp_path / "none.omni", MODEL)
    (tmp_path / "text.omni").write_text("no memory at all")
    with pytest.raises(ValueError, match="cut off, damaged or no such file"):
        Memory.load(tmp_path / "text.omni", MODEL)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), head=st.booleans(), change=st.integers(1, 255), cut=st.booleans())
def test_a_changed_byte_or_a_cut_file_is_refused(
    file: Path, tmp_path: Path, where: float, head: bool, change: int, cut: bool
) -> None:
    data = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(data[:8], "little")  # of the header
    place = int(where * (length if head else len(data)))
    if cut:
        del data[place:]
    else:
        data[place] ^= change
    (tmp_path / "bad.omni").write_bytes(data)
    with pytest.raises(ValueError, match=r"memory: .*bad.omni"):
        Memory.load(tmp_path / "bad.omni", MODEL)


def test_a_file_that_is_being_written_never_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.omni"

    def stop(stored: Any, part: Path, metadata: Any) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            ingested().save(path)
    assert list(tmp_path.iterdir()) == []
    ingested().save(path)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            ingested(*PARTS[:2]).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["talk.omni"]
    assert path.read_bytes() == old
    with pytest.raises(ValueError, match="cannot be written"):
        ingested(*PARTS[:2]).save(tmp_path / "no" / "talk.omni")


KILLED = """
import os, random, signal, sys, time
import torch
from omni import sealed
path, torch_threads = sys.argv[1], torch.set_num_threads(1)
tensors = {"a": torch.randn(4_000_000), "b": torch.arange(1000)}
sealed.write(path, "test", {"turn": 0}, tensors)
parts = lambda: [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".part")]
for turn in range(12):
    before = set(parts())
    child = os.fork()
    if not child:
        for again in range(1000):
            sealed.write(path, "test", {"turn": again}, tensors)
    while not set(parts()) - before:
        time.sleep(0.001)
    time.sleep(random.Random(turn).uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    header, found = sealed.read(path, "test")
    assert torch.equal(found["a"], tensors["a"])
print("whole every time; left behind:", len(parts()))
"""


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.omni")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    left = int(run.stdout.rsplit(":", 1)[1])
    assert left > 0, "no write was ever cut short, so nothing was tried"
    assert all(path.name.startswith(".a.omni.") for path in tmp_path.iterdir() if path.suffix == ".part")


def test_an_append_that_is_interrupted_leaves_the_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ingested(*PARTS[:4], draft=True)
    before, calls = memory.seen, iter(range(9))
    read = MODEL.backbone.layers[2].forward

    def stop(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(MODEL.backbone.layers[2], "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            memory.append(PROCESSOR.ingest(user(*PARTS[4:], "end " * 200), after=memory.given))
    assert memory.seen is before
    memory.append(PROCESSOR.ingest(user(*PARTS[4:]), after=memory.given))
    same_tokens(answer("Why?", memory, draft=2), answer("Why?", ingested(draft=True), draft=2))


@pytest.mark.parametrize("draft", [False, True])
def test_a_file_weighs_what_the_formula_says(tmp_path: Path, draft: bool) -> None:
    wide = AttentionConfig(heads=4, kv_heads=4, head_dim=32)
    model = ready(config("Omni with MTP", blocks=(small.MAMBA, small.MOE, wide, wide)))
    processor = OmniProcessor.of(model.config, TOKENIZER)
    messages = user("word " * 2635, *(picture(i) for i in range(LOOKS)))
    memory = model.ingest(processor.ingest(messages), draft=draft)
    for kv, size in (("exact", 4), ("bfloat16", 2), ("int8", 1), ("float8", 1)):
        memory.save(tmp_path / f"{kv}.omni", kv=kv)
        found = (tmp_path / f"{kv}.omni").stat().st_size
        assert found == pytest.approx(memory.file_bytes(kv), rel=0.02)
        if not draft:
            assert found == pytest.approx(anatomy(model.config).cache_bytes(memory.tokens, size), rel=0.02)
            assert Memory.load(tmp_path / f"{kv}.omni", model).seen.looks
    if not draft:
        plan = processor.plan(messages)
        assert (tmp_path / "bfloat16.omni").stat().st_size == pytest.approx(plan.cache_bytes, rel=0.02)
        assert memory.nbytes == pytest.approx(anatomy(model.config).cache_bytes(memory.tokens, 4), rel=0.02)


@pytest.mark.parametrize(
    ("kv", "share", "most"), [("bfloat16", 0.5, 0.003), ("float8", 0.25, 0.04), ("int8", 0.25, 0.0065)]
)
def test_fewer_bits_make_it_smaller_by_a_stated_error(tmp_path: Path, kv: Any, share: float, most: float) -> None:
    memory = ingested("word " * 800, picture())
    memory.save(tmp_path / "exact.omni")
    memory.save(tmp_path / "less.omni", kv=kv)
    exact, less = (Memory.load(tmp_path / name, MODEL) for name in ("exact.omni", "less.omni"))
    assert exact.kv_error == 0
    assert 0 < less.kv_error < most
    squares = [0.0, 0.0]
    kept = 0
    for one, other in zip(exact.prefix().state.layers, less.prefix().state.layers, strict=True):
        for name in ("keys", "values"):
            for x, y in zip(getattr(one, name, []), getattr(other, name, []), strict=True):
                squares[0] += float((x - y).double().square().sum())
                squares[1] += float(x.double().square().sum())
                kept += x.nbytes
    assert less.kv_error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-6)
    saved = (tmp_path / "exact.omni").stat().st_size - (tmp_path / "less.omni").stat().st_size
    waiting = exact.nbytes - exact.prefix().state.nbytes  # the last embeddings, then in bfloat16
    assert saved == pytest.approx(kept * (1 - share) + waiting / 2, rel=0.02)
    less.save(tmp_path / "again.omni")
    assert Memory.load(tmp_path / "again.omni", MODEL).kv_error == less.kv_error
    with pytest.raises(ValueError, match="keys and values as 'int3'"):
        memory.save(tmp_path / "x.omni", kv="int3")  # pyright: ignore


def test_the_key_follows_the_content_of_the_media_and_the_model() -> None:
    assert ingested(picture(0)).key == ingested(picture(0)).key
    assert ingested(picture(0)).key != ingested(picture(1)).key
    other = ready(config(), seed=1)
    assert other.ingest(PROCESSOR.ingest(user(picture(0)))).key != ingested(picture(0)).key
    with pytest.raises(ValueError, match="made by hand"):
        _ = MODEL.ingest(small.mixed(1)).key


def test_conversations_are_ingested_one_by_one() -> None:
    both = type(small.sentence(3)).pack([small.sentence(3), small.sentence(4)])
    with pytest.raises(ValueError, match="one by one"):
        MODEL.ingest(both)


def test_settings_may_be_numpys_numbers(tmp_path: Path) -> None:
    made = PROCESSOR.ingest(user(film(4)), context=np.int64(5000), video_pruning_rate=np.float64(0.5))
    plain = PROCESSOR.ingest(user(film(4)), context=5000, video_pruning_rate=0.5)
    memory = MODEL.ingest(made)
    memory.save(tmp_path / "m.omni")
    assert memory.key == MODEL.ingest(plain).key


def test_what_was_made_to_follow_something_else_is_refused() -> None:
    mine, other = ingested(picture(0)), ingested(picture(1))
    question = PROCESSOR.ask("What?", after=other.given)
    for use in (lambda: MODEL.generate(question, 2, memory=mine), lambda: mine.append(question)):
        with pytest.raises(ValueError, match=r"make it with after=memory\.given"):
            use()
    told = MODEL.ingest(PROCESSOR.ingest(user("One.")))
    with pytest.raises(ValueError, match="follow something else"):
        MODEL.generate(PROCESSOR.ask("What?", after=MODEL.ingest(PROCESSOR.ingest(user("Two."))).given), 2, memory=told)
    assert answer("What?", other).tokens
