"""Videos and sounds: frame, time and sound agree; only the frames wanted are read; what is broken says so."""

from __future__ import annotations

import io
from pathlib import Path

import av
import made_clips
import numpy as np
import pytest
import torch

from processors.clips import FrameList, average_fps, open_video, stream
from processors.container import AvVideo, probe
from processors.limits import Limits, MediaError
from processors.sound import open_sound
from processors.source import open_source

FORMATS = [
    ("mp4", "libx264", "aac", 30),
    ("mp4", "mpeg4", "libmp3lame", 24),
    ("webm", "libvpx-vp9", "libopus", 30),
    ("mkv", "libx264", "libopus", 29.97),
    ("avi", "mpeg4", "pcm_s16le", 60),
]


def onset(sound: torch.Tensor) -> float:
    """The second at which the first beep starts."""
    loud = sound.unfold(0, 80, 16).square().mean(-1).sqrt() > 0.1
    return float(loud.float().argmax()) * 16 / 16000


@pytest.mark.parametrize(("suffix", "codec", "sound", "fps"), FORMATS)
def test_frame_time_and_sound_agree(tmp_path: Path, suffix: str, codec: str, sound: str, fps: float) -> None:
    path = made_clips.clip(tmp_path / f"clip.{suffix}", codec=codec, sound=sound, fps=fps)
    video = open_video(path)
    assert (len(video), video.size) == (60, made_clips.SIZE)
    indices = [0, 7, 33, 59]
    assert [made_clips.number(frame) for frame in video.read(indices)] == indices
    assert np.abs(video.times[indices] - np.array(indices) / fps).max() < 0.5 / fps
    assert average_fps(video.times) == pytest.approx(fps, rel=0.01)
    heard = open_sound(path, with_video=True)
    assert heard is not None
    assert heard.seconds == pytest.approx(60 / fps, abs=0.08)
    samples = heard.read()
    assert len(samples) == heard.samples
    assert onset(samples) == pytest.approx(0.5, abs=1 / fps)
    video.close()


@pytest.mark.parametrize(("suffix", "codec", "sound", "fps"), FORMATS)
def test_frames_that_are_sought_and_met_on_the_way_are_the_same(
    tmp_path: Path, suffix: str, codec: str, sound: str, fps: float
) -> None:
    path = made_clips.clip(tmp_path / f"clip.{suffix}", codec=codec, sound=sound, fps=fps, frames=100)
    video, film = open_video(path), AvVideo(open_source(path))
    assert (video.decoder, film.decoder) == ("decord", "av")
    for indices in ([0, 3, 4, 50, 80, 99], range(100), [97]):
        sought, met = video.read(indices), np.stack(list(film.walk(indices)))
        assert [made_clips.number(frame) for frame in met] == list(indices)
        assert np.array_equal(sought, met)
    assert np.array_equal(film.read([99, 3, 80, 3]), video.read([99, 3, 80, 3]))


@pytest.mark.parametrize(
    ("suffix", "codec"), [("ts", "libx264"), ("mpg", "mpeg2video"), ("flv", "flv"), ("wmv", "wmv2")]
)
def test_where_decord_would_give_other_frames_av_gives_the_right_ones(tmp_path: Path, suffix: str, codec: str) -> None:
    """decord gives frames 32, 39, 59 and 55 of such an MPEG-TS for 0, 7, 33 and 59."""
    video = open_video(made_clips.clip(tmp_path / f"clip.{suffix}", codec=codec, sound=None))
    assert (video.decoder, len(video)) == ("av", 60)
    assert np.abs(video.times - np.arange(60) / 30).max() < 0.002
    for indices in ([0, 7, 33, 59], [45], range(60)):
        assert [made_clips.number(frame) for frame in video.read(indices)] == list(indices)


def test_where_decord_fails_or_sees_other_frames_av_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import decord

    data = made_clips.clip(tmp_path / "clip.mp4", sound=None, ready=True).read_bytes()
    cut = open_video(data[: len(data) * 7 // 10])  # decord counts the frame that the cut goes through
    assert made_clips.number(cut.read([5])[0]) == 5
    assert cut.decoder == "av"
    whole = open_video(data)
    assert (made_clips.number(whole.read([5])[0]), whole.decoder) == (5, "decord")

    def fail(*_: object) -> None:
        raise decord.DECORDError("broken")

    monkeypatch.setattr(decord.VideoReader, "get_batch", fail)
    assert (made_clips.number(whole.read([6])[0]), whole.decoder) == (6, "av")
    with pytest.raises(ValueError, match="asked for"):
        whole.read([60])


def test_a_recording_that_begins_in_the_middle_starts_at_its_first_key_frame(tmp_path: Path) -> None:
    data = made_clips.clip(tmp_path / "clip.ts", sound=None).read_bytes()
    video = open_video(data[len(data) // 3 // 188 * 188 :])
    numbers = [made_clips.number(frame) for frame in video.walk(range(len(video)))]
    assert 0 < numbers[0] < 59
    assert numbers == list(range(numbers[0], 60))
    assert video.keys[0] == 0
    assert np.abs(video.times - np.arange(len(video)) / 30).max() < 0.002


def test_key_frames_are_those_of_the_encoder(tmp_path: Path) -> None:
    path = made_clips.clip(tmp_path / "clip.mkv", codec="mpeg4", group=15, sound=None)
    with av.open(str(path)) as container:
        flags = [frame.key_frame for frame in container.decode(video=0)]
    assert open_video(path).keys == np.flatnonzero(flags).tolist()
    assert len(open_video(path).keys) >= 4


def test_frame_rates_that_vary_keep_their_true_times(tmp_path: Path) -> None:
    video = open_video(made_clips.clip(tmp_path / "clip.mkv", sound="aac", variable=True))
    assert video.times[29] == pytest.approx(29 / 30, abs=0.01)
    assert video.times[59] == pytest.approx((30 + 3 * 29) / 30, abs=0.01)


def test_a_turned_clip_stands_upright(tmp_path: Path) -> None:
    path = made_clips.clip(tmp_path / "clip.mp4", sound=None)
    turned = made_clips.turned(path, tmp_path / "turned.mp4")
    first, second = open_video(turned), AvVideo(open_source(turned))
    assert first.size == second.size == (96, 128)
    assert first.read([5])[0].shape == (128, 96, 3)
    assert np.abs(first.read([37]).astype(int) - second.read([37]).astype(int)).mean() < 4


def test_a_silent_clip_is_no_error_and_a_sound_is_no_clip(tmp_path: Path) -> None:
    silent = made_clips.clip(tmp_path / "silent.mp4", sound=None)
    assert open_sound(silent, with_video=True) is None
    with pytest.raises(MediaError, match="no sound"):
        open_sound(silent)
    audio = made_clips.clip(tmp_path / "sound.m4a", picture=False)
    with pytest.raises(MediaError, match="sound only"):
        open_video(audio)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.wav", "pcm_u8", 8000),
        ("a.wav", "pcm_s16le", 44100),
        ("a.wav", "pcm_s24le", 96000),
        ("a.wav", "pcm_f32le", 16000),
        ("a.mp3", "libmp3lame", 44100),
        ("a.flac", "flac", 48000),
        ("a.ogg", "libopus", 24000),
        ("a.opus", "libopus", 48000),
        ("a.m4a", "aac", 32000),
    ],
)
def test_every_kind_of_sound_becomes_sixteen_kilohertz(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = made_clips.clip(tmp_path / name, sound=codec, rate=rate, picture=False, frames=90)
    sound = open_sound(path)
    assert sound is not None
    samples = sound.read()
    late = 0.025 if name == "a.m4a" else 0  # PyAV's encoder does not tell how much silence it puts before
    assert sound.seconds == pytest.approx(3, abs=1e-4 + 2 * late)
    assert len(samples) == sound.samples
    assert onset(samples) == pytest.approx(0.5, abs=0.006 + late)
    tone = samples[8000 + 2000 : 8000 + 6000] * torch.hann_window(4000)
    assert float(torch.fft.rfft(tone).abs().argmax()) * 16000 / 4000 == pytest.approx(440, abs=4)


def test_bytes_and_files_open_like_paths(tmp_path: Path) -> None:
    data = made_clips.clip(tmp_path / "clip.mp4").read_bytes()
    for thing in (data, io.BytesIO(data)):
        video = open_video(thing)
        assert [made_clips.number(frame) for frame in video.read([9, 41])] == [9, 41]
        sound = open_sound(thing, with_video=True)
        assert sound is not None
        assert onset(sound.read()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("step", [1, 7, 30])
def test_pieces_of_a_stream_equal_all_at_once(tmp_path: Path, step: int) -> None:
    video = open_video(made_clips.clip(tmp_path / "clip.mp4"))
    indices = list(range(0, 60, step))
    assert np.array_equal(np.concatenate(list(stream(video, indices, 4))), video.read(indices))
    given = FrameList([made_clips.numbered(i) for i in range(60)], [i / 30 for i in range(60)])
    assert [made_clips.number(frame) for part in stream(given, indices) for frame in part] == indices


def test_only_frames_far_apart_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = open_video(made_clips.clip(tmp_path / "clip.avi", codec="mpeg4", group=12, sound=None))
    monkeypatch.setattr(video, "read", lambda indices: pytest.fail("sought"))
    assert sum(len(part) for part in stream(video, [0, 5, 14, 59])) == 4
    with pytest.raises(pytest.fail.Exception, match="sought"):
        list(stream(video, [0, 14, 59]))


def test_frames_of_the_users_own_keep_their_times(tmp_path: Path) -> None:
    frames = [made_clips.numbered(i) for i in range(5)]
    given = FrameList(frames, [0.0, 0.5, 2.0, 2.5, 9.0])
    assert (len(given), given.size, given.decoder) == (5, made_clips.SIZE, "given")
    assert [made_clips.number(frame) for frame in given.read([4, 1])] == [4, 1]
    from PIL import Image

    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{9 + i}.png")
    folder = FrameList.from_folder(tmp_path, fps=2.0)
    assert [made_clips.number(frame) for frame in folder.read(range(5))] == [0, 1, 2, 3, 4]
    assert folder.times.tolist() == [0, 0.5, 1, 1.5, 2]
    with pytest.raises(ValueError, match="one rising time"):
        FrameList(frames, [0.0, 1.0])
    with pytest.raises(ValueError, match="frames of 2 sizes came"):
        FrameList([frames[0], frames[1][:50]], [0.0, 1.0]).read([0, 1])
    with pytest.raises(ValueError, match=r"frames .9. asked for"):
        given.read([9])


def test_broken_and_huge_files_are_refused(tmp_path: Path) -> None:
    path = made_clips.clip(tmp_path / "clip.mp4")
    data = path.read_bytes()
    for bad in (data[:200], b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 400):
        with pytest.raises(MediaError):
            open_video(bad)
    with pytest.raises(MediaError, match="the limit is 1 s"):
        open_video(path, Limits(max_seconds=1))
    with pytest.raises(MediaError, match="more than 10 frames"):
        open_video(path, Limits(max_frames=10))
    with pytest.raises(MediaError, match=r"frames of 128x96 pixels, the limit is 9,000; make it smaller"):
        open_video(path, Limits(max_pixels=9000))
    with pytest.raises(MediaError, match="limit is 1 s"):
        open_sound(path, Limits(max_seconds=1))
    assert probe(open_source(path)).has_video


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("share", [0.6, 0.7, 0.8, 0.88])
def test_a_clip_cut_off_at_its_end_gives_what_it_has(tmp_path: Path, suffix: str, codec: str, share: float) -> None:
    path = made_clips.clip(tmp_path / f"clip.{suffix}", codec=codec, sound=None, ready=suffix == "mp4")
    data = path.read_bytes()
    video = open_video(data[: int(len(data) * share)])
    assert 0 < len(video) < 60
    numbers = [made_clips.number(frame) for frame in video.walk(range(len(video)))]
    assert numbers == [round(30 * time) for time in video.times.tolist()]
    assert made_clips.number(video.read([len(video) - 1])[0]) == numbers[-1]


def test_channels_are_averaged_at_any_rate(tmp_path: Path) -> None:
    import wave

    left, right, loud = (np.full(44100, value, "<i2") for value in (9000, 3000, 30000))
    six = (left, right, loud, right, left, right)
    for channels in ((left, right), six, (*six, left, right), (*six, *six, left)):  # mono to 5.1, 7.1 and beyond
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(len(channels))
            file.setsampwidth(2)
            file.setframerate(44100)
            file.writeframes(np.stack(channels, 1).tobytes())
        sound = open_sound(tmp_path / "a.wav")
        assert sound is not None
        want = float(np.mean([channel[0] for channel in channels])) / 32768
        middle = sound.read()[2000:14000]
        torch.testing.assert_close(middle, torch.full((12000,), want), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("rate", [22050, 32000, 44100, 48000, 96000])
def test_what_16_khz_cannot_hold_is_gone_and_the_rest_is_there(tmp_path: Path, rate: int) -> None:
    """Otherwise a tone of 12 kHz would be heard at 4 kHz."""
    import wave

    def heard(hertz: int) -> float:
        tone = np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((16000 * tone).astype("<i2").tobytes())
        sound = open_sound(tmp_path / "a.wav")
        assert sound is not None
        return float(sound.read()[2000:14000].square().mean().sqrt()) / (16000 / 32768 / 2**0.5)

    for hertz in (50, 440, 3000, 6500):
        assert heard(hertz) == pytest.approx(1, abs=0.03)
    for hertz in (9000, 10500, 12000, 15000, 20000, 40000):
        if hertz < rate / 2:
            assert heard(hertz) < 0.002


def test_behind_a_broken_packet_the_sound_goes_on_in_its_place(tmp_path: Path) -> None:
    path = made_clips.clip(tmp_path / "a.m4a", picture=False, frames=120)
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 4, len(data) // 2, 200):
        data[start : start + 40] = b"\xff" * 40
    whole, hurt = open_sound(path), open_sound(bytes(data))
    assert whole is not None
    assert hurt is not None
    assert whole.samples == hurt.samples
    before, after = whole.read(), hurt.read()
    assert not torch.allclose(before[:48000], after[:48000], atol=0.1)
    torch.testing.assert_close(after[50000:], before[50000:], rtol=0, atol=0.1)  # to half a sample; it beeps at 3.5 s


def test_a_sound_may_change_its_rate_on_the_way(tmp_path: Path) -> None:
    parts = [
        made_clips.clip(tmp_path / f"{rate}.mp3", sound="libmp3lame", picture=False, frames=60, rate=rate)
        for rate in (44100, 32000)
    ]
    sound = open_sound(b"".join(part.read_bytes() for part in parts))
    assert sound is not None
    samples = sound.read()
    loud = samples.unfold(0, 800, 800).square().mean(-1).sqrt() > 0.1
    assert int(loud[: 32000 // 800].sum()) == pytest.approx(20, abs=2)  # one second of beeps in two
    assert int(loud[32000 // 800 :].sum()) > 8
    tone = samples[24500:28500] * torch.hann_window(4000)
    assert float(torch.fft.rfft(tone).abs().argmax()) * 4 == pytest.approx(440, abs=4)


def test_a_header_of_twenty_hours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        track = container.add_stream("mpeg4", rate=1)
        track.width, track.height, track.pix_fmt = *made_clips.SIZE, "yuv420p"
        for pts in (0, 20 * 3600):
            frame = av.VideoFrame.from_ndarray(made_clips.numbered(1), format="rgb24")
            frame.pts = pts
            container.mux(track.encode(frame))
        container.mux(track.encode())
    with pytest.raises(MediaError, match="lasts 72001 s, the limit is 43200 s"):
        open_video(path)


@pytest.mark.parametrize("fps", [8, 10, 12.5, 20, 25, 40, 50, 100, 125])
def test_the_average_rate_of_an_even_clip_is_its_rate_at_every_length(fps: float) -> None:
    for base in (1 / 90000, 1 / 1000):
        stamps = np.arange(3000) * round(1 / fps / base)
        for length in range(2, 3000, 7):
            assert average_fps(stamps[:length] * base) == fps
