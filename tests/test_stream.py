"""Live sound: the chunks joined are the recording, whatever carries it."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import made_clips
import numpy as np
import pytest
import torch

from processors.limits import MediaError
from processors.sound import open_sound
from processors.stream import microphone, sound_chunks


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.ogg", "libopus")])
def test_chunks_of_a_pipe_joined_equal_the_file(tmp_path: Path, name: str, codec: str) -> None:
    path = made_clips.clip(tmp_path / name, sound=codec, picture=False, frames=75, rate=48000)
    with path.open("rb") as pipe:
        chunks = list(sound_chunks(pipe, 0.4))
    assert [len(chunk.samples) for chunk in chunks[:-1]] == [6400] * (len(chunks) - 1)
    assert [chunk.start for chunk in chunks] == pytest.approx([0.4 * i for i in range(len(chunks))])
    sound = open_sound(path)
    assert sound is not None
    whole = sound.read()
    joined = torch.cat([chunk.samples for chunk in chunks])
    assert abs(len(joined) - len(whole)) < 400  # priming and padding, which a file's clock cuts away
    best = min(float((joined[s : s + 30000] - whole[:30000]).abs().mean()) for s in range(400))
    assert best < 0.01


def test_raw_pcm_comes_through_a_real_pipe_as_it_is_written() -> None:
    samples = (made_clips.beeps(2.0, 16000) * 32767).astype("<i2")
    read, write = os.pipe()
    go_on = threading.Event()

    def speak() -> None:
        with os.fdopen(write, "wb") as out:
            out.write(samples[:20000].tobytes())
            out.flush()
            go_on.wait(20)
            out.write(samples[20000:].tobytes())

    speaker = threading.Thread(target=speak)
    speaker.start()
    with os.fdopen(read, "rb") as pipe:
        stream = sound_chunks(pipe, 0.1, rate=16000)
        heard = [next(stream)]  # before the rest is said
        go_on.set()
        heard += list(stream)
    speaker.join()
    joined = torch.cat([chunk.samples for chunk in heard]).numpy()
    assert np.abs(joined - samples / 32768).max() < 1e-4


def test_two_channels_are_averaged() -> None:
    left, right = np.full(8000, 8000, "<i2"), np.full(8000, 4000, "<i2")
    pipe = io.BytesIO(np.stack((left, right), 1).tobytes())
    joined = torch.cat([chunk.samples for chunk in sound_chunks(pipe, 0.1, rate=16000, channels=2)])
    assert len(joined) == 8000
    torch.testing.assert_close(joined, torch.full((8000,), 6000 / 32768), rtol=0.01, atol=1e-4)


def test_what_cannot_be_heard_says_so(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="state the PCM's rate"):
        next(sound_chunks(io.BytesIO(b"no sound at all" * 9)))
    with pytest.raises(MediaError, match="holds no sound"):
        next(sound_chunks(io.BytesIO(made_clips.clip(tmp_path / "silent.mkv", sound=None).read_bytes())))
    with pytest.raises(ValueError, match=r"at least 0.01"):
        next(sound_chunks(io.BytesIO(bytes(4000)), 0.001, rate=16000))
    with pytest.raises(MediaError, match="no microphone"):
        next(microphone(name="surely-no-such-device"))
