"""The scan, the convolution and attention: chunked = whole = step by step, packed = alone, cached = uncached."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omni import ops
from omni.attention import Attention, AttentionConfig, RopeConfig
from omni.backbone import Backbone, BackboneConfig
from omni.mamba import MambaConfig
from omni.moe import MLPConfig, MoEConfig
from omni.state import MambaState

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)


def inputs(
    tokens: int, heads: int = 4, groups: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, heads, 3, generator=g, dtype=torch.float64)
    dt = torch.rand(tokens, heads, generator=g, dtype=torch.float64)
    a = -torch.rand(heads, generator=g, dtype=torch.float64) * 3
    b, c = (torch.randn(tokens, groups, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return x, dt, a, b, c


def recurrence(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t, y_t = h_t C_t, one token after the other."""
    out = []
    per_group = x.shape[1] // b.shape[1]
    for t in range(len(x)):
        bt, ct = b[t].repeat_interleave(per_group, 0), c[t].repeat_interleave(per_group, 0)
        state = (dt[t] * a).exp()[:, None, None] * state + dt[t][:, None, None] * x[t][:, :, None] * bt[:, None, :]
        out.append((state * ct[:, None, :]).sum(-1))
    return torch.stack(out), state


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, chunk=st.integers(1, 50))
def test_scan_in_any_chunks_equals_the_recurrence(lengths: tuple[int, ...], chunk: int) -> None:
    x, dt, a, b, c = inputs(sum(lengths))
    start = torch.randn(len(lengths), 4, 3, 5, dtype=torch.float64)
    y, end = ops.selective_scan(x, dt, a, b, c, start, lengths, chunk)
    parts = [value.split(list(lengths)) for value in (x, dt, b, c)]
    for i, rows in enumerate(y.split(list(lengths))):
        want, last = recurrence(parts[0][i], parts[1][i], a, parts[2][i], parts[3][i], start[i])
        torch.testing.assert_close(rows, want, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(end[i], last, rtol=1e-9, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5).map(tuple))
def test_a_few_steps_equal_the_recurrence_and_leave_the_state_after_each(lengths: tuple[int, ...]) -> None:
    x, dt, a, b, c = inputs(sum(lengths))
    start = torch.randn(len(lengths), 4, 3, 5, dtype=torch.float64)
    y, states = ops.selective_steps(x, dt, a, b, c, start, lengths)
    parts = [value.split(list(lengths)) for value in (x, dt, b, c)]
    for i, rows in enumerate(y.split(list(lengths))):
        for end in range(1, lengths[i] + 1):
            want, last = recurrence(
                parts[0][i][:end], parts[1][i][:end], a, parts[2][i][:end], parts[3][i][:end], start[i]
            )
            torch.testing.assert_close(states[end - 1, i], last, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(rows, want, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(states[-1, i], last, rtol=1e-9, atol=1e-10)


def test_a_scan_forgets_nothing_and_overflows_nowhere_under_extreme_steps() -> None:
    x, _, a, b, c = inputs(300)
    dt = torch.cat((torch.full((150, 4), 1e-9), torch.full((150, 4), 50.0))).double()
    y, end = ops.selective_scan(x, dt, a, b, c, torch.zeros(1, 4, 3, 5).double(), (300,), 128)
    want, last = recurrence(x, dt, a, b, c, torch.zeros(4, 3, 5).double())
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(end[0], last)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS)
def test_the_convolution_of_packed_sequences_equals_torch_on_each(lengths: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=g) for shape in ((sum(lengths), 6), (6, 4), (6,)))
    history = torch.randn(len(lengths), 3, 6, generator=g)
    out, end = ops.causal_conv(x, weight, bias, lengths, history)
    for i, (rows, got) in enumerate(zip(x.split(list(lengths)), out.split(list(lengths)), strict=True)):
        whole = torch.cat((history[i], rows))
        want = torch.nn.functional.conv1d(whole.T[None], weight[:, None], bias, groups=6)[0].T
        torch.testing.assert_close(got, torch.nn.functional.silu(want))
        assert torch.equal(end[i], whole[-3:])


@settings(max_examples=30, deadline=None)
@given(
    past=st.integers(0, 30),
    queries=st.integers(1, 30),
    window=st.none() | st.integers(1, 40),
    block=st.integers(1, 40),
)
def test_attention_equals_its_definition(past: int, queries: int, window: int | None, block: int) -> None:
    g = torch.Generator().manual_seed(2)
    keys = past + queries
    q = torch.randn(queries, 4, 8, generator=g)
    k, v = (torch.randn(2, keys, 8, generator=g) for _ in range(2))
    got = ops.causal_attention(q, k, v, window, block)
    for i in range(queries):
        at = past + i
        seen = range(0 if window is None else max(0, at - window + 1), at + 1)
        for head in range(4):
            scores = (q[i, head] * k[head // 2, seen.start : seen.stop]).sum(-1) / 8**0.5
            want = scores.softmax(-1) @ v[head // 2, seen.start : seen.stop]
            torch.testing.assert_close(got[i, head], want, rtol=1e-4, atol=1e-5)


def test_llama3_scaling_keeps_short_waves_and_slows_long_ones() -> None:
    plain = ops.rope_frequencies(64, 500000.0)
    scaled = ops.rope_frequencies(64, 500000.0, factor=8.0, low=1.0, high=4.0, original=8192)
    waves = 2 * torch.pi / plain
    torch.testing.assert_close(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    torch.testing.assert_close(scaled[waves > 8192], plain[waves > 8192] / 8)
    assert bool((scaled.diff() < 0).all())


BLOCKS = (
    MambaConfig(heads=4, head_dim=6, state=5, groups=2, chunk=7),
    AttentionConfig(heads=4, kv_heads=2, head_dim=8),
    MLPConfig(hidden=20),
    MambaConfig(heads=2, head_dim=6, state=3, groups=1, chunk=4),
    AttentionConfig(heads=2, kv_heads=2, head_dim=6, rope=RopeConfig(theta=100.0), window=9),
    MoEConfig(experts=5, top_k=2, hidden=12, shared=8, latent=6),
)


def backbone(kv_heads: int = 2) -> Backbone:
    torch.manual_seed(0)
    blocks = tuple(
        replace(block, kv_heads=kv_heads) if isinstance(block, AttentionConfig) and block.heads == 4 else block
        for block in BLOCKS
    )
    return Backbone(BackboneConfig(width=16, vocabulary=10, blocks=blocks)).eval()


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
@torch.no_grad()
def test_packed_sequences_equal_each_alone(lengths: tuple[int, ...], seed: int) -> None:
    model = backbone()
    x = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(seed))
    alone = torch.cat([model(rows, (len(rows),)) for rows in x.split(list(lengths))])
    torch.testing.assert_close(model(x, lengths), alone, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    splits=st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=2), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_two_sequences_read_in_any_pieces_equal_both_at_once(splits: list[list[int]], seed: int) -> None:
    model = backbone()
    lengths = tuple(sum(column) for column in zip(*splits, strict=True))
    x = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(seed))
    whole = model(x, lengths)
    state = model.new_state(2)
    done = [0, 0]
    first, second = x.split(list(lengths))
    pieces: list[list[Tensor]] = [[], []]
    for a, b in splits:
        part = torch.cat((first[done[0] : done[0] + a], second[done[1] : done[1] + b]))
        out = model(part, (a, b), state).split([a, b])
        for i, rows in enumerate(out):
            pieces[i].append(rows)
        done = [done[0] + a, done[1] + b]
    assert state.lengths == lengths
    torch.testing.assert_close(torch.cat(pieces[0] + pieces[1]), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_token_by_token_equals_at_once() -> None:
    model = backbone()
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    state = model.new_state(1)
    steps = torch.cat([model(x[t : t + 1], (1,), state) for t in range(20)])
    torch.testing.assert_close(steps, model(x, (20,)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_bfloat16_packed_pieces_and_steps_equal_the_whole_but_for_rounding() -> None:
    """Each way rounds at its own places, and may send a token to another expert: all lie near float32."""
    model = backbone().bfloat16()
    x = torch.randn(37, 16, generator=torch.Generator().manual_seed(8)).bfloat16()
    lengths = (20, 17)
    whole = model(x, lengths)
    assert whole.dtype == torch.bfloat16
    first, second = x.split(list(lengths))
    alone = torch.cat((model(first, (20,)), model(second, (17,))))
    state = model.new_state(1)
    assert [layer.ssm.dtype for layer in state.layers if isinstance(layer, MambaState)] == [torch.float32] * 2
    pieces = torch.cat([model(part, (len(part),), state) for part in first.split([9, 2, 9])])
    state = model.new_state(1)
    steps = torch.cat([model(row[None], (1,), state) for row in first])
    exact = backbone()(x.float(), lengths)
    for made in (whole, alone, pieces, steps):
        wanted = exact[: len(made)]
        assert float((made - wanted).norm() / wanted.norm()) < 0.03


@torch.no_grad()
def test_later_tokens_never_change_earlier_output() -> None:
    model = backbone()
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(6))
    other = x.clone()
    other[17:] = torch.randn(13, 16)
    torch.testing.assert_close(model(x, (30,))[:17], model(other, (30,))[:17])


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    model = backbone().train()
    x = torch.randn(25, 16, generator=torch.Generator().manual_seed(7))
    grads = []
    for model.checkpoint in (False, True):
        model.zero_grad()
        model(x, (10, 15)).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(model.layers.parameters()))  # all but the final norm, which forward leaves out
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fused", [False, True])
def test_after_an_optimizers_step_nothing_old_is_left(fused: bool) -> None:
    """torch does not count what its fused optimizers write."""
    model = small.model(small.FAMILIES["Nano 2"])
    batch = small.sentence(20)
    with torch.no_grad():
        model(batch)
    before = model.identity.fingerprint
    model(batch).logits.square().mean().backward()
    torch.optim.AdamW(model.parameters(), lr=0.3, fused=fused).step()
    with torch.no_grad():
        without = model(batch).logits
    torch.testing.assert_close(without, model(batch).logits.detach(), rtol=1e-4, atol=1e-5)
    assert model.identity.fingerprint != before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionConfig(heads=3, kv_heads=2, head_dim=4), "multiple of kv_heads"),
        (lambda: AttentionConfig(heads=2, kv_heads=2, head_dim=3, rope=RopeConfig()), "odd"),
        (lambda: AttentionConfig(heads=2, kv_heads=2, head_dim=4, window=0), "window 0"),
        (lambda: RopeConfig(theta=-1.0), "theta"),
        (lambda: MambaConfig(heads=3, head_dim=2, groups=2), "multiple of groups"),
        (lambda: MLPConfig(hidden=0), "hidden 0"),
        (lambda: MoEConfig(experts=2, top_k=3, hidden=4), "top 3 of 2"),
        (lambda: MoEConfig(experts=6, top_k=1, hidden=4, groups=4), "groups must divide"),
        (lambda: MoEConfig(experts=6, top_k=3, hidden=4, groups=3, top_groups=1), "choose more groups"),
        (lambda: MoEConfig(experts=6, top_k=3, hidden=4, clamp=7.0), "clamp 7.0 on gated=False"),
        (lambda: BackboneConfig(width=8, vocabulary=4, blocks=()), "0 blocks"),
        (lambda: backbone()(torch.zeros(4, 16), (3,)), "add up"),
        (lambda: backbone()(torch.zeros(4, 16), (3, 1), backbone().new_state(1)), "new_state"),
        (lambda: backbone().new_state(0), "at least one"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_attention_biases_are_used() -> None:
    config = AttentionConfig(heads=2, kv_heads=1, head_dim=4, bias=True)
    assert {name for name, _ in Attention(config, 8).named_parameters()} >= {"q_proj.bias", "o_proj.bias"}
