"""Samples: files in the box with questions whose answers are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Files, a question about them, and the true answer."""

    files: tuple[Path, ...]
    question: str
    truth: str


def samples(folder: Path = SAMPLES) -> list[Sample]:
    """Those of questions.json whose files are there; none where there is no such file."""
    try:
        listed = json.loads((folder / "questions.json").read_text())
    except (OSError, ValueError):
        return []
    found = list[Sample]()
    for each in listed if isinstance(listed, list) else []:
        names = each.get("files", []) if isinstance(each, dict) else []
        files = tuple(folder / name for name in names if Path(name).name == name)
        if files and len(files) == len(names) and all(file.is_file() for file in files) and each.get("question"):
            found.append(Sample(files=files, question=str(each["question"]), truth=str(each.get("truth", ""))))
    return found


def a_few(every: list[Sample]) -> list[Sample]:
    """The first question of each set of files."""
    return list({sample.files: sample for sample in reversed(every)}.values())[::-1]


def of_kind(every: list[Sample], *suffixes: str) -> list[Sample]:
    """Those of one file with one of these suffixes."""
    return [sample for sample in every if len(sample.files) == 1 and sample.files[0].suffix.lower() in suffixes]
