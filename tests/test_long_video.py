"""Long video: read stretch by stretch as if at once, asked while it runs, at the memory of a stretch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_clips
import numpy as np
import pytest
import small
import tokens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error

from omni import long_video
from omni.codec import Codec
from omni.load import OmniProcessor
from omni.long_video import Progress, read_long
from omni.memory import Memory
from token_reduction import evs_causal, num_kept

TOKENIZER = tokens.tokenizer()
OMNI = small.FAMILIES["Omni"]
CONFIG = replace(
    OMNI,
    media=replace(OMNI.media, min_patches=4, max_patches=64, clip_patches=16),
    backbone=replace(OMNI.backbone, vocabulary=288),
)
MODEL = small.model(CONFIG)
MODEL.codec = Codec.of(TOKENIZER, CONFIG)
PROCESSOR = OmniProcessor.of(CONFIG, TOKENIZER)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def film(frames: int, rate: float, seed: int = 0) -> dict[str, Any]:
    """Frames of which some parts change and others stay."""
    noise = np.random.default_rng(seed)
    pixels = noise.integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)
    pixels[1:, : noise.integers(0, 48)] = pixels[0, :1, :1]
    return {"type": "video", "frames": list(pixels), "fps": 1.0, "pruning_rate": rate}


def same(one: Memory, other: Memory) -> None:
    """Ids, masks and records are equal, and what comes next is, within rounding."""
    a, b = one.prefix(), other.prefix()
    assert torch.equal(a.tokens, b.tokens)
    assert one.seen.places == other.seen.places
    assert one.seen.kept.keys() == other.seen.kept.keys()
    for number, mask in one.seen.kept.items():
        assert torch.equal(mask, other.seen.kept[number])
    assert one.given.items == other.given.items
    with torch.no_grad():
        assert relative_error(a.finish(MODEL), b.finish(MODEL)) <= 1e-5


@settings(max_examples=12, deadline=None)
@given(
    frames=st.lists(st.integers(1, 13), min_size=1, max_size=2),
    rate=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    segment=st.sampled_from([2, 4, 16]),
    seed=st.integers(0, 9),
)
def test_exact_pruning_in_two_passes_equals_the_clip_read_at_once(
    frames: list[int], rate: float, segment: int, seed: int
) -> None:
    parts = ["Look: ", *(film(n, rate, seed + i) for i, n in enumerate(frames)), film(5, 0.4, seed + 5), "and this"]
    long = read_long(MODEL, PROCESSOR, user(*parts), segment=segment)
    same(long, MODEL.ingest(PROCESSOR.ingest(user(*parts))))


@pytest.mark.parametrize("segment", [2, 4, 16])
def test_sound_between_the_stretches_of_a_pruned_clip_is_heard_in_its_place(segment: int, tmp_path: Path) -> None:
    path = made_clips.clip(tmp_path / "clip.mp4", frames=90, fps=30)
    clip = {"type": "video", "path": str(path), "pruning_rate": 0.5, "fps": 8.0, "sound": "interleaved"}
    same(read_long(MODEL, PROCESSOR, user(clip), segment=segment), MODEL.ingest(PROCESSOR.ingest(user(clip))))


@pytest.mark.parametrize(("held", "passes"), [(long_video.HELD, 1), (0, 2)])
def test_a_short_clip_is_encoded_once_and_a_long_one_twice(
    held: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is read is the same."""
    encode, seen = MODEL.encode, list[int]()
    monkeypatch.setattr(long_video, "HELD", held)
    monkeypatch.setattr(MODEL, "encode", lambda media: seen.append(len(media.clips)) or encode(media))
    long = read_long(MODEL, PROCESSOR, user(film(12, 0.5)), segment=4)
    assert sum(seen) == 3 * passes
    monkeypatch.undo()
    same(long, MODEL.ingest(PROCESSOR.ingest(user(film(12, 0.5)))))


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 16), rate=st.sampled_from([0.3, 0.5, 0.9]), segment=st.sampled_from([2, 4, 16]))
def test_causal_pruning_keeps_what_the_causal_rule_keeps(frames: int, rate: float, segment: int) -> None:
    messages = user(film(frames, rate), film(4, 0.5, 1))
    long = read_long(MODEL, PROCESSOR, messages, segment=segment, evs="causal")
    batch = PROCESSOR.ingest(messages)
    clips = torch.cat((batch.media.clips[:, :1], batch.media.clips[:, 1:] // 2), 1)
    with torch.no_grad():
        whole = MODEL.encode(replace(batch.media, rates=torch.zeros_like(batch.media.rates)))
    want = evs_causal(whole.tubelet, clips, batch.media.rates)
    assert torch.equal(torch.cat([mask.flatten() for mask in long.seen.kept.values()]), want)
    kept = sum(place.tokens for place in long.seen.places)
    shapes = zip(clips.tolist(), (rate, 0.5), strict=True)
    assert kept == sum(num_kept(steps, rows * cols, share) for (steps, rows, cols), share in shapes)


@pytest.mark.parametrize("evs", ["exact", "causal"])
def test_a_question_while_it_runs_sees_what_was_read_and_disturbs_nothing(evs: Any) -> None:
    messages = user("A film: ", film(12, 0.5))
    answers, seconds = [], []

    def look(now: Progress) -> None:
        seconds.append((now.scored, now.piece.seconds))
        if not now.scored:
            question = PROCESSOR.ask("What is seen?", after=now.memory.given, enable_thinking=False)
            answers.append((now.memory.tokens, MODEL.generate(question, memory=now.memory, max_new_tokens=4).tokens))  # pyright: ignore[reportAttributeAccessIssue]  (a Result)

    asked = read_long(MODEL, PROCESSOR, messages, evs=evs, segment=4, progress=look)
    same(asked, read_long(MODEL, PROCESSOR, messages, evs=evs, segment=4))
    stretches = [(False, 3.0), (False, 7.0), (False, 11.0)]
    assert seconds == [(True, second) for _, second in stretches] * (evs == "exact") + stretches
    read = [count for count, _ in answers]
    assert read == sorted(set(read))
    assert read[-1] == asked.tokens
    if evs == "causal":  # what comes later changes nothing of what was read
        begun = {**film(12, 0.5), "frames": film(12, 0.5)["frames"][:4]}
        early = read_long(MODEL, PROCESSOR, user("A film: ", begun), evs=evs)
        question = PROCESSOR.ask("What is seen?", after=early.given, enable_thinking=False)
        assert MODEL.generate(question, memory=early, max_new_tokens=4).tokens == answers[0][1]  # pyright: ignore[reportAttributeAccessIssue]  (a Result)


def test_a_memory_reads_on_and_a_long_read_is_asked_as_any_other() -> None:
    first, second = user("One: ", film(6, 0.5)), user("two: ", film(7, 0.5, 1))
    memory = read_long(MODEL, PROCESSOR, second, memory=read_long(MODEL, PROCESSOR, first, segment=2), segment=4)
    whole = MODEL.ingest(PROCESSOR.ingest(user("One: ", film(6, 0.5), "two: ", film(7, 0.5, 1))))
    assert torch.equal(memory.prefix().tokens, whole.prefix().tokens)
    for number, mask in whole.seen.kept.items():
        assert torch.equal(mask, memory.seen.kept[number])
    answers = [
        MODEL.generate(PROCESSOR.ask("And?", after=m.given), memory=m, max_new_tokens=6).tokens  # pyright: ignore[reportAttributeAccessIssue]  (a Result)
        for m in (memory, whole)
    ]
    assert answers[0] == answers[1]


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="want one of exact, causal"):
        read_long(MODEL, PROCESSOR, user(film(3, 0.5)), evs="later")
    with pytest.raises(ValueError, match="multiple of 2"):
        read_long(MODEL, PROCESSOR, user(film(3, 0.5)), segment=3)


# Memory

NEAR = replace(  # attends to few tokens and keeps all: the same state in less time
    CONFIG,
    backbone=replace(CONFIG.backbone, blocks=(small.MAMBA, small.MOE, replace(small.ATTENTION, window=256), small.MOE)),
)
READ = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_long_video as t
from processors.video import Rate
most, done = 0, threading.Event()
def watch():
    global most
    while not done.wait(0.02):  # what is allocated; VmHWM counts pages of files, which come and go
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        most = max(most, int(status["RssAnon"].split()[0]) * 1024)
watcher = threading.Thread(target=watch)
watcher.start()
messages = t.user({"type": "video", "path": sys.argv[2], "sampling": Rate(fps=1.0, cap=None), "pruning_rate": 0.7})
memory = t.read_long(t.small.model(t.NEAR), t.PROCESSOR, messages)
done.set()
watcher.join()
print(most, memory.nbytes, memory.tokens)
"""


def peak(path: Path) -> tuple[int, int, int]:
    """Most bytes that a process that reads a clip had allocated, the bytes of its memory, and the tokens."""
    run = [sys.executable, "-c", READ, str(Path(__file__).parent), str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    size, held, count = map(int, done.stdout.split())
    return size, held, count


@pytest.mark.slow
def test_an_hour_is_read_at_the_memory_of_five_minutes_and_the_growing_state(tmp_path: Path) -> None:
    short = made_clips.clip(tmp_path / "short.mp4", frames=300, fps=1, sound=None)
    hour = made_clips.clip(tmp_path / "hour.mp4", frames=3600, fps=1, sound=None)
    (size, held, count), (long_size, long_held, long_count) = peak(short), peak(hour)
    assert 11 * count < long_count < 13 * count
    assert long_held - held == (long_count - count) * 128  # 2 * 2 heads of 8 floats; as much unread
    assert long_size - long_held < 1.1 * (size - held)
