"""A prompt in pieces is the prompt: clips by stretches, sounds by chunks, decoded when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_clips
import numpy as np
import pytest
import released
import tokens
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from omni.hf import from_hf
from omni.load import OmniProcessor
from processors.ahead import ahead
from processors.audio import ChunkRule
from processors.batch import Batch
from processors.clips import open_video
from processors.items import Samples
from processors.limits import MediaError
from processors.pdf import Pdf
from processors.sound import Tape, open_sound
from processors.video import Rate

TOKENIZER = tokens.tokenizer()
PROCESSOR = OmniProcessor.of(from_hf(released.omni()), TOKENIZER)

CHUNKS = ChunkRule(longest=2.0, overlap=0.2, search=0.1, pause=0.1)


@pytest.mark.parametrize("sound", ["after", "interleaved", "off"])
@pytest.mark.parametrize("frames", [2, 6])
def test_pieces_with_sound_are_the_whole_prompt(tmp_path: Path, sound: Any, frames: int) -> None:
    path = made_clips.clip(tmp_path / "clip.mp4", frames=210, fps=30)
    rules = replace(PROCESSOR.rules, sound=sound, segment=4, sampling=Rate(fps=2.0))
    assert rules.audio
    rules = replace(rules, audio=replace(rules.audio, chunk=CHUNKS))
    processor = OmniProcessor(TOKENIZER, rules, num_kept=PROCESSOR.num_kept)
    messages: Any = [
        {
            "role": "user",
            "content": ["See ", {"type": "video", "path": str(path)}, {"type": "audio", "path": str(path)}, "!"],
        }
    ]
    whole, pieces = processor(messages), list(processor.pieces(messages, frames=frames))
    assert torch.equal(whole_ids(whole), torch.cat([whole_ids(piece.batch) for piece in pieces]))
    for name in ("tubelets", "mels", "trims", "frames"):
        parts = [getattr(piece.batch.media, name) for piece in pieces]
        assert torch.equal(torch.cat([part for part in parts if len(part)]), getattr(whole.media, name))
    assert max(int(piece.batch.media.clips[:, 0].sum()) for piece in pieces) <= frames // 2
    assert max(len(piece.batch.media.frames) for piece in pieces) == 1
    assert len(whole.media.frames) > (0 if sound == "off" else 4)
    times = open_video(path).times
    steps = 0
    for piece in (piece for piece in pieces if piece.seconds is not None):
        assert (piece.item, piece.step) == (0, steps)
        steps += int(piece.batch.media.clips[:, 0].sum())
        assert piece.seconds == times[15 * min(2 * steps - 1, 13)]
    assert [piece.item for piece in pieces][-2:] == [1, None]
    scouts = list(processor.pieces(messages, frames=frames, scout=True, video_pruning_rate=0.5))
    assert [scout.step for scout in scouts] == [piece.step for piece in pieces if piece.seconds is not None]
    assert torch.equal(torch.cat([scout.batch.media.tubelets for scout in scouts]), whole.media.tubelets)
    assert not list(processor.pieces(messages, frames=frames, scout=True, video_pruning_rate=0.0))
    places = sum(item.slots for item in pieces[0].batch.given[0].items)
    assert places == sum(len(piece.batch.slots) for piece in pieces)


def pages(path: Path, count: int) -> Path:
    sheets = [Image.fromarray(np.full((110, 85, 3), 10 * page, np.uint8)) for page in range(count)]
    sheets[0].save(path, save_all=True, append_images=sheets[1:], resolution=10.0)
    return path


def test_a_document_comes_a_few_pages_at_a_time(tmp_path: Path) -> None:
    path = pages(tmp_path / "a.pdf", 9)
    messages: Any = [{"role": "user", "content": [{"type": "document", "path": str(path)}, "Sum?"]}]
    for context, most in ((3000, 4), (60_000, 1)):
        whole, pieces = PROCESSOR(messages, context=context), list(PROCESSOR.stream(messages, context=context))
        assert torch.equal(whole.tokens, torch.cat([piece.tokens for piece in pieces]))
        parts = [piece.media.patches for piece in pieces if len(piece.media.patches)]
        assert torch.equal(torch.cat(parts), whole.media.patches)
        assert max(len(piece.media.grids) for piece in pieces) == most
        assert len(parts) == -(-9 // most)


def test_the_next_page_is_drawn_while_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, render = threading.Semaphore(0), Pdf.render

    def noted(self: Pdf, *size: int) -> np.ndarray:
        drawn.release()
        return render(self, *size)

    monkeypatch.setattr(Pdf, "render", noted)
    messages: Any = [{"role": "user", "content": [{"type": "document", "path": str(pages(tmp_path / "a.pdf", 5))}]}]
    stream = PROCESSOR.stream(messages, context=60_000)
    next(stream)
    assert drawn.acquire(timeout=20)
    assert drawn.acquire(timeout=20)  # the second page, for which nobody has asked
    stream.close()  # and the file is closed behind it


def test_what_fails_ahead_is_raised_where_it_would_have_come() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise MediaError("the third")

    made = ahead(broken())
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(MediaError, match="the third"):
        next(made)
    assert list(ahead(iter([3, 4, 5]))) == [3, 4, 5]


def whole_ids(batch: Batch) -> torch.Tensor:
    """Ids with a placeholder for each item, so that it does not matter how they share slots."""
    counts = torch.ones(len(batch.tokens), dtype=torch.long)
    for slot in batch.slots:
        counts[slot.position] = slot.count
    return batch.tokens.repeat_interleave(counts)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(0, 40000), st.integers(0, 9000)), min_size=1, max_size=6))
def test_a_tape_gives_the_samples_of_the_whole(film_sound: Path, cuts: list[tuple[int, int]]) -> None:
    source = open_sound(film_sound)
    assert source is not None
    whole, tape = source.read(), Tape(source)
    for start, length in sorted(cuts):
        stop = min(start + length, len(whole))
        assert torch.equal(tape.read(start, stop), whole[start:stop])
    array = Samples(np.arange(100, dtype=np.float32), 16000)
    assert Tape(array).read(30, 70).tolist() == list(range(30, 70))


@pytest.fixture(scope="module")
def film_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_clips.clip(tmp_path_factory.mktemp("sound") / "clip.mp4", frames=90, fps=30)


def test_a_sound_without_samples_says_so() -> None:
    empty = Samples(np.zeros(0, np.float32), 16000)
    empty.samples = 10
    with pytest.raises(MediaError, match="cannot be decoded"):
        Tape(empty).read(0, 10)
