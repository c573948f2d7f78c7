"""What benchmarks measure and say: seconds of runs, memory of the process, a comparison, the JSON line at the end."""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds of ours and theirs, medians; ratio: theirs / ours (above 1: ours is faster).

    theirs: None where they were left out, for the reason in the note.
    """

    name: str
    ours: float
    theirs: float | None
    spread: float
    note: str

    @property
    def ratio(self) -> float | None:
        """Theirs over ours."""
        return None if self.theirs is None else self.theirs / self.ours


def timed(run: Callable[[], Any], repeats: int, warm: bool = True) -> list[float]:
    """Seconds of each run, after one to warm up."""
    if warm:
        run()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def spread(*runs: list[float]) -> float:
    """(max - min) / median, the largest of all."""
    return max((max(times) - min(times)) / statistics.median(times) for times in runs)


def resident() -> tuple[int, int]:
    """Bytes that this process holds in memory now, and the most it has held."""
    file = Path("/proc/self/status")
    if not file.is_file():
        return largest(), largest()
    status = dict(row.split(":", 1) for row in file.read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def largest() -> int:
    """The most bytes held, as getrusage has it: on Linux, at least what the process that started this one held then."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Bytes that can be had without swapping; of all memory where the system does not say."""
    file = Path("/proc/meminfo")
    if file.is_file():
        known = dict(row.split(":", 1) for row in file.read_text().splitlines())
        if "MemAvailable" in known:
            return int(known["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, warm: bool = True
) -> tuple[float, float, float]:
    """Median seconds of each, run in turns after a warm-up; and the larger spread (max - min over the median)."""
    if warm:
        ours()
        theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, into in ((ours, times[0]), (theirs, times[1])):
            start = time.perf_counter()
            run()
            into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1]), spread(*times)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For a table: name, ours, theirs, ratio, spread, note; what was left out is empty."""
    found: list[tuple[str, ...]] = []
    for r in results:
        theirs, ratio = ("" if value is None else f"{value:.2f}" for value in (r.theirs, r.ratio))
        found.append((r.name, f"{r.ours:.2f}", theirs, ratio, f"{r.spread:.0%}", r.note))
    return found


def numbers(option: str, text: str) -> list[int]:
    """Positive whole numbers with commas between; none of an empty text. Raises ValueError for others."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option}: {text!r} came; want positive whole numbers with commas between, such as 1,2,4")
    return [int(part) for part in parts]


def comparisons(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For the line: each with its ratio."""
    return [{**asdict(each), "ratio": None if each.ratio is None else round(each.ratio, 2)} for each in results]


def line(**values: Any) -> str:
    """One JSON line: values, then the peak of this process's memory and its threads; numbers that are none are null."""
    now, peak = resident()
    values |= {"resident_bytes": now, "peak_bytes": peak, "maxrss_bytes": largest()}
    values["threads"] = torch.get_num_threads()
    return json.dumps(_finite(values))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
