"""The stage in which the audio tower learns alone, to spell what it hears and to tell which pitch sounds.

Each token of 80 ms emits SUB frames for CTC (Graves et al., 2006), which needs no timing: speech has up to two
characters a token, and twice one character needs a blank between. A second head tells the same tokens' fields as the
renderer knows them (characters about where they are heard, pitch), which finds the alignment sooner. Both heads are
dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from string import ascii_lowercase

import jiwer
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encoders.audio import FastConformer
from omni.train.data import hearing
from omni.train.data.corpus import Utterance
from omni.train.data.example import Recording
from omni.train.data.sounds import CHARS, FIELDS
from omni.train.loop import Run, Schedule, products
from omni.train.readers import field_loss
from omni.train.shape import AUDIO
from processors.audio import mel_features
from processors.batch import Media

SUB = 4  # frames of CTC a token: 50 a second, and speech has up to 25 characters
LETTERS = " " + ascii_lowercase  # class 0 is CTC's blank
CODE = {letter: index + 1 for index, letter in enumerate(LETTERS)}


class AudioReader(nn.Module):
    """An audio tower with a head that spells by CTC and one for the fields of each token."""

    def __init__(self, tower: FastConformer) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(tower.width)
        self.spell_head = nn.Linear(tower.width, SUB * (len(LETTERS) + 1))
        self.field_head = nn.Linear(tower.width, sum(FIELDS))

    def forward(self, media: Media) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of letters (tokens * SUB, letters + 1), of fields (tokens, classes), and the tokens of each sound."""
        with products():
            x, counts = self.tower(media.mels, media.frames)
            x = self.norm(x)
            return self.spell_head(x).unflatten(-1, (SUB, -1)).flatten(0, 1), self.field_head(x), counts


def sound_media(recordings: Sequence[Recording]) -> Media:
    """Recordings → packed mel frames, each normalised by itself as the processor does it."""
    mels = [mel_features(torch.from_numpy(recording.samples)) for recording in recordings]
    return Media(mels=torch.cat(mels), frames=torch.tensor([len(each) for each in mels]))


def sound_fields(recordings: Sequence[Recording]) -> Int[Tensor, "tokens fields"]:
    """Fields of all, packed as their tokens are."""
    return torch.cat([torch.from_numpy(recording.fields) for recording in recordings]).long()


def masked(rng: Random, media: Media, bands: int = 2, width: int = 24, share: float = 0.06) -> Media:
    """Bands of mels and short stretches of time blanked in each sound (SpecAugment, arXiv 1904.08779)."""
    mels = media.mels.clone()
    for sound in mels.split(media.frames.tolist()):
        for _ in range(bands):
            size = rng.randint(0, width)
            first = rng.randint(0, mels.shape[1] - size)
            sound[:, first : first + size] = 0
            size = rng.randint(0, max(1, int(share * len(sound))))
            first = rng.randint(0, len(sound) - size)
            sound[first : first + size] = 0
    return Media(mels=mels, frames=media.frames)


def spelling_loss(
    logits: Float[Tensor, "frames letters"], counts: Int[Tensor, " sounds"], texts: Sequence[str]
) -> Float[Tensor, ""]:
    """CTC's negative log-likelihood a character (a silent sound counts as one)."""
    frames = counts * SUB
    padded = pad_sequence(list(logits.float().log_softmax(-1).split(frames.tolist())))  # (longest, sounds, letters)
    target = torch.tensor([CODE[letter] for text in texts for letter in text], dtype=torch.long)
    lengths = torch.tensor([len(text) for text in texts])
    total = F.ctc_loss(padded, target, frames, lengths, reduction="sum")
    return total / lengths.clamp_min(1).sum()


def spelt(classes: Sequence[int]) -> str:
    """CTC's collapse: repeats become one, blanks nothing."""
    return "".join(LETTERS[index - 1] for index, _ in groupby(classes) if index)


def transcripts(logits: Float[Tensor, "frames letters"], counts: Int[Tensor, " sounds"]) -> list[str]:
    """The likeliest class of each frame, collapsed; one text a sound."""
    best = logits.argmax(-1).split((counts * SUB).tolist())
    return [" ".join(spelt(classes.tolist()).split()) for classes in best]


def word_error_rate(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Words wrong, missing or too many, over the words said."""
    return float(jiwer.wer(list(texts), list(heard)))


def some_recordings(rng: Random, speech: Sequence[Utterance], tokens: int) -> list[Recording]:
    """Recordings of about so many tokens in all, the shortest first, so that equal lengths are encoded together."""
    made: list[Recording] = []
    left = tokens
    while left > 0:
        made.append(hearing.recording(rng, speech))
        left -= len(made[-1].samples) // (hearing.GRID // 8)
    return sorted(made, key=lambda each: len(each.samples))


def examination(reader: AudioReader, speech: Sequence[Utterance], number: int = 120) -> dict[str, float]:
    """Word error rate on held-out speech, as it is and worn, by voice, and the share of right tokens of beeps."""
    rng = Random("audio held out")
    chosen = sorted(rng.sample(range(len(speech)), min(number, len(speech))), key=lambda i: speech[i].voice)
    told = [speech[index] for index in chosen]
    texts = [each.text for each in told]
    parts = [hearing.quickened(each, 1.0) for each in told]
    plain = _read(reader, [hearing.joined(rng, [part], 0.0) for part in parts])
    worn = _read(reader, [hearing.joined(rng, [part]) for part in parts])
    result = {"wer": word_error_rate(texts, plain), "wer_worn": word_error_rate(texts, worn)}
    for voice, group in groupby(zip(told, plain, strict=True), key=lambda pair: pair[0].voice):
        pairs = list(group)
        result[f"wer {voice}"] = word_error_rate([each.text for each, _ in pairs], [heard for _, heard in pairs])
    beeps = [hearing.joined(rng, [hearing.beeped(rng)], 0.6) for _ in range(40)]
    pitch = reader(sound_media(beeps))[1][:, -FIELDS[CHARS] :].argmax(-1)
    result["pitch"] = float((pitch == sound_fields(beeps)[:, CHARS]).float().mean())
    return {name: round(value, 4) for name, value in result.items()}


def _read(reader: AudioReader, recordings: Sequence[Recording]) -> list[str]:
    logits, _, counts = reader(sound_media(recordings))
    return transcripts(logits, counts)


def audio(
    folder: Path,
    taught: Sequence[Utterance],
    tested: Sequence[Utterance],
    *,
    steps: int = 4000,
    tokens: int = 700,
    seed: int = 1,
    quiet: bool = False,
) -> AudioReader:
    """The audio tower alone, on what voices said; `tested` are utterances of voices that it never learns from."""
    torch.manual_seed(seed)
    reader = AudioReader(FastConformer(AUDIO))
    run = Run(reader, Schedule(steps=steps, matrix_rate=3e-3), folder, "audio tower")
    run.resume()

    def objective(step: int) -> dict[str, Tensor]:
        rng = Random(f"{seed} audio {step}")
        recordings = some_recordings(rng, taught, tokens)
        letters, fields, counts = reader(masked(rng, sound_media(recordings)))
        losses = {
            "spelling": spelling_loss(letters, counts, [each.text for each in recordings]),
            "fields": field_loss(fields, sound_fields(recordings), FIELDS),
        }
        return {"loss": losses["spelling"] + 0.5 * losses["fields"], **losses}

    run.train(objective, evaluate=lambda: examination(reader, tested), evaluate_every=250, quiet=quiet)
    return reader
