"""Clips and recordings as items of a conversation: sampled, laid out with their times, made piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from processors import clips, video
from processors.batch import Media
from processors.chat import Item
from processors.container import probe
from processors.image import Grid
from processors.items import Layout, Place, Recording, Samples, positive, sound_media, sound_pieces, told_of
from processors.limits import Limits
from processors.rules import Rules, SoundPlace
from processors.sound import Sound, Tape, open_sound
from processors.source import open_source

NumKept = Callable[[int, int, float], int]
WISHES = (True, False, *get_args(SoundPlace))


@dataclass(slots=True)
class Clip:
    """A video: its sampled frames in tubelets, and its own sound after them or between its segments.

    kept: tokens that pruning leaves of (tubelets, tokens of one, rate). left_out: what the rules pass over unasked.
    """

    name: str
    rules: Rules
    video: clips.Video
    indices: list[int]
    rate: float
    sound: Sound | Samples | None
    kept: NumKept
    left_out: tuple[str, ...] = ()
    kind: str = "video"

    @property
    def grid(self) -> Grid:
        return video.clip_grid(*self.video.size, self.rules.video)

    @property
    def segments(self) -> list[video.Segment]:
        """The whole clip, or the stretches between which its sound is told."""
        whole = self.sound is None or self.rules.sound == "after"
        length = self.rules.segment if not whole else -(-len(self.indices) // 2) * 2
        return list(video.segments(self.indices, max(length, self.rules.video.tubelet_frames), self.rules.video))

    def spans(self) -> list[tuple[int, int]]:
        """The samples of sound told after each segment."""
        if self.sound is None or self.rules.audio is None:
            return []
        if len(self.segments) == 1:
            return [(0, self.sound.samples)]
        starts = [float(self.video.times[segment.indices[0]]) for segment in self.segments]
        return video.interleave(starts, self.sound.samples)

    def sizes(self) -> list[tuple[int, int]]:
        return []

    def layout(self, grids: Sequence[Grid]) -> Layout:
        rules = self.rules.video
        parts: Layout = []
        counts = iter(self._counts())
        spans = self.spans()
        for number, segment in enumerate(self.segments):
            lines = video.tubelet_lines(
                segment.indices,
                clips.average_fps(self.video.times),
                rules,
                times=self._told(segment),
                first=segment.first,
            )
            for line in lines:
                parts += [line + "<img>", Place(kind="tubelet", count=1, tokens=next(counts)), "</img>"]
            if number < len(spans) and spans[number][1] > spans[number][0]:
                parts += self._told_sound(spans[number])
        return parts

    def _told(self, segment: video.Segment) -> list[float] | None:
        """Times where the training clock has no meaning: given frames, and frame rates that vary."""
        times = self.video.times
        even = len(times) < 3 or bool(abs(torch.as_tensor(times).diff().diff()).max() < 0.004)
        if self.video.decoder != "given" and even:
            return None
        return [float(times[index]) for index in segment.indices]

    def _told_sound(self, span: tuple[int, int]) -> Layout:
        rule = self.rules.audio
        assert rule
        source = Samples(torch.zeros(span[1] - span[0]), 16000)  # only its length is asked
        return Recording(self.name, self.rules, source).layout([])

    def _counts(self) -> list[int]:
        """Tokens of each tubelet: exact in sum; how pruning shares them out depends on the pictures."""
        steps = -(-len(self.indices) // self.rules.video.tubelet_frames)
        places = self.grid[0] * self.grid[1] // self.rules.pixels.shuffle**2
        total = self.kept(steps, places, self.rate)
        rest = max(steps - 1, 1)
        later = [(total - places) * (i + 1) // rest - (total - places) * i // rest for i in range(steps - 1)]
        return [places, *later]

    def details(self, grids: Sequence[Grid]) -> dict[str, Any]:
        times = self.video.times
        seconds = [round(float(times[index]), 3) for index in self.indices]
        told = self._told(video.Segment(first=0, indices=tuple(self.indices)))
        told = video.training_times(self.indices, clips.average_fps(times)) if told is None else told
        return {
            "frames": len(self.indices),
            "frames_in_file": len(self.video),
            "true_seconds": seconds,
            "told_seconds": [round(second, 3) for second in told],
            "grid": self.grid,
            "pruning_rate": self.rate,
            "decoder": self.video.decoder,
            "sound": self.rules.sound if self.sound else None,
            "sound_seconds": round(self.sound.samples / 16000, 2) if self.sound else None,
            "sound_spans": [[round(a / 16000, 2), round(b / 16000, 2)] for a, b in self.spans() if b > a],
        }

    def media(self, grids: Sequence[Grid]) -> Media:
        rules, grid = self.rules.video, self.grid
        steps = -(-len(self.indices) // rules.tubelet_frames)
        pixels = self.rules.pixels.patch**2 * 3 * rules.tubelet_frames
        tubelets = torch.empty(steps * grid[0] * grid[1], pixels)
        at = 0
        for part in self._made(self.indices):
            tubelets[at : at + len(part)] = part
            at += len(part)
        assert at == len(tubelets)
        made = Media(
            tubelets=tubelets,
            clips=torch.tensor([[steps, *grid]]),
            rates=torch.tensor([self.rate], dtype=torch.float64),
        )
        spans = [span for span in self.spans() if span[1] > span[0]]
        if not spans or self.sound is None or self.rules.audio is None:
            return made
        samples = self.sound.read()
        with told_of(self.name):
            return Media.pack([made, *(sound_media(samples[a:b], self.rules.audio) for a, b in spans)])

    def _made(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """Tubelets of these frames, a few at a time."""
        return video.tubelet_stream(clips.stream(self.video, indices), self.grid, self.rules.video)

    def pieces(self, frames: int, told: bool = True) -> Iterator[tuple[Layout, Media]]:
        """The clip in stretches of at most so many sampled frames, each with its text, and its sound chunk by chunk
        where it is told; holds one at a time.

        Pruning is left to who reads the pieces: each stretch is a clip of its own. told: its sound too.
        """
        fps, spans = clips.average_fps(self.video.times), self.spans()
        each = self.grid[0] * self.grid[1] // self.rules.pixels.shuffle**2
        tape = Tape(self.sound) if self.sound is not None and told else None
        for number, segment in enumerate(self.segments):
            for part in video.segments(segment.indices, frames, self.rules.video):
                times, first = self._told(part), segment.first + part.first
                lines = video.tubelet_lines(part.indices, fps, self.rules.video, times=times, first=first)
                layout: Layout = []
                for line in lines:
                    layout += [line + "<img>", Place(kind="tubelet", count=1, tokens=each), "</img>"]
                made = torch.cat(list(self._made(part.indices)))
                shape = torch.tensor([[len(lines), *self.grid]])
                rate = torch.tensor([self.rate], dtype=torch.float64)
                yield layout, Media(tubelets=made, clips=shape, rates=rate)
            if tape and number < len(spans) and spans[number][1] > spans[number][0]:
                assert self.sound is not None
                assert self.rules.audio is not None
                with told_of(self.name):
                    yield from sound_pieces(self.sound, tape, *spans[number], self.rules.audio)

    def seconds(self, steps: int) -> float:
        """The true time of the last frame in so many tubelets."""
        frames = min(steps * self.rules.video.tubelet_frames, len(self.indices))
        return float(self.video.times[self.indices[frames - 1]])

    def close(self) -> None:
        self.video.close()


def open_clip(item: Item, rules: Rules, limits: Limits, kept: NumKept) -> Clip:
    """A video file, an animated picture, or frames with their times; sampled as its options or the rules say.

    Options: sampling (a policy or its plain form), or fps, or the times of the frames wanted; sound: True, False or
    its place. Raises ValueError for options that do not fit, MediaError for files.
    """
    options, name, left_out = item.options, item.name, list[str]()
    rate = options.get("pruning_rate", rules.pruning)
    if not isinstance(rate, int | float | np.number) or not 0 <= rate < 1:
        raise ValueError(f"video: {name}: pruning_rate {rate!r:.80} came; want 0 <= rate < 1")
    place = _place(item, rules)
    sound: Sound | Samples | None = None
    if options.get("frames"):
        opened: clips.Video = _given_frames(item, limits)
    else:
        opened = clips.open_video(item.thing, limits)
        if rules.audio is not None and opened.decoder != clips.Animation.decoder:
            if place != "off":
                sound = open_sound(item.thing, limits, with_video=True)
            elif "sound" not in options and probe(open_source(item.thing, limits), limits).sound_rate is not None:
                why = "the rules say off" if rules.preset == "reference" else f"preset {rules.preset}"
                left_out.append(f"{name}: its sound ({why})")
    if sound is not None and rules.audio and sound.samples < rules.audio.mel.hop:
        sound = None
    indices = list(range(len(opened)))  # frames that are given have been chosen already
    if not options.get("frames") or "sampling" in options:
        try:
            fps, times = clips.average_fps(opened.times), opened.times.tolist()
            indices = video.sample(_policy(item, rules), len(opened), fps, times, opened.keys)
        except ValueError as error:
            opened.close()
            raise ValueError(f"video: {name}: {error}") from None
    return Clip(name, replace(rules, sound=place), opened, indices, float(rate), sound, kept, tuple(left_out))


def _place(item: Item, rules: Rules) -> SoundPlace:
    """Where the clip's sound goes: as its option says, else as the rules do."""
    wish = item.options.get("sound", rules.sound)
    if not isinstance(wish, bool | str) or wish not in WISHES:
        wanted = ", ".join(map(str, WISHES))
        raise ValueError(f"video: {item.name}: sound {wish!r:.80} came; want {wanted}")
    if isinstance(wish, bool):
        return "off" if not wish else "after" if rules.sound == "off" else rules.sound
    return next(place for place in get_args(SoundPlace) if place == wish)


def _given_frames(item: Item, limits: Limits) -> clips.FrameList:
    """Frames, or a folder of them, at their times or at a rate."""
    where, frames, given = f"video: {item.name}", item.thing, item.options.get("times")
    if given is None:
        fps, times = positive(where, "fps", item.options["fps"]), None
    else:
        try:
            fps, times = 1.0, [float(second) for second in given]
        except (TypeError, ValueError):
            raise ValueError(f"{where}: times {given!r:.80} came; want the second of each frame") from None
    if isinstance(frames, str | Path):
        return clips.FrameList.from_folder(Path(frames), fps, limits, times)
    return clips.FrameList(list(frames), [i / fps for i in range(len(frames))] if times is None else times, limits)


def _policy(item: Item, rules: Rules) -> video.Sampling:
    """How a file's frames are chosen: as its options say, else as the rules do."""
    options = item.options
    if options.get("frames"):
        return video.policy(options["sampling"])
    chosen = [name for name in ("sampling", "fps", "times") if name in options]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} came; want one of them")
    if chosen == ["fps"]:
        way = rules.sampling if isinstance(rules.sampling, video.Rate) else video.RECIPE
        return replace(way, fps=positive("sample", "fps", options["fps"]))
    if chosen == ["times"]:
        return video.policy({"seconds": options["times"]})
    return video.policy(options["sampling"]) if chosen else rules.sampling


def open_recording(item: Item, rules: Rules, limits: Limits) -> Recording:
    """The sound of a file."""
    if rules.audio is None:
        raise ValueError(f"audio: {item.name}: this model hears nothing; leave sounds out")
    sound = open_sound(item.thing, limits)
    assert sound is not None
    return Recording(item.name, rules, sound)
