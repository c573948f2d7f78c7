"""Speculation: with drafts and without, greedy answers are equal and sampled ones equally distributed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import talker
import torch
from scipy.stats import chi2_contingency

from omni.answer import Result, Settings
from omni.bench_drafts import drafts, questions, report
from omni.engine import Engine
from omni.model import OmniModel
from omni.sampling import Sampling
from omni.speculate import Depth, Drafter
from processors.batch import Batch

PROMPTS = [talker.prompt(word) for word in ("a", "much longer prompt " * 20, "who?")]


def agreeing(depends: float = 0.5) -> OmniModel:
    """A model whose multi-token head often guesses right: the next token depends mostly on the last one."""
    model = talker.talker(talker.DRAFTS, sharp=4.0)
    with torch.no_grad():
        for block in model.backbone.layers:
            for name, value in block.named_parameters():
                if any(part in name for part in ("out_proj", "o_proj", "down_proj", "fc2")):
                    value.mul_(depends)
        assert model.mtp
        model.mtp.eh_proj.weight.zero_()
        model.mtp.eh_proj.weight[:, : model.config.backbone.width] = torch.eye(model.config.backbone.width)
        for name, value in model.mtp.layers.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj", "fc2")):
                value.mul_(depends)
        model.mtp.final_layernorm.weight.copy_(model.backbone.norm_f.weight)
        model.mtp.enorm.weight.fill_(1.0)
        model.head.weight[[2, 11]] = 0  # it does not end early
    return model


def results(model: OmniModel, draft: object, **wishes: object) -> list[Result]:
    made = model.generate(Batch.pack(PROMPTS), draft=draft, **wishes)  # pyright: ignore[reportArgumentType]
    assert isinstance(made, list)
    return made


def test_greedy_answers_are_equal_with_drafts_right_and_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Depth, "of", classmethod(lambda cls, wanted, model: cls(wanted)))  # as for a deep model
    for model, most in ((agreeing(), 0.95), (talker.talker(talker.DRAFTS), 1.0)):
        want = [result.tokens for result in results(model, None, max_new_tokens=40)]
        for draft in (1, 3, 7, "auto"):
            got = results(model, draft, max_new_tokens=40)
            assert [result.tokens for result in got] == want
            assert all(result.rounds <= most * len(result.tokens) for result in got)


def test_members_that_sample_with_drafts_as_many_as_pay_off_write_what_they_write_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Depth, "of", classmethod(lambda cls, wanted, model: cls(wanted, cost=0.02, row=0.05)))
    model = talker.talker(talker.DRAFTS)
    together = results(model, "auto", temperature=1.0, seed=5, max_new_tokens=60)
    for i, (prompt, result) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = model.generate(prompt, temperature=1.0, seed=5 + i, draft="auto", max_new_tokens=60)
        assert isinstance(alone, Result)
        assert alone.tokens == result.tokens
        assert alone.rounds < len(alone.tokens)


def test_drafts_obey_budgets_stops_and_penalties() -> None:
    model = agreeing()
    for wishes in (
        {"thinking_budget": 5, "grace": 2},
        {"repetition_penalty": 1.3},
        {"stop": ["e", "t"]},
        {"logprobs": True},
        {"choices": ["yes", "no"]},
    ):
        batch = talker.prompt("hm", talker.THINK)
        alone = model.generate(batch, 30, **wishes)
        drafted = model.generate(batch, 30, draft=4, **wishes)
        assert isinstance(alone, Result)
        assert isinstance(drafted, Result)
        assert (alone.tokens, alone.text, alone.stopped) == (drafted.tokens, drafted.text, drafted.stopped)
        assert alone.logprobs == (drafted.logprobs and pytest.approx(drafted.logprobs, abs=1e-3))


def test_sampled_answers_are_distributed_as_without_drafts() -> None:
    model, count = agreeing(), 250
    batch = Batch(tokens=PROMPTS[0].tokens[-2:], lengths=torch.tensor([2]))
    seen: dict[int | None, Counter[tuple[int, ...]]] = {}
    for draft in (None, 2):
        engine, sampling = Engine(model, draft), Sampling(temperature=1.0, top_k=3)
        seeds = range(10_000 * bool(draft), 10_000 * bool(draft) + count)
        requests = [engine.submit(batch, Settings(max_new_tokens=3, sampling=sampling, seed=seed)) for seed in seeds]
        while engine.busy:
            engine.step()
        seen[draft] = Counter(request.result.tokens for request in requests if request.result)
    common = [tokens for tokens, count in (seen[None] + seen[2]).items() if count >= 10]
    table = [[seen[draft][tokens] for tokens in common] for draft in (None, 2)]
    rest = [count - sum(row) for row in table]
    table = [[*row, more] for row, more in zip(table, rest, strict=True)] if any(rest) else table
    assert len(common) > 5
    assert chi2_contingency(table).pvalue > 0.01


@torch.no_grad()
def test_the_head_remembers_of_prompt_and_answer_what_it_would_read_at_once() -> None:
    """Its keys after a prompt in cells and an answer with drafts are those of one pass over true hidden states."""
    model = agreeing()
    engine = Engine(model, 3)
    engine.submit(PROMPTS[1], Settings(max_new_tokens=200))
    for _ in range(8):
        engine.step()
    assert engine._drafter
    (request,) = engine.running
    count = engine._drafter.state.lengths[0]
    ids = torch.cat((PROMPTS[1].tokens, torch.tensor(request.writer.tokens)))[: count + 1]
    assert count > len(PROMPTS[1].tokens)
    hidden = model(Batch(tokens=ids, lengths=torch.tensor([len(ids)]))).hidden
    whole = Drafter.new(model)
    whole.follow(model, model.look_up(ids), hidden)
    assert whole.state.lengths == (count,)
    for ours, theirs in zip(engine._drafter.state.layers, whole.state.layers, strict=True):
        if ours is not None and theirs is not None:
            kept, want = ours.keys[0][:, :count], theirs.keys[0][:, :count]  # pyright: ignore[reportAttributeAccessIssue]
            torch.testing.assert_close(kept, want, rtol=1e-3, atol=1e-4)


def test_the_depth_follows_what_is_accepted() -> None:
    good, bad = Depth("auto"), Depth("auto")
    for _ in range(200):
        good.learn(int(good), int(good))
    tried = []
    for _ in range(400):
        tried.append(int(bad))
        bad.learn(int(bad), 0)
    assert int(good) == 7
    assert tried[0] > 1
    assert set(tried[100:]) == {0, 1}  # drafts do not pay, and are tried again now and then
    assert tried[100:].count(1) < 100
    assert [int(Depth(wanted)) for wanted in (None, 0, 4)] == [0, 0, 4]
    with pytest.raises(ValueError, match="want 0 to 7"):
        Depth(8)


def test_a_head_that_is_not_certain_drafts_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no chance to be right is not checked, and behind what is certain another one is drafted."""
    monkeypatch.setattr(Depth, "of", classmethod(lambda cls, wanted, model: cls(wanted, cost=0.02, row=0.3)))
    monkeypatch.setattr(Depth, "__int__", lambda depth: 5)
    model, batch = agreeing(), PROMPTS[0]
    drafted: dict[float, list[int]] = {}
    for sharpness in (0.0, 1.0, 100.0):
        engine, drafts = Engine(model, "auto"), list[int]()
        propose, draft = engine._propose, engine._draft
        monkeypatch.setattr(engine, "_propose", lambda logits, s=sharpness, p=propose: p(logits * s))
        monkeypatch.setattr(
            engine, "_draft", lambda n, d=draft, into=drafts: (found := d(n), into.append(len(found[0])))[0]
        )
        engine.submit(batch, Settings(max_new_tokens=30))
        while engine.busy:
            engine.step()
        drafted[sharpness] = drafts
    assert set(drafted[0.0]) == {0}
    assert set(drafted[100.0]) == {5}
    assert 0 < sum(drafted[1.0]) < 5 * len(drafted[1.0])


def test_the_deeper_the_model_the_longer_the_drafts() -> None:
    shallow, deep = Depth("auto", cost=0.3), Depth("auto", cost=0.02)
    assert 0 < int(shallow) < int(deep)
    assert Depth.of("auto", talker.talker(talker.DRAFTS)).cost == pytest.approx(2 / 3)


def test_the_benchmark_counts_equal_answers_and_what_a_round_writes() -> None:
    model = agreeing()
    rows = drafts(model, PROMPTS, (1, 3), max_new_tokens=20)
    assert [(row.depth, row.equal, row.prompts) for row in rows] == [(1, 3, 3), (3, 3, 3)]
    assert 1 < rows[0].tokens_a_round <= 2
    assert rows[0].tokens_a_round < rows[1].tokens_a_round <= 4
    assert all(0 < row.low <= row.gain <= row.high and row.tokens_a_second > 0 for row in rows)
    assert json.loads(report(rows))["drafts"][1]["equal"] == 3
    assert len(set(questions(40))) == 40
    with pytest.raises(ValueError, match="no prompt came"):
        drafts(model, [])
