"""Scorers of OCRBench v2's long answers: pages, translations, tables, charts, and words with their boxes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omni.eval import spotting, table_trees, transcripts
from omni.eval.item import FAILED, Mark

Told = Mapping[str, Any]


def transcript(answer: str, told: Told) -> Mark:
    """The mean of four measures; see `transcripts.nearness`. A truth without text counts nothing."""
    truth = str(told["answers"][0])
    if not truth:
        return Mark(extracted=answer, got=0.0, most=0.0)
    return Mark(extracted=answer, got=transcripts.nearness(answer, truth)) if answer else FAILED


def _table(answer: str, told: Told) -> Mark:
    """TEDS, in the form that the question asks for; without a table in that form it is a failure."""
    truth = str(told["answers"][0])
    if told["form"] == "html":
        return _teds(table_trees.html_table(answer), table_trees.wrapped(truth))
    return _teds(table_trees.markdown_table(answer), table_trees.markdown_table(truth))


def _teds(said: str | None, truth: str | None) -> Mark:
    if not said or not truth:
        return FAILED
    try:
        return Mark(extracted=said, got=table_trees.teds(said, truth))
    except ValueError:  # spans that are no numbers
        return FAILED


def _chart(answer: str, told: Told) -> Mark:
    """TEDS of the fields, as Python writes them, in the longest fence or without one."""
    fenced = re.findall(r"```(?:python|json)?\n(.*?)\n```", answer, re.DOTALL | re.IGNORECASE)
    text = max(fenced, key=len, default=answer)
    text = re.sub(r"#.*", "", re.sub(r"^\s*\w+\s*=\s*", "", text.strip(), count=1))
    found, truth = plain(text[: text.rfind("}") + 1], json_too=False), told["answers"][0]
    truth = plain(truth) if isinstance(truth, str) else truth
    if not isinstance(truth, dict):
        raise ValueError(f"ocrbench v2: the truth {told['answers'][0]!r:.80} holds no fields; check the data")
    if not isinstance(found, dict) or not found:
        return FAILED
    return _teds(table_trees.fields_table(found), table_trees.fields_table(truth))


def plain(text: str, *, json_too: bool = True) -> Any:
    """A value as Python writes it, or JSON; None for anything else."""
    for read in (ast.literal_eval, json.loads)[: 1 + json_too]:
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _page(answer: str, told: Told) -> Mark:
    """How alike the outlines are."""
    if not answer:
        return FAILED
    return Mark(extracted=answer, got=table_trees.outlines_alike(answer, str(told["answers"][0])))


def _spotted(answer: str, told: Told) -> Mark:
    """The F-measure of words with their boxes. Truth: content (the words) and boxes (their polygons)."""
    found = spotting.read(answer)
    if not found:
        return FAILED
    truth = spotting.true_words([str(text) for text in told["content"]], told["boxes"])
    said = json.dumps([[*word.box, word.text] for word in found], ensure_ascii=False)
    return Mark(extracted=said, got=spotting.f_measure(found, truth))


RULES: dict[str, Callable[[str, Told], Mark]] = {
    **dict.fromkeys(
        ("fine-grained text recognition en", "full-page OCR en", "full-page OCR cn", "text translation cn"), transcript
    ),
    **dict.fromkeys(("table parsing en", "table parsing cn"), _table),
    **dict.fromkeys(("document parsing en", "document parsing cn"), _page),
    "chart parsing en": _chart,
    "text spotting en": _spotted,
}
HANDWRITTEN = "handwritten answer extraction cn"


def form(kind: str, question: str) -> str | None:
    """The form of an answer that a question asks for, where the rule goes by it.

    Raises ValueError for a table in neither of the two forms.
    """
    if kind == HANDWRITTEN:
        return "prose" if "\u7b80\u7b54" in question else None  # "answer in short", in Chinese
    if kind == "table parsing cn":
        return "html"
    if kind != "table parsing en":
        return None
    for name in ("html", "markdown"):
        if name in question.lower():
            return name
    raise ValueError(f"ocrbench v2: {question!r:.80} asks for a table in neither HTML nor Markdown; check the data")


def check(kinds: Iterable[str]) -> None:
    """Raises ValueError where something is missing that the rules of these types need."""
    if any(RULES.get(kind) is transcript or kind == HANDWRITTEN for kind in kinds):
        transcripts.synonyms()
