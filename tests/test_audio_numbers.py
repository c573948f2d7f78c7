"""Sound becomes exactly the mel frames that the released encoder was trained on, whole or in chunks."""

from __future__ import annotations

import resource
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ParakeetFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor

from encoders.audio import num_tokens as encoder_tokens
from processors.audio import (
    REFERENCE,
    TRANSFORMERS,
    VLLM,
    AudioRule,
    Chunk,
    ChunkRule,
    MelRule,
    block_energy,
    chunks,
    features,
    filterbank,
    log_mel,
    mel_features,
    num_frames,
    num_tokens,
)

BLOCK = 1280
SHORT = ChunkRule(longest=3.0, overlap=0.16, search=0.24, pause=0.24)  # cuts a few seconds into many chunks
lengths = st.integers(160, 16000 * 12)


def sound(samples: int, seed: int = 0) -> Tensor:
    """Noise whose loudness and colour change, between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    time = torch.arange(samples) / 16000
    swell = 0.02 + 0.1 * (1 + torch.sin(2 * torch.pi * 0.7 * time))
    return swell * (0.3 * noise + torch.sin(2 * torch.pi * (200 + 90 * time) * time))


def theirs(samples: Tensor) -> tuple[Tensor, int]:
    extractor = ParakeetFeatureExtractor(feature_size=128)
    made = extractor([samples.numpy()], sampling_rate=16000)
    return made["input_features"][0], int(made["attention_mask"][0].sum())


# --- features ---


@pytest.mark.parametrize("samples", [320, 479, 8000, 16000, 16159, 16160, 100_001, 480_000])
def test_features_equal_parakeets(samples: int) -> None:
    wanted, valid = theirs(sound(samples, samples))
    made = mel_features(sound(samples, samples))
    assert made.shape == (valid, 128)
    assert valid == num_frames(samples) == samples // 160
    torch.testing.assert_close(made, wanted[:valid], rtol=0, atol=1e-5)


def test_the_extra_frame_is_parakeets_last() -> None:
    wanted, _ = theirs(sound(16100))
    made = mel_features(sound(16100), TRANSFORMERS.mel)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)
    assert made[-1].eq(0).all()


def test_the_filters_are_slaneys() -> None:
    wanted = mel_filter_bank(257, 128, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filterbank().numpy(), wanted, rtol=1e-6, atol=1e-10)
    low = mel_filter_bank(33, 8, 0.0, 800.0, 1600, norm="slaney", mel_scale="slaney")  # below 1 kHz, linear only
    np.testing.assert_allclose(filterbank(MelRule(rate=1600, fft=64, mels=8)).numpy(), low, rtol=1e-6, atol=1e-10)


def test_a_frame_is_centred_on_its_hop() -> None:
    click = torch.zeros(16000)
    click[160 * 40] = 1.0
    energy = log_mel(click, replace(REFERENCE.mel, preemphasis=0.0)).sum(1)
    assert int(energy.argmax()) == 40
    torch.testing.assert_close(energy[39], energy[41], rtol=0.02, atol=0)  # the window's middle lies between samples


def test_a_tone_stands_in_the_filter_of_its_pitch() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    loudest = log_mel(tone)[50].argmax()
    assert loudest == filterbank()[32].argmax()  # bin 32 of 512 at 16 kHz is 1000 Hz


@settings(deadline=None, max_examples=25)
@given(st.integers(320, 16000), st.integers(1, 130))
def test_features_in_pieces_equal_features_at_once(samples: int, piece: int) -> None:
    heard = sound(samples)
    torch.testing.assert_close(log_mel(heard, piece=piece), log_mel(heard), rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(320, 32000))
def test_each_mel_has_mean_0_and_deviation_1(samples: int) -> None:
    made = mel_features(sound(samples)).double()
    deviation = log_mel(sound(samples)).double().std(0)
    rounding = 4e-6 / (deviation + 1e-5)  # of float32 logarithms up to 17, which a small deviation magnifies
    assert (made.mean(0).abs() < rounding).all()
    assert ((made.std(0) - deviation / (deviation + 1e-5)).abs() < rounding).all()


def test_silence_is_no_error_and_becomes_zeros() -> None:
    for samples in (160, 16000, 16000 * 90):
        assert mel_features(torch.zeros(samples)).eq(0).all()
    assert mel_features(torch.full((16000,), 0.25)).isfinite().all()


def test_a_single_frame_has_no_deviation_and_becomes_zeros() -> None:
    assert torch.equal(mel_features(sound(319)), torch.zeros(1, 128))


def test_features_do_not_depend_on_the_float_type() -> None:
    torch.testing.assert_close(mel_features(sound(16000).double()), mel_features(sound(16000)), rtol=0, atol=1e-6)


def test_short_sounds_are_padded_where_the_rule_says_so() -> None:
    made = mel_features(sound(100), VLLM.mel)
    assert made.shape == (10, 128)
    padded = torch.cat((sound(100), torch.zeros(1500)))
    torch.testing.assert_close(made, mel_features(padded), rtol=0, atol=1e-6)


def test_other_sounds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a sound of 159 samples came; want at least 160, a frame of 10 ms"):
        mel_features(torch.zeros(159))
    with pytest.raises(ValueError, match="a sound of 0 samples"):
        mel_features(torch.zeros(0))
    with pytest.raises(ValueError, match=r"mel_features: float32 of shape \(2, 16000\).*mix channels down"):
        mel_features(torch.zeros(2, 16000))
    with pytest.raises(ValueError, match=r"mel_features: int16 .*scale integers"):
        mel_features(torch.zeros(16000, dtype=torch.int16))
    for wrong in (float("nan"), float("inf"), float("-inf")):
        broken = torch.zeros(1_300_000)
        broken[[1_200_077, 1_200_099]] = wrong
        with pytest.raises(ValueError, match=f"mel_features: sample 1200077 is {wrong}"):
            mel_features(broken)
        with pytest.raises(ValueError, match="block_energy: sample 1200077"):
            block_energy(broken)
        with pytest.raises(ValueError, match="features: sample 1200077"):
            list(features(broken))


# --- counts ---


def test_ten_seconds_are_125_tokens_or_126() -> None:
    assert num_tokens(160_000) == 125
    assert num_tokens(160_000, TRANSFORMERS) == 126


@settings(deadline=None, max_examples=200)
@given(st.integers(160, 10**8))
def test_counts_equal_the_encoders_and_transformers(samples: int) -> None:
    assert num_tokens(samples) == encoder_tokens(num_frames(samples))
    stand_in: Any = SimpleNamespace(audio_hop_length=160, audio_subsampling_factor=8)
    wanted = NemotronH_Omni_Reasoning_V3Processor._estimate_audio_num_embeddings(stand_in, samples)
    assert num_tokens(samples, TRANSFORMERS) == wanted


@settings(deadline=None, max_examples=40)
@given(lengths, st.sampled_from([REFERENCE, TRANSFORMERS, VLLM, AudioRule(chunk=SHORT)]))
def test_counts_are_what_is_made(samples: int, rule: AudioRule) -> None:
    kept = 0
    for chunk, mels in features(sound(samples), rule):
        assert len(mels) == num_frames(chunk.end - chunk.start, rule.mel)
        kept += encoder_tokens(len(mels)) - chunk.trim_start - chunk.trim_end
    assert kept == num_tokens(samples, rule)


@pytest.mark.parametrize(
    ("seconds", "tokens"), [(30.0, 375), (30.1, 377), (30.0001, 377), (60.0, 750), (75.5, 944), (0.01, 2), (0.05, 2)]
)
def test_the_vllm_rule_cuts_hard_at_30_seconds(seconds: float, tokens: int) -> None:
    samples = round(seconds * 16000)
    made = chunks(samples, rule=VLLM)
    assert all(chunk.end - chunk.start == 480_000 for chunk in made[:-1])
    assert all(chunk == Chunk(start=480_000 * i, end=chunk.end) for i, chunk in enumerate(made))
    assert made[-1].end == samples
    assert num_tokens(samples, VLLM) == tokens


# --- chunks ---


def tokens_of(made: list[Chunk], rule: AudioRule) -> list[int]:
    """The tokens of the whole recording's grid that chunks keep, in order."""
    kept: list[int] = []
    for chunk in made:
        assert chunk.start % rule.mel.block == 0
        first = chunk.start // rule.mel.block
        count = encoder_tokens(num_frames(chunk.end - chunk.start, rule.mel))
        kept += range(first + chunk.trim_start, first + count - chunk.trim_end)
    return kept


@st.composite
def rules(draw: st.DrawFn) -> AudioRule:
    overlap, search = draw(st.floats(0, 0.5)), draw(st.floats(0, 0.5))
    longest = 2 * overlap + 6 * search + draw(st.floats(0.6, 4))
    chunk = ChunkRule(longest=longest, overlap=overlap, search=search, pause=draw(st.floats(0, 1)))
    return AudioRule(mel=MelRule(extra_frame=draw(st.booleans())), chunk=chunk)


@settings(deadline=None, max_examples=300)
@given(rules(), st.integers(160, 16000 * 40), st.integers(0, 9))
def test_chunks_keep_every_token_of_the_recording_once(rule: AudioRule, samples: int, seed: int) -> None:
    blocks = -(-samples // BLOCK)
    energy = torch.rand(blocks, generator=torch.Generator().manual_seed(seed))
    made = chunks(samples, energy, rule)
    assert tokens_of(made, rule) == list(range(num_tokens(samples, rule)))
    assert made[0].start == made[0].trim_start == made[-1].trim_end == 0
    assert made[-1].end == samples
    assert rule.chunk.longest is not None
    assert all(chunk.end - chunk.start <= rule.chunk.longest * 16000 + BLOCK for chunk in made)
    assert len(made) == 1 or rule.is_long(samples)
    assert len(made) > 1 or samples <= rule.chunk.longest * 16000 + BLOCK  # less than a token more is not cut off
    overlap = round(rule.chunk.overlap * 12.5)
    before_it = 0  # tokens of the recording before a chunk's own: near its beginning there are fewer than the overlap
    for chunk in made:
        assert chunk.trim_start == min(overlap, before_it)
        before_it += len(tokens_of([chunk], rule))
    extra = int(rule.mel.extra_frame)  # one more token at the end of each chunk
    assert all(chunk.trim_end == overlap + extra for chunk in made[:-1] if chunk.end < samples)
    for before, after in pairwise(made):
        assert after.start < after.start + BLOCK * after.trim_start <= before.end or not overlap


def test_cuts_fall_into_the_pause_nearest_the_even_border() -> None:
    rule = AudioRule(chunk=replace(SHORT, longest=30.0, search=2.0, overlap=1.0))
    samples = 16000 * 40
    heard = sound(samples) + 0.05
    for start in (18.4, 20.5):  # pauses of 0.6 s around the middle, 20 s
        heard[round(16000 * start) : round(16000 * (start + 0.6))] = 0.0
    first, second = chunks(samples, block_energy(heard), rule)
    border = (second.start + BLOCK * second.trim_start) / 16000
    assert border == (first.end - BLOCK * first.trim_end) / 16000
    assert 20.5 < border < 21.1
    assert second.start / 16000 == pytest.approx(border - 1.0, abs=0.081)


def test_a_cut_stands_in_the_middle_of_the_pause() -> None:
    """The border before token t, which is centred on sample 1280 t, lies in the samples of block t - 1."""
    rule = AudioRule(chunk=replace(SHORT, longest=30.0, search=2.0, overlap=1.0, pause=0.4))
    energy = torch.ones(500)
    energy[259:264] = 0.0
    second = chunks(500 * BLOCK, energy, rule)[1]
    assert second.start // BLOCK + second.trim_start == 261 + 1


def test_where_all_is_equally_loud_chunks_are_even() -> None:
    rule = AudioRule(chunk=ChunkRule(longest=60.0, search=2.0, overlap=5.0))
    samples = 16000 * 120
    made = chunks(samples, torch.zeros(1500), rule)
    assert [chunk.start + BLOCK * chunk.trim_start for chunk in made] == [0, 500 * BLOCK, 1000 * BLOCK]


def test_twenty_minutes_are_one_chunk_and_a_sample_more_are_two() -> None:
    limit = 16000 * 1200
    assert chunks(limit) == [Chunk(start=0, end=limit)]
    assert len(chunks(limit + 1, torch.ones(15001))) == 2
    assert chunks(10 * limit, rule=TRANSFORMERS) == [Chunk(start=0, end=10 * limit)]
    with pytest.raises(ValueError, match=r"no energies came for 19200001 samples.*pass the 15001 of block_energy"):
        chunks(limit + 1)
    with pytest.raises(ValueError, match="3 energies came"):
        chunks(limit + 1, torch.ones(3))
    with pytest.raises(ValueError, match="a sound of 5 samples"):
        chunks(5)


def test_a_chunk_hears_what_the_whole_recording_hears() -> None:
    """Before normalisation its frames are the recording's, but for the first two and the last, which are trimmed."""
    rule = AudioRule(chunk=SHORT)
    heard = sound(16000 * 9 + 777)
    whole = log_mel(heard)
    made = list(features(heard, rule))
    assert len(made) > 3
    for chunk, mels in made:
        alone = log_mel(heard[chunk.start : chunk.end])
        assert len(alone) == len(mels)
        there = whole[chunk.start // 160 :][: len(alone)]
        torch.testing.assert_close(alone[2:-2], there[2:-2], rtol=0, atol=2e-5)
        assert chunk.trim_start >= 1 or chunk.start == 0
        assert torch.equal(mels, mel_features(heard[chunk.start : chunk.end]))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30_000), st.integers(1, 9), st.integers(1, 9))
def test_energy_in_pieces_and_parts_equals_energy_at_once(samples: int, piece: int, part: int) -> None:
    heard = sound(samples)
    wanted = torch.stack([block.square().mean() for block in heard.split(BLOCK)])
    torch.testing.assert_close(block_energy(heard, piece=piece), wanted)
    parts = [block_energy(some) for some in heard.split(part * BLOCK)]
    torch.testing.assert_close(torch.cat(parts), wanted)


@pytest.mark.slow
def test_an_hour_of_features_takes_little_more_memory_than_a_chunk() -> None:
    heard = sound(16000).repeat(3600)  # 230 MB
    list(features(heard[: 16000 * 60]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(len(mels) for _, mels in features(heard))
    assert count > 360_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kB; 61 MB of mels a chunk


# --- settings ---


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="twice the overlap and six times the search"):
        ChunkRule(longest=60.0)
    with pytest.raises(ValueError, match="none negative"):
        ChunkRule(overlap=-1.0)
    with pytest.raises(ValueError, match="pad it to at least a frame of 160"):
        AudioRule(chunk=ChunkRule(longest=30.0, quiet=False))


def test_rules_are_plain_values() -> None:
    assert len({REFERENCE, TRANSFORMERS, VLLM}) == 3
    assert MelRule(**asdict(VLLM.mel)) == VLLM.mel
    assert ChunkRule(**asdict(VLLM.chunk)) == VLLM.chunk
