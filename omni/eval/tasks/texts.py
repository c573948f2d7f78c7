"""Text: MMLU-Pro, GSM8K, and needles in texts of any length that are made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni.eval.extract import LETTERS
from omni.eval.item import Item
from omni.eval.rows import items, lettered
from omni.eval.spec import Spec
from omni.eval.task import Task
from omni.eval.tasks.haystacks import needles

Row = Mapping[str, Any]


def _mmlu_pro(spec: Spec, index: int, row: Row) -> Item:
    options = tuple(option for option in row["options"] if option != "N/A")
    return Item(
        name=str(row["question_id"]),
        fields={"question": row["question"], "options": lettered(options), "category": row["category"]},
        truth=LETTERS[int(row["answer_index"])],
        options=options,
        groups={"category": row["category"]},
    )


def _gsm8k(spec: Spec, index: int, row: Row) -> Item:
    """The truth ends in "#### 18"."""
    return Item(name=str(index), fields={"question": row["question"]}, truth=row["answer"])


TASKS = (
    Task(
        name="mmlu_pro",
        about="knowledge and reasoning, ten options, without examples; choice",
        items=items(_mmlu_pro, ("question_id", "question", "options", "answer_index", "category")),
        rule="choice",
        prompt="The following is a multiple choice question about {category}. Think step by step and then finish your "
        'answer with "the answer is (X)" where X is the correct letter choice.\n\nQuestion: {question}\nOptions:\n'
        "{options}",
        source={"path": "TIGER-Lab/MMLU-Pro", "split": "test"},
        tokens=2048,
    ),
    Task(
        name="gsm8k",
        about="school sums in words, without examples; the last number",
        items=items(_gsm8k, ("question", "answer")),
        rule="numeric",
        prompt='{question}\nThink step by step, and end with "#### " and the number.',
        source={"path": "openai/gsm8k", "name": "main", "split": "test"},
        tokens=1024,
    ),
    Task(
        name="needles",
        about="RULER's kinds of look-up in a text of `words` words, made here. kind: single, keys (others of the same "
        "form beside it), values (several of one key), queries (several keys); text: noise, sentences or needles; "
        "form: ruler or plain; count: of needles; items: questions, a single needle's depths spread evenly",
        items=needles,
        rule="needles",
        options={"kind": "single", "text": "noise", "form": "ruler", "words": 1000, "count": 4, "items": 50},
    ),
)
