"""Documents, charts and pictures with text: DocVQA, InfoVQA, ChartQA, TextVQA, AI2D, OCRBench, MMLongBench-Doc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni.eval.extract import LETTERS
from omni.eval.item import Item, Lazy
from omni.eval.rows import beside, checked, image, items, lettered, rows
from omni.eval.scorers_ocr import RULES
from omni.eval.scorers_ocr_long import check, form
from omni.eval.spec import Spec
from omni.eval.task import Task

Row = Mapping[str, Any]
SHORT = "{question}\nAnswer the question using a single word or phrase."
LETTER = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."


def _pictured(spec: Spec, row: Row, name: Any, truth: Any, **groups: str) -> Item:
    return Item(
        name=str(name),
        media=(image(row["image"], spec),),
        fields={"question": str(row["question"]).strip()},
        truth=truth,
        groups=groups,
    )


def _docvqa(spec: Spec, index: int, row: Row) -> Item:
    return _pictured(spec, row, row["questionId"], list(row["answers"]))


def _chartqa(spec: Spec, index: int, row: Row) -> Item:
    return _pictured(spec, row, index, row["answer"], split=row["type"])


def _textvqa(spec: Spec, index: int, row: Row) -> Item:
    """The question begins with a capital, as the benchmark's harness asks it."""
    row = {**row, "question": str(row["question"]).capitalize()}
    return _pictured(spec, row, row["question_id"], list(row["answers"]))


def _ai2d(spec: Spec, index: int, row: Row) -> Item:
    """The truth is the number of the option, from 0."""
    options = tuple(row["options"])
    return Item(
        name=str(index),
        media=(image(row["image"], spec),),
        fields={"question": row["question"], "options": lettered(options)},
        truth=LETTERS[int(row["answer"])],
        options=options,
    )


def _ocrbench(spec: Spec, index: int, row: Row) -> Item:
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    truth = {"answers": answers, "dataset": row["dataset"]}
    return _pictured(spec, row, index, truth, type=row["question_type"])


def _ocrbench_v2(spec: Spec) -> Lazy:
    """Each item's group says its type. Raises ValueError for a type without a rule, or what a rule needs."""
    table = rows(spec.source, ("image", "question", "answers", "type", "id"))
    kinds = set(table["type"])
    if unknown := sorted(kinds - RULES.keys()):
        raise ValueError(f"ocrbench v2: no rule for type {', '.join(unknown)}; check the data")
    check(kinds)
    return Lazy(table, checked(_typed, spec))


def _typed(spec: Spec, index: int, row: Row) -> Item:
    """Boxes of words stand in bbox_list, or in bbox as the authors' file has them."""
    truth = {"type": row["type"], "answers": list(row["answers"])}
    truth |= {name: row[name] for name in ("eval", "bbox", "content") if row.get(name) not in (None, "None", "")}
    if row["type"] == "text spotting en":
        truth["boxes"] = row.get("bbox_list") or truth.pop("bbox", None)
        if not truth["boxes"] or not truth.get("content"):
            raise ValueError(f"ocrbench v2: row {row['id']} has no bbox_list or content; check the data")
    if row["type"] == "VQA with position en" and "bbox" not in truth:
        raise ValueError(f"ocrbench v2: row {row['id']} has no bbox; check the data")
    if asked := form(row["type"], str(row["question"])):
        truth["form"] = asked
    return _pictured(spec, row, row["id"], truth, type=row["type"])


def _long_document(spec: Spec, index: int, row: Row) -> Item:
    """The PDF itself, all of its pages: `preprocessing` says at which dpi and in how many tokens."""
    return Item(
        name=str(index),
        media=({"type": "document", "path": str(beside(spec, row["doc_id"]))},),
        fields={"question": row["question"]},
        truth={"answer": row["answer"], "format": row["answer_format"]},
        groups={"type": row["doc_type"], "format": row["answer_format"]},
    )


ASKED = ("image", "question")
TASKS = (
    Task(
        name="docvqa",
        about="questions on scanned pages; ANLS",
        items=items(_docvqa, (*ASKED, "questionId", "answers")),
        rule="anls",
        prompt=SHORT,
        source={"path": "lmms-lab/DocVQA", "name": "DocVQA", "split": "validation"},
    ),
    Task(
        name="infovqa",
        about="questions on infographics; ANLS",
        items=items(_docvqa, (*ASKED, "questionId", "answers")),
        rule="anls",
        prompt=SHORT,
        source={"path": "lmms-lab/DocVQA", "name": "InfographicVQA", "split": "validation"},
    ),
    Task(
        name="chartqa",
        about="questions on charts, by people and by machine; relaxed accuracy",
        items=items(_chartqa, (*ASKED, "answer", "type")),
        rule="relaxed",
        prompt="{question}\nAnswer the question with a single word.",
        source={"path": "lmms-lab/ChartQA", "split": "test"},
    ),
    Task(
        name="textvqa",
        about="questions on text in photographs; agreement with ten people",
        items=items(_textvqa, (*ASKED, "question_id", "answers")),
        rule="vqa",
        prompt=SHORT,
        source={"path": "lmms-lab/textvqa", "split": "validation"},
    ),
    Task(
        name="ai2d",
        about="diagrams of science lessons; choice",
        items=items(_ai2d, (*ASKED, "options", "answer")),
        rule="choice",
        prompt=LETTER,
        source={"path": "lmms-lab/ai2d", "split": "test"},
    ),
    Task(
        name="ocrbench",
        about="1000 questions on text in pictures; the truth stands in the answer",
        items=items(_ocrbench, (*ASKED, "answer", "dataset", "question_type")),
        rule="ocrbench",
        source={"path": "echo840/OCRBench", "split": "test"},
    ),
    Task(
        name="ocrbench_v2",
        about="30 types of question on text in pictures, each by its rule; overall figures by ability and language",
        items=_ocrbench_v2,
        rule="ocrbench v2",
        source={"path": "lmms-lab/OCRBench-v2", "split": "test"},
        tokens=2048,
    ),
    Task(
        name="mmlongbench_doc",
        about="PDFs of up to hundreds of pages, whole; MMLongBench-Doc's rules and F1",
        items=items(_long_document, ("doc_id", "doc_type", "question", "answer", "answer_format")),
        rule="long documents",
        prompt="{question}\nAnswer with a single word, number or phrase, or with a list such as ['a', 'b']. If the "
        "document does not tell, answer: Not answerable",
        source={"path": "yubo2333/MMLongBench-Doc", "split": "train", "media": "documents"},
    ),
)
