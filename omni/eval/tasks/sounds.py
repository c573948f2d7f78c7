"""Sound: LibriSpeech and the other sets of the Open ASR leaderboard, VoiceBench's choices, MMAU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from omni.eval.item import Item
from omni.eval.rows import audio, items, letter_of, lettered
from omni.eval.spec import Spec
from omni.eval.task import Task
from omni.eval.tasks.documents import LETTER

Row = Mapping[str, Any]
OPTION = re.compile(r"(?:^|[\n.?!]\s*)\(?([A-D])[.):]\s*(.+?)(?=[\n.]?\s*\(?[A-D][.):]\s|$)", re.DOTALL)


def _transcript(spec: Spec, index: int, row: Row) -> Item:
    """Columns as the leaderboard's sets and LibriSpeech have them: audio and text, or a column of the options."""
    return Item(
        name=str(row.get("id", index)),
        media=(audio(row["audio"], spec),),
        fields={"question": "Transcribe the audio into English text."},
        truth=row[spec.options["text"]],
    )


def _voicebench(spec: Spec, index: int, row: Row) -> Item:
    """The question and its options are spoken; their written form (prompt) is only read for the options' words."""
    options = tuple(text.strip() for _, text in OPTION.findall(row["prompt"]))
    return Item(
        name=str(index),
        media=(audio(row["audio"], spec),),
        fields={"question": ""},
        truth=str(row["reference"]).strip()[:1].upper(),
        options=options if len(options) == 4 else ("", "", "", ""),
    )


def _mmau(spec: Spec, index: int, row: Row) -> Item:
    """Choices are a list, or JSON of one; the truth is one of their texts."""
    options = json.loads(row["choices"]) if isinstance(row["choices"], str) else list(row["choices"])
    return Item(
        name=str(row.get("id", index)),
        media=(audio(row["audio"], spec),),
        fields={"question": row["question"], "options": lettered(options)},
        truth=letter_of(options, row["answer"]),
        options=tuple(options),
        groups={"task": row["task"], "difficulty": row.get("difficulty") or "unstated"},
    )


TASKS = (
    Task(
        name="asr",
        about="transcripts; word error rate behind Whisper's English normaliser. text: the column of the truth",
        items=items(_transcript, ("audio",)),
        rule="word errors",
        source={"path": "hf-audio/esb-datasets-test-only-sorted", "name": "librispeech", "split": "test.clean"},
        tokens=512,
        options={"text": "text"},
    ),
    Task(
        name="voicebench",
        about="spoken questions with spoken options (openbookqa, mmsu by source.name and split); choice",
        items=items(_voicebench, ("audio", "prompt", "reference")),
        rule="choice",
        prompt="{question}",
        source={"path": "hlt-lab/voicebench", "name": "openbookqa", "split": "test"},
        tokens=256,
    ),
    Task(
        name="mmau",
        about="sound, music and speech; choice",
        items=items(_mmau, ("audio", "question", "choices", "answer", "task")),
        rule="choice",
        prompt=LETTER,
        source={"path": "lmms-lab/mmau", "split": "test_mini"},
    ),
)
