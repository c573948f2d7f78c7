"""Sampling: filters equal transformers', draws and drafts follow the distribution."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omni.sampling import Draft, Sampling, distribution, draw, keep_or_redraw, penalise


def logits(seed: int, size: int = 400) -> Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.2, 3),
    top_k=st.none() | st.integers(2, 300),
    top_p=st.none() | st.floats(0.05, 0.99),
    min_p=st.none() | st.floats(0.001, 0.5),
)
def test_filters_equal_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    want = logits(seed)[None]
    for warper in warpers:
        want = warper(torch.zeros(1, 0, dtype=torch.long), want)
    got = distribution(logits(seed), Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    torch.testing.assert_close(got, want[0].softmax(-1), rtol=1e-4, atol=1e-6)


def test_the_penalty_equals_transformers_and_lowers_what_was_seen() -> None:
    ids = torch.tensor([[3, 7, 7, 200]])
    seen = torch.zeros(400, dtype=torch.bool)
    seen[ids[0]] = True
    want = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits(1)[None].clone())[0]
    assert torch.equal(penalise(logits(1), seen, 1.3), want)
    assert bool((want[ids[0]] < logits(1)[ids[0]]).all())


def test_without_temperature_the_likeliest_is_certain() -> None:
    got = distribution(logits(2), Sampling())
    assert got[logits(2).argmax()] == got.sum() == 1


def frequencies(tokens: list[int], size: int) -> list[int]:
    return torch.bincount(torch.tensor(tokens), minlength=size).tolist()


def fits(tokens: list[int], wanted: Tensor) -> float:
    """The probability that a sample of this distribution lies further off; what cannot come must not."""
    counts = frequencies(tokens, len(wanted))
    assert not any(count for count, share in zip(counts, wanted.tolist(), strict=True) if share == 0)
    pairs = [(count, share) for count, share in zip(counts, wanted.tolist(), strict=True) if share > 0]
    total = sum(share for _, share in pairs)
    return float(chisquare([c for c, _ in pairs], [len(tokens) * s / total for _, s in pairs]).pvalue)


def test_draws_follow_the_distribution() -> None:
    wanted = distribution(logits(3, 12), Sampling(temperature=2.0, top_k=9))
    random = Random(0)
    assert fits([draw(wanted, random) for _ in range(4000)], wanted) > 0.01


@pytest.mark.parametrize("drafting", [1.0, 4.0, None])
def test_drafts_kept_or_drawn_anew_follow_the_distribution(drafting: float | None) -> None:
    wanted = distribution(logits(4, 12), Sampling(temperature=2.0, top_p=0.95))
    other = logits(5, 12) if drafting else logits(4, 12)
    drawn_from = distribution(other, Sampling(temperature=drafting or 0.0))
    random = Random(1)
    drafts = [Draft(draw(drawn_from, random), drawn_from if drafting else None) for _ in range(4000)]
    got = [keep_or_redraw(wanted, draft, random) for draft in drafts]
    assert fits(got, wanted) > 0.01
    kept = sum(token == draft.token for token, draft in zip(got, drafts, strict=True)) / len(got)
    expected = float(torch.minimum(wanted, drawn_from).sum())  # the best that any test can keep
    assert kept == pytest.approx(expected, abs=0.05)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 2.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="want 0 <= temperature"):
            Sampling(**wrong)


def test_nothing_left_to_write_is_an_error() -> None:
    with pytest.raises(ValueError, match="every token is ruled out"):
        distribution(torch.full((5,), -torch.inf), Sampling())


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300, 5e-324])
def test_a_temperature_however_small_leaves_the_likeliest(temperature: float) -> None:
    wild = 100 * logits(3)
    probabilities = distribution(wild, Sampling(temperature=temperature))
    assert float(probabilities[wild.argmax()]) == pytest.approx(1)
    assert not bool(probabilities.isnan().any())


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), -1.0])
def test_a_temperature_that_is_no_number_from_zero_on_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="want 0 <= temperature < inf"):
        Sampling(temperature=temperature)
