"""The audio tower = transformers' Parakeet encoder.

Packed = alone; blocks and pieces change nothing; memory is linear.
"""

from __future__ import annotations

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from torch import Tensor

from encoders import audio
from encoders.audio import AudioConfig, FastConformer, RelativeAttention, Subsampling, num_tokens

CONFIG = AudioConfig(width=24, depth=2, heads=3, ff_width=32, mels=16, subsampling_channels=4, kernel=5)


def encoder(seed: int = 0) -> FastConformer:
    torch.manual_seed(seed)
    model = FastConformer(CONFIG)
    oracles.randomize(model, seed)
    return model.eval()


def sound(frames: int, seed: int = 1) -> Tensor:
    return torch.randn(frames, 16, generator=torch.Generator().manual_seed(seed + frames))


@torch.no_grad()
def test_two_clips_of_different_lengths_equal_transformers() -> None:
    reference = oracles.audio_model()
    ours = FastConformer(AudioConfig(width=32, depth=2, heads=4, ff_width=48, mels=16, subsampling_channels=8)).eval()
    ours.load_state_dict(reference.state_dict())
    lengths = torch.tensor([85, 131])
    padded = torch.zeros(2, 131, 16)
    padded[0, :85], padded[1] = sound(85), sound(131)
    mask = torch.arange(131)[None] < lengths[:, None]
    want = reference(padded, mask).last_hidden_state
    got, counts = ours(torch.cat((sound(85), sound(131))), lengths)
    assert counts.tolist() == [11, 17]
    assert relative_error(got, torch.cat((want[0, :11], want[1, :17]))) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5))
@torch.no_grad()
def test_packed_sounds_equal_each_alone(lengths: list[int]) -> None:
    model = encoder()
    sounds = [sound(n, i) for i, n in enumerate(lengths)]
    got, counts = model(torch.cat(sounds), torch.tensor(lengths))
    assert counts.tolist() == [num_tokens(n) for n in lengths]
    alone = torch.cat([model(part, torch.tensor([len(part)]))[0] for part in sounds])
    torch.testing.assert_close(got, alone, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 400), piece=st.integers(1, 60), block=st.integers(1, 60))
@torch.no_grad()
def test_pieces_and_blocks_of_any_size_change_nothing(frames: int, piece: int, block: int) -> None:
    model = encoder()
    mels = sound(frames)
    want, _ = model(mels, torch.tensor([frames]))
    for module in model.modules():
        if isinstance(module, Subsampling):
            module.piece = piece
        if isinstance(module, RelativeAttention):
            module.block = block
    got, _ = model(mels, torch.tensor([frames]))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_tokens_are_one_in_eight_frames_rounded_up() -> None:
    assert [num_tokens(n) for n in (1, 8, 9, 16, 17, 1000, 1001)] == [1, 1, 2, 2, 3, 125, 126]


def test_every_weight_learns_and_recomputing_gives_the_same_gradients() -> None:
    model = encoder()
    lengths = torch.tensor([50, 33])
    mels = torch.cat((sound(50), sound(33)))
    grads = []
    for model.checkpoint in (False, True):
        model.zero_grad()
        model(mels, lengths)[0].square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == {name for name, _ in model.named_parameters()}
    for name, grad in grads[0].items():
        assert bool(grad.any()), name
        torch.testing.assert_close(grad, grads[1][name])


def test_training_takes_statistics_of_real_frames_only() -> None:
    model = encoder().train()
    before = model.layers[0].conv.norm.running_mean.clone()  # pyright: ignore  (untyped container)
    model(torch.cat((sound(40), sound(9))), torch.tensor([40, 9]))
    assert not torch.equal(before, model.layers[0].conv.norm.running_mean)  # pyright: ignore  (untyped container)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near_full(dtype: torch.dtype) -> None:
    mels = sound(70)
    want, _ = encoder()(mels, torch.tensor([70]))
    got, _ = encoder().to(dtype)(mels.to(dtype), torch.tensor([70]))
    assert got.dtype == dtype
    assert relative_error(got, want) < 0.03


@torch.no_grad()
def test_many_queries_in_half_precision_attend_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float32 as the usual way, whole and in blocks."""
    mels = sound(3000)
    want, _ = encoder()(mels, torch.tensor([3000]))
    half, (mels, frames) = encoder().bfloat16(), (mels.bfloat16(), torch.tensor([3000]))
    made, _ = half(mels, frames)
    monkeypatch.setattr(RelativeAttention, "block", 150)
    in_blocks, _ = half(mels, frames)
    monkeypatch.setattr(audio, "MANY", 10**9)
    usual, _ = half(mels, frames)
    assert not torch.equal(in_blocks, usual)
    for each in (made, in_blocks):
        assert relative_error(each.float(), want) < 1.5 * relative_error(usual.float(), want) < 0.05


@torch.no_grad()
def test_memory_grows_linearly_with_length() -> None:
    """The scores of 3000 tokens against 3000 keys are never held at once."""
    model = encoder()
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        model(sound(24000), torch.tensor([24000]))
    assert largest < 3 * 3000 * 3000 // 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AudioConfig(width=20, heads=3), "twice the heads"),
        (lambda: AudioConfig(kernel=8), "odd kernel"),
        (lambda: num_tokens(0), "at least one"),
        (lambda: encoder()(sound(9), torch.tensor([8])), "9 frames of 16 mels came"),
        (lambda: encoder()(torch.zeros(9, 12), torch.tensor([9])), "9 frames of 12 mels came"),
        (lambda: encoder()(sound(9), torch.tensor([9, 0])), "at least one"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@torch.no_grad()
def test_no_sound_gives_no_tokens() -> None:
    features, counts = encoder()(torch.zeros(0, 16), torch.zeros(0, dtype=torch.long))
    assert features.shape == (0, 24)
    assert counts.tolist() == []
