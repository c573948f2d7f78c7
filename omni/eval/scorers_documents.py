"""Scorers of questions on pages, charts and pictures with text."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from omni.eval.item import Item, Mark
from omni.eval.vqa_words import plain

THRESHOLD = 0.5
UNANSWERABLE = "not answerable"


def similarity(answer: str, truth: str, *, half: bool = True) -> float:
    """1 - Levenshtein distance over the longer length; 0 below a half, and at a half too where that is False."""
    near = Levenshtein.normalized_similarity(answer, truth)
    return near if near > THRESHOLD or (half and near == THRESHOLD) else 0.0


def anls(answer: str, item: Item) -> Mark:
    """The similarity to the nearest of several truths, in lower case with single blanks.

    Source: DocVQA (arXiv 2007.00398, section 5.1) and InfographicVQA (arXiv 2104.12756). A similarity of just a half
    counts, as in the evaluation that the authors published; their text has it count nothing.
    """
    said = _spaced(answer)
    return Mark(extracted=said, got=max(similarity(said, _spaced(truth)) for truth in item.truth))


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def relaxed(answer: str, item: Item) -> Mark:
    """A number within 5 % of the true one ("12%" is 0.12), any other text equal but for case.

    Source: ChartQA, arXiv 2203.10244, section 5.1; where the truth is 0 or no number, texts are compared.
    """
    said, truth = answer.strip(), str(item.truth).strip()
    one, other = _share(said), _share(truth)
    right = abs(one - other) <= 0.05 * abs(other) if one is not None and other else said.lower() == truth.lower()
    return Mark(extracted=said, got=float(right))


def _share(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa(answer: str, item: Item) -> Mark:
    """min(1, people who agree / 3), averaged over the sets of all people but one; answers normalised as EvalAI does.

    Source: VQA (arXiv 1505.00468) as TextVQA (arXiv 1904.08920) has it.
    """
    said, truths = plain(answer), [plain(truth) for truth in item.truth]
    shares = [min(1.0, (truths.count(said) - (truth == said)) / 3) for truth in truths]
    return Mark(extracted=said, got=sum(shares) / len(shares))


def long_documents(answer: str, item: Item) -> Mark:
    """By the format of the truth: Int and Float by number (1 % off, or as a share or percentage), Str by ANLS or, for
    pages, dates, times, codes and links, letter by letter, List item by item, the worst counting.

    Truth: answer and format. "Not answerable" is an answer. The benchmark lets another model shorten answers before;
    here the prompt asks for a short answer instead. Source: MMLongBench-Doc, arXiv 2407.01523, appendix B.
    """
    truth, form = str(item.truth["answer"]), item.truth["format"]
    notes = {"answerable": cleaned(truth) != UNANSWERABLE, "answered": cleaned(answer) != UNANSWERABLE}
    if form in ("Int", "Float"):
        found = first_number(answer)
        right = found is not None and (int(found) == int(float(truth)) if form == "Int" else _near(float(truth), found))
        said = cleaned(answer) if not notes["answered"] else None if found is None else f"{found:g}"
        return Mark(extracted=said, got=float(right), notes=notes)
    score = _listed(answer, truth) if form == "List" else _worded(cleaned(answer), cleaned(truth))
    return Mark(extracted=cleaned(answer), got=score, notes=notes)


def f1(marks: Sequence[Mark]) -> dict[str, float]:
    """MMLongBench-Doc's F1: of what can be answered (recall) and of what was answered (precision)."""
    recall = _mean([m.got for m in marks if m.notes.get("answerable", True)])
    precision = _mean([m.got for m in marks if m.notes.get("answered", True)])
    return {"f1": 2 * recall * precision / (recall + precision) if recall + precision else 0.0}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def cleaned(text: str) -> str:
    """Lower case, without brackets and what stands in them, quotes, signs of money and percent, miles and millions."""
    text = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip().lstrip("$").strip().rstrip("%").strip()
    for unit in (" miles", " mile", " million"):
        text = text.removesuffix(unit).strip()
    return " ".join(text.split())


def first_number(text: str) -> float | None:
    """The first number in a text, commas left out."""
    found = re.search(r"[-+]?\d*\.?\d+", text.replace(",", ""))
    return float(found[0]) if found else None


def _near(truth: float, said: float) -> bool:
    return any(
        math.isclose(each, said, rel_tol=0.01) or round(each, _places(each, said)) == round(said, _places(each, said))
        for each in (truth / 100, truth, truth * 100)
    )


def _places(one: float, other: float) -> int:
    """Decimals at which two numbers are compared: those of the shorter one, at least 2."""
    return max(2, min(len(str(x).split(".")[1]) if "." in str(x) else 3 for x in (one, other)))


LITERAL = re.compile(
    r"https?://|\.(?:py|ipynb)$|^page|^\d+(?:[-\s]\d+)?$|[ap]\.m\.|^\d{4}[-\s]\d{2}(?:[-\s]\d{2})?$"
    r"|^[\w.%+-]+@[\w.-]+\.[a-z]{2,}$"
)


def _worded(said: str, truth: str) -> float:
    return float(said == truth) if LITERAL.search(truth) else similarity(said, truth, half=False)


def _listed(answer: str, truth: str) -> float:
    said, true = (sorted(cleaned(each) for each in _items(text)) for text in (answer, truth))
    if len(said) != len(true):
        return 0.0
    if true and (first_number(true[0]) is not None or LITERAL.search(true[0])):
        return float(said == true)
    return min((similarity(a, b, half=False) for a, b in zip(said, true, strict=True)), default=1.0)


def _items(text: str) -> list[str]:
    """Of a list in brackets, or of one parted by commas."""
    try:
        found = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        return [part.strip() for part in text.strip().strip("[]").split(",")]
    return [str(each) for each in found] if isinstance(found, list) else [str(found)]
