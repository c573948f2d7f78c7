"""Synthetic speech: voices, the corpus that keeps them, and the tower that learns to spell from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch

from encoders.audio import AudioConfig, FastConformer
from omni.train.audio_tower import (
    SUB,
    AudioReader,
    sound_fields,
    sound_media,
    spelling_loss,
    spelt,
    transcripts,
    word_error_rate,
)
from omni.train.data import corpus, espeak, hearing, sounds
from omni.train.data.corpus import Utterance
from omni.train.data.page import ALPHABET
from omni.train.data.sounds import RATE, Said
from omni.train.data.voices import HELD_OUT, Espeak, everybody, sounding, voices
from omni.train.loop import Run, Schedule

TEXT = "the old window of the house opens"


@dataclass(frozen=True, slots=True)
class Hummer:
    """A voice that needs nothing: a tone for each character, of the character's own pitch."""

    name: str = "espeak hummer"

    def absent(self) -> str | None:
        return None

    def say(self, rng: Random, text: str) -> Said:
        step = int(rng.uniform(0.06, 0.09) * RATE)
        t = np.arange(step) / RATE
        tones = [0.4 * np.sin(2 * np.pi * (0 if c == " " else 300 + 120 * (ord(c) - 97)) * t) for c in text]
        times = tuple((index + 0.5) * step / RATE for index in range(len(text)))
        return Said(samples=np.concatenate(tones).astype(np.float32), text=text, times=times)


@pytest.fixture
def hummed(tmp_path):
    corpus.make(tmp_path, [Hummer()], shards=2, size=5)
    return tmp_path


def test_no_held_out_voice_is_trained_on_and_all_voices_are_one_or_the_other():
    taught, tested = {v.name for v in voices()}, {v.name for v in voices(held_out=True)}
    assert not taught & tested
    assert taught | tested == {v.name for v in everybody()}
    assert tested == HELD_OUT
    assert {name.split()[0] for name in tested} == {"espeak", "flite", "piper"}


@pytest.mark.parametrize("voice", everybody(), ids=lambda voice: voice.name)
def test_characters_are_heard_one_after_the_other_inside_the_sound(voice):
    if reason := voice.absent():
        pytest.skip(reason)  # a voice of the machine that is not installed
    said = voice.say(Random(3), TEXT)
    assert said.text == TEXT
    assert len(said.times) == len(TEXT)
    assert said.times[0] > 0
    assert said.times[-1] < len(said.samples) / RATE
    assert all(a < b for a, b in pairwise(said.times))
    assert said.samples.dtype == np.float32
    assert 0.4 < np.abs(said.samples).max() < 0.6
    start, end = sounding(said.samples)
    assert start - 0.03 < said.times[0] < said.times[-1] < end + 0.03


def test_espeak_places_each_word_where_it_is_heard_alone():
    """Text before a word moves it by as long as that text takes."""
    if reason := Espeak("en-us").absent():
        pytest.skip(reason)  # a voice of the machine that is not installed
    spoken = espeak.engine().speak("en-us", "seven garden seven")
    assert [at for at, _ in spoken.words] == [0, 6, 13]
    first, last = spoken.words[0][1], spoken.words[2][1]
    alone = espeak.engine().speak("en-us", "seven garden")
    assert last - first == pytest.approx(sounding(alone.samples, alone.rate)[1], abs=0.1)


def test_the_same_seed_says_the_same_at_the_same_time_and_another_seed_at_another():
    voice = Espeak("en-us+f2")
    if reason := voice.absent():
        pytest.skip(reason)  # a voice of the machine that is not installed
    once, again, other = (voice.say(Random(seed), TEXT) for seed in (1, 1, 2))
    assert len(once.samples) == pytest.approx(len(again.samples), abs=RATE / 50)
    assert once.times == pytest.approx(again.times, abs=0.02)
    assert once.times != pytest.approx(other.times, abs=0.02)


def test_an_unknown_variant_is_an_error_and_not_another_voice():
    if reason := Espeak("en-us").absent():
        pytest.skip(reason)  # a voice of the machine that is not installed
    with pytest.raises(ValueError, match=r"no voice 'en-us\+nobody'"):
        Espeak("en-us+nobody").say(Random(1), TEXT)


def test_a_corpus_keeps_what_was_said(hummed):
    kept = corpus.load(hummed, [Hummer()])
    assert len(kept) == 10
    rng = Random("1 espeak hummer 1")
    said = Hummer().say(rng, sounds.sentence(rng))
    assert kept[5].text == said.text
    assert np.abs(kept[5].samples / 32768 - said.samples).max() < 1e-4
    assert np.allclose(kept[5].times, said.times, atol=1e-5)


def test_a_corpus_goes_on_where_it_stopped(hummed):
    paths = [corpus.shard_path(hummed, "espeak hummer", number) for number in range(2)]
    whole = [path.read_bytes() for path in paths]
    kept = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    corpus.make(hummed, [Hummer()], shards=2, size=5)
    assert [path.read_bytes() for path in paths] == whole
    assert paths[0].stat().st_mtime_ns == kept


def test_a_corpus_without_a_voice_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no speech of espeak hummer; make it first"):
        corpus.load(tmp_path, [Hummer()])


def test_faster_is_shorter_and_every_character_moves_along(hummed):
    utterance = corpus.load(hummed, [Hummer()])[0]
    plain, fast = hearing.quickened(utterance, 1.0), hearing.quickened(utterance, 1.25)
    assert len(fast.samples) == int(len(plain.samples) / 1.25)
    for (early, a), (late, b) in zip(fast.chars, plain.chars, strict=True):
        assert a == b
        assert early == pytest.approx(late / 1.25, abs=1e-4)


def test_fields_of_a_recording_spell_its_text_and_count_its_tokens(hummed):
    speech = corpus.load(hummed, [Hummer()])
    tower = FastConformer(AudioConfig(width=16, depth=1, heads=2, ff_width=16, subsampling_channels=8))
    for seed in range(12):
        made = hearing.recording(Random(seed), speech)
        assert made.fields is not None
        spelled = "".join(ALPHABET[code - 1] for code in made.fields[:, : sounds.CHARS].reshape(-1) if code)
        assert spelled == made.text
        assert bool((made.fields[:, sounds.CHARS] > 0).any()) == bool(made.tones)
        media = sound_media([made])
        assert tower(media.mels, media.frames)[1].tolist() == [len(made.fields)]


def test_collapse_merges_repeats_and_keeps_letters_with_a_blank_between():
    a, b = 2, 3  # class 1 is the space
    assert spelt([0, a, a, 0, a, b, b, 0, 0, 1, b]) == "aab b"
    assert spelt([0, 0]) == ""


def test_transcripts_are_split_sound_by_sound():
    classes = torch.tensor([9, 9, 0, 0, 0, 10, 0, 0, 26, 0, 16, 0])  # "hi" in two tokens, "yo" in one
    logits = torch.nn.functional.one_hot(classes, 28).float()
    assert transcripts(logits, torch.tensor([2, 1])) == ["hi", "yo"]
    assert word_error_rate(["hi there", "yo"], ["hi", "yo"]) == pytest.approx(1 / 3)


def test_spelling_loss_is_small_only_for_the_right_text():
    classes = torch.tensor([9, 9, 0, 10, 0, 0, 0, 0])
    logits = 12.0 * torch.nn.functional.one_hot(classes, 28)
    right = spelling_loss(logits, torch.tensor([len(classes) // SUB]), ["hi"])
    assert right < 0.01
    assert spelling_loss(logits, torch.tensor([len(classes) // SUB]), ["ho"]) > 3
    assert torch.isfinite(spelling_loss(logits, torch.tensor([2]), [""]))


def test_a_few_steps_lower_the_loss(hummed, tmp_path):
    torch.manual_seed(0)
    speech: tuple[Utterance, ...] = corpus.load(hummed, [Hummer()])
    reader = AudioReader(FastConformer(AudioConfig(width=16, depth=1, heads=2, ff_width=32, subsampling_channels=8)))
    run = Run(reader, Schedule(steps=8, warmup=1, rate=1e-2, matrix_rate=1e-2), tmp_path / "run", "audio tower")
    recordings = [hearing.recording(Random(seed), speech) for seed in range(2)]
    media, fields = sound_media(recordings), sound_fields(recordings)

    def objective(step: int) -> dict[str, torch.Tensor]:
        letters, told, counts = reader(media)
        assert len(told) == len(fields)
        return {"loss": spelling_loss(letters, counts, [each.text for each in recordings])}

    losses = [run.advance(objective)["loss"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
