"""Generation: cached = uncached, a batch = its members alone, in pieces = whole, streamed = at once."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import small
import talker
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omni import prefill
from omni.answer import Result, Settings
from omni.engine import Engine, Request
from omni.generate import Stream
from omni.model import OmniModel
from omni.prefill import Prefix
from omni.sampling import Sampling
from processors.batch import Batch

WORDS = ["a", "much longer prompt " * 20, "who?", "one two three"]


def one(result: object) -> Result:
    assert isinstance(result, Result)
    return result


def many(results: object) -> list[Result]:
    assert isinstance(results, list)
    return results


def written(model: OmniModel, batch: Batch, **wishes: object) -> tuple[int, ...]:
    return one(model.generate(batch, **wishes)).tokens  # pyright: ignore[reportArgumentType]


def appended(batch: Batch, token: int) -> Batch:
    return Batch(
        tokens=torch.cat((batch.tokens, torch.tensor([token]))),
        lengths=batch.lengths + 1,
        slots=batch.slots,
        media=batch.media,
    )


def run(engine: Engine) -> None:
    while engine.busy:
        engine.step()


@torch.no_grad()
@pytest.mark.parametrize("config", [talker.PLAIN, talker.SEES, talker.DRAFTS])
def test_written_token_by_token_with_a_state_equals_reading_all_anew(config: object) -> None:
    model = talker.talker(config)  # pyright: ignore[reportArgumentType]
    batch = small.mixed(1) if config is talker.SEES else talker.prompt("hello")
    got = one(model.generate(batch, 12, logprobs=True))
    banned = list(model.codec.banned) if model.codec else []
    assert got.logprobs
    assert model.codec
    for i, (token, logprob) in enumerate(zip(got.tokens, got.logprobs, strict=True)):
        logits = model(batch).logits[-1].index_fill(0, torch.tensor(banned, dtype=torch.long), -torch.inf)
        shown = b"".join(map(model.codec.bytes_of, got.tokens[:i])).decode(errors="ignore").strip()
        unwanted = [] if shown else list(model.codec.eos)  # no empty answer
        assert int(logits.index_fill(0, torch.tensor(unwanted, dtype=torch.long), -torch.inf).argmax()) == token
        assert float(logits.log_softmax(-1)[token]) == pytest.approx(logprob, abs=1e-4)
        batch = appended(batch, token)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"choices": ("yes", "<|im_end|>")}, "'<|im_end|>' holds a special token"),
        ({"choices": ("\ud800",)}, "came as choices; want a list of texts"),
        ({"schema": {"const": math.nan}}, "not plain JSON"),
    ],
)
def test_what_no_answer_can_be_is_refused_by_name(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Engine(talker.talker()).submit(talker.prompt("q"), Settings(**wishes))


@pytest.mark.parametrize("wishes", [{}, {"temperature": 0.7}, {"choices": ["yes", "no"]}])
def test_logits_that_are_no_numbers_are_no_answer(wishes: dict[str, object]) -> None:
    model = talker.talker()
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = math.nan
    with pytest.raises(ValueError, match="logits of token 0 are no numbers"):
        written(model, talker.prompt("q"), **wishes)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_writes_what_its_members_write_alone(temperature: float) -> None:
    model = talker.talker(talker.SEES)
    batches = [small.mixed(2), *(talker.prompt(word) for word in WORDS), small.mixed(3)]
    together = many(model.generate(Batch.pack(batches), 20, temperature=temperature, top_p=0.9, seed=7))
    for i, (batch, result) in enumerate(zip(batches, together, strict=True)):
        assert written(model, batch, max_new_tokens=20, temperature=temperature, top_p=0.9, seed=7 + i) == result.tokens


def test_members_that_join_and_leave_change_nobody() -> None:
    model = talker.talker()
    engine, requests = Engine(model), list[Request]()
    for i, word in enumerate(WORDS):  # each joins three steps after the other, and each writes another number of tokens
        requests.append(engine.submit(talker.prompt(word), Settings(max_new_tokens=5 + 7 * (i % 3)), sequence=i))
        for _ in range(3):
            engine.step()
    gone = engine.submit(talker.prompt("never mind"), Settings(max_new_tokens=50))
    engine.step()
    engine.step()
    engine.cancel(gone)
    run(engine)
    for i, (word, request) in enumerate(zip(WORDS, requests, strict=True)):
        assert request.result
        assert written(model, talker.prompt(word), max_new_tokens=5 + 7 * (i % 3)) == request.result.tokens
    assert gone.result
    assert gone.result.stopped == "cancelled"
    assert 0 < len(gone.result.tokens) < 5


def test_a_request_may_be_taken_back_before_it_was_read() -> None:
    engine = Engine(talker.talker(), limit=1)
    first, second, third = (engine.submit(talker.prompt(word), Settings(max_new_tokens=3)) for word in WORDS[:3])
    engine.step()
    engine.cancel(second)
    run(engine)
    assert [request.result and len(request.result.tokens) for request in (first, second, third)] == [3, 0, 3]


def test_no_more_than_the_limit_write_at_once() -> None:
    engine = Engine(talker.talker(), limit=2)
    for word in WORDS:
        engine.submit(talker.prompt(word), Settings(max_new_tokens=4))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine.running))
    assert most == 2


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 700), max_size=4, unique=True))
@torch.no_grad()
def test_a_prompt_in_any_pieces_leaves_the_state_of_the_whole_bit_for_bit(cuts: list[int]) -> None:
    model, batch = talker.talker(), small.sentence(701)
    whole, pieces = Prefix.new(model), Prefix.new(model)
    whole.append(batch, model.embed(batch))
    want = whole.finish(model)
    places = [0, *sorted(cuts), 701]
    for start, end in pairwise(places):
        part = Batch(tokens=batch.tokens[start:end], lengths=torch.tensor([end - start]))
        pieces.append(part, model.embed(part))
        while pieces.advance(model):
            pass
    assert torch.equal(pieces.finish(model), want)
    assert torch.equal(pieces.tokens, batch.tokens)
    follow = small.sentence(1, seed=5)
    assert torch.equal(model(follow, pieces.state).logits, model(follow, whole.state).logits)


@torch.no_grad()
@pytest.mark.parametrize("draft", [False, True])
def test_what_is_settled_early_is_taken_back_at_the_next_line_bit_for_bit(draft: bool) -> None:
    model, batch = talker.talker(talker.DRAFTS if draft else talker.PLAIN), small.sentence(2600)

    def grown(prefix: Prefix, start: int, end: int) -> Prefix:
        part = Batch(tokens=batch.tokens[start:end], lengths=torch.tensor([end - start]))
        prefix.append(part, model.embed(part))
        return prefix

    pieces, ahead = Prefix.new(model, draft), []
    for start, end in pairwise([0, 257, 900, 1024, 1025, 1700, 1960, 2600]):
        grown(pieces, start, end).settle(model)
        ahead.append((pieces.state.lengths[0], pieces.ahead))
        asked, whole = pieces.fork(), grown(Prefix.new(model, draft), 0, end)
        assert torch.equal(asked.finish(model), whole.finish(model))
        with pytest.raises(ValueError, match="no token is unread"):
            asked.finish(model)
        if draft:
            assert asked.drafter
            assert whole.drafter
            assert asked.drafter.last is not None
            assert whole.drafter.last is not None
            assert torch.equal(asked.drafter.last, whole.drafter.last)
            assert asked.drafter.state.lengths == whole.drafter.state.lengths
        follow = small.sentence(1, seed=5)
        assert torch.equal(model(follow, asked.state).logits, model(follow, whole.state).logits)
    assert ahead == [(256, 256), (768, 768), (768, 768), (1024, 0), (1536, 512), (1792, 768), (2560, 512)]


@torch.no_grad()
def test_prefill_in_cells_equals_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = talker.talker(talker.SEES), small.mixed(4)
    want = model(batch).hidden[-1:]
    for line, cell in ((1, 1), (16, 1), (16, 7), (1024, 16)):
        monkeypatch.setattr(prefill, "LINE", line)
        monkeypatch.setattr(prefill, "CELL", cell)
        prefix = Prefix.new(model)
        prefix.append(batch, model.embed(batch))
        torch.testing.assert_close(prefix.finish(model), want, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_read_from_line_to_line_and_then_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = talker.talker(), list[int]()
    read = model.read

    def spy(embeddings: Tensor, *rest: object) -> Tensor:
        rows.append(len(embeddings))
        return read(embeddings, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(model, "read", spy)
    model.generate(small.sentence(2300), 3)
    assert rows == [1024, 1024, 252, 1, 1]
    rows.clear()
    model.generate(small.sentence(2048), 3)
    assert rows == [1024, 1024, 1, 1]
    rows.clear()
    model.generate(small.sentence(2047), 3)
    assert rows == [1024, 256, 256, 256, 255, 1, 1]


def test_the_same_seed_writes_the_same_and_the_result_names_it() -> None:
    model = talker.talker()
    first = one(model.generate(talker.prompt("x"), 20, temperature=1.0))
    again = one(model.generate(talker.prompt("x"), 20, temperature=1.0, seed=first.settings.seed))
    other = one(model.generate(talker.prompt("x"), 20, temperature=1.0))
    assert first.tokens == again.tokens != other.tokens


@pytest.mark.parametrize("draft", [None, 2])
def test_streamed_pieces_are_the_texts(draft: int | None) -> None:
    model = talker.talker(talker.DRAFTS)
    batch = Batch.pack([talker.prompt(word, talker.THINK) for word in WORDS])
    stream = model.generate(batch, 40, temperature=1.0, seed=1, thinking_budget=9, draft=draft, stream=True)
    assert isinstance(stream, Stream)
    texts = Counter[tuple[int, bool]]()
    shown: dict[tuple[int, bool], str] = {}
    for piece in stream:
        texts[piece.sequence, piece.thinking] += 1
        shown[piece.sequence, piece.thinking] = shown.get((piece.sequence, piece.thinking), "") + piece.text
    for i, result in enumerate(stream.results):
        assert shown.get((i, True), "") == result.thinking
        assert shown.get((i, False), "") == result.text
        assert texts[i, False] > 3


def test_a_stream_that_nobody_listened_to_has_its_result() -> None:
    stream = talker.talker().generate(talker.prompt("x"), 5, stream=True)
    assert isinstance(stream, Stream)
    assert len(one(stream.result).tokens) == 5


def wishing(token: int) -> OmniModel:
    """A model that wants to write one token for ever."""
    model = talker.talker()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[token] = 1
        model.head.weight[80] = 0.5
    model.read = lambda embeddings, *rest: torch.ones_like(embeddings)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def test_it_ends_at_an_end_token_or_with_the_last_one_allowed() -> None:
    assert one(wishing(11).generate(talker.prompt("x"))).stopped == "eos"
    assert one(wishing(2).generate(talker.prompt("x"))).tokens == (80, 2)  # never an empty answer
    result = one(wishing(89).generate(talker.prompt("x"), 9))
    assert (result.stopped, result.tokens) == ("length", (89,) * 9)


def test_ids_of_media_are_never_written() -> None:
    model = wishing(18)
    assert written(model, talker.prompt("x"), max_new_tokens=3) == (18, 18, 18)  # a text model's 18 is any other id
    sees = wishing(18)
    sees.codec = talker.talker(talker.SEES).codec
    assert written(sees, talker.prompt("x"), max_new_tokens=3) == (80, 80, 80)
    assert 18 not in written(sees, talker.prompt("x"), max_new_tokens=50, temperature=5.0)


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    model = wishing(89)
    assert written(model, talker.prompt("x"), max_new_tokens=4, repetition_penalty=1.5)[:2] == (89, 89)
    tokens = written(model, talker.prompt("x"), max_new_tokens=4, repetition_penalty=3.0)
    assert tokens[:2] == (89, 80)
    letter = talker.TOKENIZER.decode([89])
    assert written(model, talker.prompt(letter), max_new_tokens=1, repetition_penalty=3.0) == (80,)


def test_results_count_tokens_and_seconds() -> None:
    model = talker.talker(talker.SEES)
    result = one(model.generate(small.mixed(1), 3))
    assert result.prompt_tokens == sum(model.embed(small.mixed(1)).lengths)
    assert result.rounds == len(result.tokens) == 3
    assert math.isclose(
        sum(result.seconds[stage] for stage in ("encode", "prefill", "decode")), result.seconds["all"], rel_tol=0.5
    )
    values = result.to_dict()
    assert values["tokens"] == result.tokens
    assert values["settings"]["sampling"]["temperature"] == 0.0


def test_what_cannot_be_is_refused() -> None:
    model = talker.talker()
    with pytest.raises(ValueError, match="submit them one by one"):
        Engine(model).submit(Batch.pack([talker.prompt("a"), talker.prompt("b")]))
    with pytest.raises(ValueError, match="no multi-token head"):
        model.generate(talker.prompt("a"), draft=2)
    with pytest.raises(ValueError, match="want at least 1"):
        model.generate(talker.prompt("a"), 0)
    with pytest.raises(ValueError, match="empty stop string"):
        model.generate(talker.prompt("a"), stop=["a", ""])
    model.codec = None
    with pytest.raises(ValueError, match="no tokenizer"):
        model.generate(talker.prompt("a"))
    assert Settings(sampling=Sampling(temperature=1.0)).seeded(3).seed is not None


def test_a_request_that_cannot_be_read_or_written_ends_alone_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talker.talker()
    engine = Engine(model)
    first = engine.submit(talker.prompt("a"), Settings(max_new_tokens=9))
    engine.step()
    bad = engine.submit(small.mixed(1), Settings(max_new_tokens=9))  # pictures for a model without sight
    worse = engine.submit(talker.prompt("b"), Settings(max_new_tokens=9, schema={"type": "integer"}))
    last = engine.submit(talker.prompt("c"), Settings(max_new_tokens=9))
    assert worse.writer._matcher
    monkeypatch.setattr(worse.writer._matcher, "consume", lambda token: worse.writer._matcher and broken())
    run(engine)
    for word, request in (("a", first), ("c", last)):
        assert request.result
        assert request.error is None
        assert written(model, talker.prompt(word), max_new_tokens=9) == request.result.tokens
    assert [request.result and request.result.stopped for request in (bad, worse)] == ["cancelled"] * 2
    assert "no vision" in str(bad.error)
    assert "broken" in str(worse.error)


def broken() -> None:
    raise ValueError("broken")


def test_a_stream_raises_a_members_error_once_and_goes_on_with_the_others() -> None:
    model = talker.talker()
    batch = Batch.pack([talker.prompt("a"), small.mixed(1), talker.prompt("c")])
    stream = model.generate(batch, 9, stream=True)
    assert isinstance(stream, Stream)
    with pytest.raises(ValueError, match="no vision"):
        list(stream)
    assert stream.results[0].tokens == written(model, talker.prompt("a"), max_new_tokens=9)
    assert [result.stopped for result in stream.results][1:] == ["cancelled", "length"]
    with pytest.raises(ValueError, match="no vision"):
        model.generate(batch, 9)
