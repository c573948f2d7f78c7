"""The state: snapshots roll back exactly, forks are apart, join and split undo one another."""

from __future__ import annotations

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan import backbone

from omni.state import KVState, State


def tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_restored_snapshot_continues_as_if_nothing_had_been_read_since() -> None:
    model = backbone()
    state = model.new_state(2)
    model(tokens(30, 1), (20, 10), state)
    snapshot = state.snapshot()
    want = model(tokens(7, 2), (3, 4), state.clone())
    model(tokens(50, 3), (30, 20), state)
    state.restore(snapshot)
    assert state.lengths == (20, 10)
    assert torch.equal(model(tokens(7, 2), (3, 4), state), want)


@torch.no_grad()
def test_a_snapshot_behind_which_a_state_was_rolled_back_is_gone() -> None:
    """Even when as many other tokens were read since, whose keys now stand in its place."""
    model = backbone()
    state = model.new_state(1)
    model(tokens(5, 1), (5,), state)
    early = state.snapshot()
    model(tokens(5, 2), (5,), state)
    late, fork = state.snapshot(), state.clone()
    state.restore(early)
    model(tokens(9, 3), (9,), state)
    with pytest.raises(ValueError, match="newest snapshot first"):
        state.restore(late)
    model(tokens(4, 4), (4,), fork)
    fork.restore(late)  # a fork went another way
    whole = model(torch.cat((tokens(5, 1), tokens(5, 2), tokens(3, 5))), (13,))
    torch.testing.assert_close(model(tokens(3, 5), (3,), fork), whole[10:], rtol=1e-4, atol=1e-5)
    state.restore(early)
    mark = state.snapshot()
    model(tokens(6, 6), (6,), state)
    state.rewind([2])
    state.restore(mark)
    state.forget(0, 2)
    with pytest.raises(ValueError, match="newest snapshot first"):
        state.restore(mark)


@torch.no_grad()
def test_a_fork_does_not_know_what_the_other_read() -> None:
    model = backbone()
    state = model.new_state(1)
    model(tokens(9, 1), (9,), state)
    fork = state.clone()
    model(tokens(5, 2), (5,), fork)
    alone = model.new_state(1)
    model(tokens(9, 1), (9,), alone)
    assert torch.equal(model(tokens(4, 3), (4,), state), model(tokens(4, 3), (4,), alone))


@torch.no_grad()
def test_joined_sequences_equal_each_alone_and_split_undoes_join() -> None:
    model = backbone()
    singles = [model.new_state(1) for _ in range(3)]
    for i, state in enumerate(singles):
        model(tokens(5 + 4 * i, i), (5 + 4 * i,), state)
    joined = State.join([state.clone() for state in singles])
    assert joined.lengths == (5, 9, 13)
    x = tokens(6, 9)
    want = torch.cat([model(rows, (2,), state) for rows, state in zip(x.split(2), singles, strict=True)])
    torch.testing.assert_close(model(x, (2, 2, 2), joined), want, rtol=1e-4, atol=1e-5)
    for part, single in zip(joined.split(), singles, strict=True):
        assert part.lengths == single.lengths
        torch.testing.assert_close(model(x[:1], (1,), part), model(x[:1], (1,), single), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_state_weighs_what_its_sizes_say() -> None:
    model = backbone()
    state = model.new_state(2)
    constant = 2 * model.config.constant_size * 4
    assert state.nbytes == constant
    model(tokens(12, 1), (5, 7), state)
    assert state.nbytes == constant + 12 * model.config.kv_size * 4


@settings(max_examples=15, deadline=None)
@given(reads=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7)), min_size=1, max_size=4))
@torch.no_grad()
def test_tokens_taken_back_leave_the_state_as_if_never_read(reads: list[tuple[int, int]]) -> None:
    model = backbone()
    state, kept = model.new_state(len(reads)), model.new_state(len(reads))
    for each in (state, kept):
        model(tokens(20 * len(reads), 1), (20,) * len(reads), each)
    lengths = tuple(length for length, _ in reads)
    counts = [min(back, length - 1) for length, back in reads]
    x = tokens(sum(lengths), 2)
    model(x, lengths, state)
    state.rewind(counts)
    shorter = tuple(n - count for n, count in zip(lengths, counts, strict=True))
    model(torch.cat([rows[:n] for rows, n in zip(x.split(list(lengths)), shorter, strict=True)]), shorter, kept)
    assert state.lengths == kept.lengths
    x = tokens(len(reads), 3)
    torch.testing.assert_close(
        model(x, (1,) * len(reads), state), model(x, (1,) * len(reads), kept), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_only_the_last_short_read_can_be_taken_back() -> None:
    model = backbone()
    state = model.new_state(1)
    model(tokens(30, 1), (30,), state)
    with pytest.raises(ValueError, match="too many to be traced"):
        state.rewind([1])
    model(tokens(3, 1), (3,), state)
    with pytest.raises(ValueError, match="the last read took"):
        state.rewind([3])
    assert state.lengths == (33,)


@torch.no_grad()
def test_keys_alone_can_be_taken_back_as_far_as_they_go() -> None:
    model = small.model(small.FAMILIES["Llama"])
    state = model.new_state()
    model(small.sentence(20), state)
    for count in (-2, 21):
        with pytest.raises(ValueError, match=rf"\[{count}\] tokens back, \[20\] are held"):
            state.rewind([count])
    state.rewind([20])
    assert torch.equal(model(small.sentence(20), state).logits, model(small.sentence(20)).logits)


@torch.no_grad()
def test_keys_may_be_held_in_another_dtype() -> None:
    model = small.model(small.FAMILIES["Nano 3"])
    state = model.new_state(dtype=torch.bfloat16)
    wanted, made = model(small.sentence(20)).logits, model(small.sentence(20), state).logits
    assert {layer.keys[0].dtype for layer in state.layers if isinstance(layer, KVState)} == {torch.bfloat16}
    assert 0 < float((made - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize("count", [20, 64, 70])
def test_what_was_read_in_inference_mode_goes_on_outside_it(count: int) -> None:
    model = backbone()
    state = model.new_state(1)
    with torch.inference_mode():
        model(tokens(count, 1), (count,), state)
    with torch.no_grad():
        made = model(tokens(3, 2), (3,), state)
        whole = model(torch.cat((tokens(count, 1), tokens(3, 2))), (count + 3,))
    torch.testing.assert_close(made, whole[count:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_members_taken_out_go_on_as_before() -> None:
    model = backbone()
    state = model.new_state(3)
    model(tokens(12, 1), (5, 3, 4), state)
    want = model(tokens(3, 2), (1, 1, 1), state.clone())
    torch.testing.assert_close(model(tokens(3, 2)[[2, 0]], (1, 1), state.take([2, 0])), want[[2, 0]])


def test_what_does_not_fit_is_refused() -> None:
    model = backbone()
    state = model.new_state(1)
    model(tokens(5, 1), (5,), state)
    with pytest.raises(ValueError, match="another state's"):
        state.restore(model.new_state(1).snapshot())
    with pytest.raises(ValueError, match="indices 0 to 0"):
        state.select([1])
    other = backbone(kv_heads=4).new_state(1)
    with pytest.raises(ValueError, match="state of another model"):
        model(tokens(5, 1), (5,), other)
    assert other.lengths == (0,)
    with pytest.raises(ValueError, match="state of another model"):
        model(tokens(5, 1), (5,), State(tuple(reversed(model.new_state(1).layers)), [0]))
    with pytest.raises(ValueError, match="no state"):
        State.join([])
    with pytest.raises(ValueError, match="one model"):
        State.join([state, State((), [0])])
