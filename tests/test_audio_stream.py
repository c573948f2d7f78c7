"""Live sound: streamed = offline under one window, mels and features, however the sound is cut; at constant memory."""

from __future__ import annotations

from math import inf

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from torch import Tensor

from encoders.audio import AudioConfig, ConformerBlock, FastConformer, num_tokens
from encoders.audio_stream import AudioState, AudioStream
from encoders.window import WHOLE, Window
from processors.audio import MelRule, mel_features
from processors.mel_stream import Levels, MelStream

CONFIG = AudioConfig(width=24, depth=3, heads=3, ff_width=32, mels=16, subsampling_channels=4, kernel=5)


def encoder(seed: int = 0) -> FastConformer:
    torch.manual_seed(seed)
    model = FastConformer(CONFIG)
    oracles.randomize(model, seed)
    return model.eval()


ENCODER = encoder()
windows = st.builds(Window, chunk=st.integers(1, 12), left=st.integers(0, 12), ahead=st.integers(0, 2))


def sound(frames: int, seed: int = 1) -> Tensor:
    return torch.randn(frames, 16, generator=torch.Generator().manual_seed(seed + frames))


def offline(mels: Tensor, window: Window) -> Tensor:
    with torch.no_grad():
        return ENCODER(mels, torch.tensor([len(mels)]), window)[0]


def streamed(mels: Tensor, window: Window, sizes: list[int]) -> Tensor:
    """All of a sound, cut into pieces of these sizes again and again."""
    stream = AudioStream(ENCODER, window)
    state = stream.new_state()
    features, at, turn = [], 0, 0
    while at < len(mels):
        size = sizes[turn % len(sizes)]
        features.append(stream(mels[at : at + size], state))
        at, turn = at + size, turn + 1
    features.append(stream(mels[:0], state, last=True))
    assert state.given == num_tokens(len(mels))
    return torch.cat(features)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 300),
    window=windows,
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(any),
)
def test_streamed_equals_offline_under_one_window_for_any_cutting(
    frames: int, window: Window, sizes: list[int]
) -> None:
    mels = sound(frames)
    got = streamed(mels, window, sizes)
    assert relative_error(got, offline(mels, window)) <= 1e-5


def heard_at(i: int, tokens: int, window: Window, layer: int) -> tuple[int, int]:
    """First and last token of i's chunk at a layer: of the c-th, the last is before c * chunk - layer * ahead."""
    first, last = 0, tokens - 1
    for c in range(1, tokens // window.chunk + 1):
        end = c * window.chunk - layer * window.ahead
        if end > i:
            last = end - 1
            break
        first = max(end, 0)
    return first, last


def written_out(mels: Tensor, window: Window) -> Tensor:
    """The encoder under a window, token by token from the definition."""
    x = ENCODER.subsampling(mels, [len(mels)])
    n, width = x.shape
    for layer, block in enumerate(ENCODER.layers):
        assert isinstance(block, ConformerBlock)
        x = x + 0.5 * block.feed_forward1(block.norm_feed_forward1(x))
        attention, normed = block.self_attn, block.norm_self_att(x)
        q, k, v = (p(normed).view(n, 3, 8) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        rows = []
        for i in range(n):
            first, last = heard_at(i, n, window, layer)
            heard = range(max(first - window.left, 0), last + 1)
            scores = []
            for j in heard:
                angles = (i - j) * 10000.0 ** (-torch.arange(0, width, 2) / width)
                wave = torch.stack((angles.sin(), angles.cos()), -1).flatten()
                r = attention.relative_k_proj(wave).view(3, 8)
                scores.append(((q[i] + attention.bias_u) * k[j] + (q[i] + attention.bias_v) * r).sum(-1) / 8**0.5)
            weights = torch.stack(scores).softmax(0)
            rows.append((weights[..., None] * v[list(heard)]).sum(0).flatten())
        x = x + attention.o_proj(torch.stack(rows))
        conv, normed = block.conv, block.norm_conv(x)
        gated = F.glu(F.linear(normed, conv.pointwise_conv1.weight[..., 0]))
        rows = []
        for i in range(n):
            _, last = heard_at(i, n, window, layer + 1)
            taps = [j for j in range(i - 2, i + 3) if 0 <= j <= min(last + window.ahead, n - 1)]
            rows.append(sum(conv.depthwise_conv.weight[:, 0, j - i + 2] * gated[j] for j in taps))
        x = x + F.linear(F.silu(conv.norm(torch.stack(rows))), conv.pointwise_conv2.weight[..., 0])
        x = block.norm_out(x + 0.5 * block.feed_forward2(block.norm_feed_forward2(x)))
    return x


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 180), window=windows)
@torch.no_grad()
def test_the_window_is_what_its_definition_says(frames: int, window: Window) -> None:
    mels = sound(frames)
    torch.testing.assert_close(offline(mels, window), written_out(mels, window), rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(frames=st.integers(1, 200), extra=st.integers(1, 50))
def test_a_chunk_longer_than_the_sound_hears_all_of_it(frames: int, extra: int) -> None:
    mels = sound(frames)
    window = Window(chunk=num_tokens(frames) + extra, left=0, ahead=0)
    assert relative_error(streamed(mels, window, [7]), offline(mels, WHOLE)) <= 1e-5


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), min_size=2, max_size=4), window=windows)
@torch.no_grad()
def test_packed_sounds_under_a_window_equal_each_alone(lengths: list[int], window: Window) -> None:
    sounds = [sound(n, i) for i, n in enumerate(lengths)]
    packed, _ = ENCODER(torch.cat(sounds), torch.tensor(lengths), window)
    assert relative_error(packed, torch.cat([offline(part, window) for part in sounds])) <= 1e-5


@settings(max_examples=15, deadline=None)
@given(window=windows, frames=st.integers(100, 300), heard=st.integers(8, 100))
def test_features_come_within_the_latency_and_later_sound_never_changes_them(
    window: Window, frames: int, heard: int
) -> None:
    stream = AudioStream(ENCODER, window)
    state = stream.new_state()
    early = stream(sound(frames)[:heard], state)
    assert heard // 8 - len(early) < stream.latency
    fork = state.clone()
    one = torch.cat((early, stream(sound(frames)[heard:], state, last=True)))
    another = sound(frames - heard, 7)
    other = torch.cat((early, stream(another, fork, last=True)))  # the fork hears something else
    assert relative_error(one, offline(sound(frames), window)) <= 1e-5
    assert relative_error(other, offline(torch.cat((sound(frames)[:heard], another)), window)) <= 1e-5


def test_the_state_stops_growing() -> None:
    stream = AudioStream(ENCODER, Window(chunk=4, left=16, ahead=2))
    state = stream.new_state()
    sizes = []
    for turn in range(60):
        stream(sound(40, turn), state)
        sizes.append(state.nbytes)
    assert max(sizes[20:]) == max(sizes[10:20])
    kept = sum(part.untyped_storage().nbytes() for m in state.layers for part in (m.keys, m.values, m.gated, m.waiting))
    assert kept < 3 * sizes[-1]  # views hold on to no more than what a step has read


# Mels

VOICE = torch.randn(48000, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.01, 0.2, 48000)


def mels_of(samples: Tensor, levels: Levels, sizes: list[int]) -> Tensor:
    stream = MelStream(levels=levels)
    state = stream.new_state()
    frames, at, turn = [], 0, 0
    while at < len(samples):
        size = sizes[turn % len(sizes)]
        frames.append(stream(samples[at : at + size], state))
        assert len(frames[-1]) % 8 == 0
        at, turn = at + size, turn + 1
    frames.append(stream(samples[:0], state, last=True))
    return torch.cat(frames)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(0, 48000), sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_mels_after_a_warm_up_as_long_as_the_sound_are_those_of_the_whole(length: int, sizes: list[int]) -> None:
    samples = VOICE[:length]
    got = mels_of(samples, Levels(warmup=4.0), [size + 200 for size in sizes])
    want = mel_features(samples) if length >= 160 else torch.zeros(0, 128)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(100, 9000), min_size=1, max_size=5),
    warmup=st.sampled_from([0.1, 0.5, 2.0]),
    half_life=st.sampled_from([0.3, 2.0, inf]),
    frozen=st.booleans(),
)
def test_mels_are_the_same_for_any_cutting(sizes: list[int], warmup: float, half_life: float, frozen: bool) -> None:
    levels = Levels(warmup=warmup, half_life=half_life, frozen=frozen)
    once = mels_of(VOICE, levels, [len(VOICE)])
    assert once.shape == (300, 128)
    torch.testing.assert_close(mels_of(VOICE, levels, sizes), once, rtol=1e-4, atol=1e-4)


def test_levels_are_those_of_the_past_that_counts() -> None:
    """Cumulative: of all frames so far. Frozen: of the warm-up. With a half-life: nearer to the newest."""
    raw = MelStream(levels=Levels(warmup=3.0))
    whole = raw.new_state()
    raw(VOICE, whole, last=True)
    logs = mels_of(VOICE, Levels(warmup=3.0), [len(VOICE)]).double()
    deviation = ((whole.squares - whole.total**2 / 300) / 299).sqrt() + 1e-5
    logs = logs * deviation + whole.total / 300  # back to plain logarithms
    ends = slice(296, 300)
    for levels, counted in (
        (Levels(warmup=0.5), torch.ones(300)),
        (Levels(warmup=0.5, frozen=True), (torch.arange(300) < 48).float()),
    ):
        n = counted.sum()
        mean = (logs * counted[:, None]).sum(0) / n
        std = (((logs - mean) ** 2 * counted[:, None]).sum(0) / (n - 1)).sqrt() + 1e-5
        got = mels_of(VOICE, levels, [4000])[ends]
        torch.testing.assert_close(got, ((logs[ends] - mean) / std).float(), rtol=1e-3, atol=1e-3)
    loud = mels_of(VOICE, Levels(warmup=0.5), [4000])[ends].mean()
    followed = mels_of(VOICE, Levels(warmup=0.5, half_life=0.2), [4000])[ends].mean()
    assert followed.abs() < loud.abs()  # the voice grows louder; a short memory follows it


def test_silence_gives_zeros_and_the_state_stays_small() -> None:
    stream = MelStream(levels=Levels(warmup=1.0))
    state = stream.new_state()
    for _ in range(50):
        frames = stream(torch.zeros(16000), state)
        assert float(frames.abs().max()) < 1e-4 if len(frames) else True
    assert state.given > 4900
    assert len(state.samples) < 800
    assert len(state.logs) < 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(chunk=0, left=3, ahead=0), "at least 1, 0 and 0"),
        (lambda: AudioStream(ENCODER, Window(chunk=4, left=3, ahead=3)), "want at most 2"),
        (lambda: offline(sound(9), Window(chunk=4, left=3, ahead=3)), "want at most 2"),
        (lambda: AudioStream(ENCODER, Window(chunk=4, left=3, ahead=1))(sound(8)[:, :9], new_state()), "encoder of 16"),
        (lambda: AudioStream(ENCODER, Window(chunk=4, left=3, ahead=1))(sound(8), ended()), "after the last"),
        (lambda: Levels(warmup=-1.0), "none negative"),
        (lambda: Levels(half_life=0.0), "above 0"),
        (lambda: Levels(warmup=0.0, frozen=True), "decides alone"),
        (lambda: MelStream(rule=MelRule(extra_frame=True)), "reference rule"),
        (lambda: MelStream()(torch.full((9,), torch.nan), MelStream().new_state()), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def new_state() -> AudioState:
    return AudioStream(ENCODER, Window(chunk=4, left=3, ahead=1)).new_state()


def ended() -> AudioState:
    state = new_state()
    AudioStream(ENCODER, Window(chunk=4, left=3, ahead=1))(sound(8), state, last=True)
    return state
