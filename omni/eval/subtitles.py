"""Subtitles: what is said in a clip, as its benchmark ships it, and how the question tells it.

Video-MME (arXiv 2405.21075) lists them before the question, all of them or those of the sampled frames;
LongVideoBench (arXiv 2407.15754) puts them between the frames, by time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni.eval.spec import Preprocessing
from processors.clips import average_fps, open_video
from processors.video import RECIPE, policy, sample

TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
SPAN = re.compile(rf"{TIME}\s*-->\s*{TIME}[^\n]*\n(.*?)(?:\n\s*\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """start, end: seconds of the clip."""

    start: float
    end: float
    text: str


def from_srt(path: Path) -> list[Line]:
    """The lines of an SRT file, in order, without tags. Raises ValueError where it holds none."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r", "")
    lines = [
        Line(
            start=_seconds(found[:4]), end=_seconds(found[4:8]), text=" ".join(re.sub("<[^>]*>", "", found[8]).split())
        )
        for found in SPAN.findall(text)
    ]
    if not lines:
        raise ValueError(f"eval: {path} holds no subtitles; want an .srt file")
    return [line for line in lines if line.text]


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, rest = parts
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{rest}")


def from_json(path: Path, start: float, duration: float) -> list[Line]:
    """The lines of LongVideoBench's JSON, in either of its two forms; the clip begins at `start` of the subtitles.

    Raises ValueError where it holds something else.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [_line(each, start, duration) for each in listed]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"eval: {path}: {error!r}; want a list with timestamp and text, or start, end and line"
        ) from None


def _line(each: Mapping[str, Any], start: float, duration: float) -> Line:
    if "timestamp" in each:
        begin, end = each["timestamp"]
        end, text = end if isinstance(end, float) else duration, each["text"]  # an end that is missing
    else:
        begin, end = (_clock(each[name]) for name in ("start", "end"))
        text = each["line"]
    return Line(start=float(begin - start), end=float(end - start), text=str(text))


def _clock(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def sampling(shown: Preprocessing) -> dict[str, Any]:
    """The frames that a spec asks for, as a part's policy. Raises ValueError where it leaves them to the checkpoint."""
    if shown.frames is not None:
        return {"frames": shown.frames}
    if shown.fps is not None:
        return {"fps": shown.fps, "cap": RECIPE.cap}
    raise ValueError("spec: subtitles by frame need the frames; state preprocessing.frames or preprocessing.fps")


def of_frames(lines: Sequence[Line], clip: Path, chosen: Mapping[str, Any]) -> list[Line]:
    """The lines that stand while one of the chosen frames of a clip is seen."""
    film = open_video(clip)
    try:
        rate, times = average_fps(film.times), film.times.tolist()
        moments = [times[i] for i in sample(policy(chosen), len(film), rate, times, film.keys)]
    finally:
        film.close()
    return [line for line in lines if any(line.start <= moment < line.end for moment in moments)]


def moments(shown: Preprocessing, duration: float) -> list[float]:
    """The seconds of the frames, evenly from 0; at most one a second, as the benchmark has it, unless fps is stated."""
    count = int(duration) if shown.fps is None else int(duration * shown.fps)
    most = count if shown.frames is None else shown.frames
    count = max(1, min(count, most))
    return [duration / count * i for i in range(count)]


def interleaved(clip: Mapping[str, Any], lines: Sequence[Line], times: Sequence[float]) -> Iterator[dict[str, Any]]:
    """A clip as stretches of frames with the lines between them, each behind the frames before its middle.

    A line during which no frame is seen is left out; one shorter than a second lasts one. The clip's sound is left out.
    """
    done = 0
    for line in lines:
        middle, half = (line.start + line.end) / 2, max(line.end - line.start, 1.0) / 2
        if not any(middle - half < time < middle + half for time in times):
            continue
        before = done + sum(time <= middle for time in times[done:])
        yield from _stretch(clip, times[done:before])
        yield {"type": "text", "text": f"{line.text}\n"}
        done = before
    yield from _stretch(clip, times[done:])


def _stretch(clip: Mapping[str, Any], times: Sequence[float]) -> Iterator[dict[str, Any]]:
    if times:
        yield {**clip, "times": list(times), "sound": False}
