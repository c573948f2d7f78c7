"""Scorers of OCRBench and OCRBench v2: a rule for each type of question.

Of v2's types the transcriptions of whole pages, translations, tables, charts and spotting need metrics of their own
(BLEU, METEOR, TEDS) and are not marked here; the task leaves their rows out.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from omni.eval.item import FAILED, Item, Mark
from omni.eval.scorers_documents import similarity

Told = Mapping[str, Any]
WIDE = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}


def ocrbench(answer: str, item: Item) -> Mark:
    """1 where a truth stands in the answer, in any case; formulas (HME100k) without blanks, letter by letter.

    Truth: answers and dataset. Source: OCRBench, arXiv 2305.07895.
    """
    formula = item.truth["dataset"] == "HME100k"
    said = _formula(answer) if formula else _folded(answer)
    right = any((_formula(truth) if formula else _folded(truth)) in said for truth in item.truth["answers"])
    return Mark(extracted=said, got=float(right))


def _formula(text: str) -> str:
    return text.replace("\n", " ").replace(" ", "")


def _folded(text: str) -> str:
    return text.translate(WIDE).lower().strip().replace("\n", " ")


def ocrbench_v2(answer: str, item: Item) -> Mark:
    """By the type of the question. Truth: type, answers, and where the row has them eval, bbox and content.

    Source: OCRBench v2, arXiv 2501.00321, appendix.
    """
    return RULES[item.truth["type"]](answer, item.truth)


def _words(answer: str, told: Told) -> Mark:
    """A short truth (below five words) stands in the answer; a long one is as similar as counts, from a half on."""
    if told.get("eval") == "multiple choice":
        return _letters(answer, told)
    return _near(answer, told, same=told.get("eval") == "case sensitive")


def _near(answer: str, told: Told, same: bool) -> Mark:
    def shaped(text: Any) -> str:
        return str(text).strip().replace("\n", " ") if same else str(text).lower().strip().replace("\n", " ")

    said, truths = shaped(answer), [shaped(truth) for truth in told["answers"]]
    scores = [float(truth in said) if len(truth.split()) < 5 else similarity(said, truth) for truth in truths]
    return Mark(extracted=said, got=max(scores))


def _letters(answer: str, told: Told) -> Mark:
    """The answer's letters are those of the truth; without any it is a failure."""
    said = "".join(char for char in answer if char.isalpha())
    return Mark(extracted=said, got=float(said == told["answers"][0])) if said else FAILED


def _chinese(answer: str, told: Told) -> Mark:
    """As `_words`, without blanks; long is what has four parts or more between commas."""
    if told.get("eval") in ("multiple choice", "case sensitive"):
        return _words(answer, told)
    said = _formula(answer.lower())
    truths = [_formula(str(truth).lower()) for truth in told["answers"]]
    scores = [float(truth in said) if truth.count(",") < 3 else similarity(said, truth) for truth in truths]
    return Mark(extracted=said, got=max(scores))


def _count(answer: str, told: Told) -> Mark:
    """The number; or, by regression, how near the first number is, from a half on."""
    if told.get("eval") != "regression":
        said = answer.lower()
        right = any(str(truth).lower().strip() in said for truth in told["answers"])
        return Mark(extracted=said, got=float(right))
    found = re.search(r"\d+", answer)
    if found is None:
        return FAILED
    near = [1 - abs(int(found[0]) - int(truth)) / int(truth) for truth in told["answers"]]
    return Mark(extracted=found[0], got=max((each for each in near if each > 0.5), default=0.0))


def _expression(answer: str, told: Told) -> Mark:
    said = _formula(answer)
    return Mark(extracted=said, got=float(any(_formula(str(truth)) in said for truth in told["answers"])))


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    whole = sum(areas) - both
    return both / whole if whole else 0.0


def _box(text: str) -> list[float] | None:
    """The last box of four numbers from 0 to 1000."""
    found = re.findall(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[)\]]", text)
    boxes = [[float(side) for side in box] for box in found]
    fit = [box for box in boxes if max(box) <= 1000]
    return fit[-1] if fit else None


def _grounded(answer: str, told: Told) -> Mark:
    """The overlap with the true box."""
    found = _box(answer)
    if found is None:
        return FAILED
    return Mark(
        extracted=str([int(side) for side in found]), got=overlap(found, [float(side) for side in told["answers"]])
    )


def _placed(answer: str, told: Told) -> Mark:
    """Half for what is said, half for where it stands."""
    found = fields_of(answer)
    if found is None:
        return FAILED
    said = _near(str(found.get("answer", "")), told, same=False).got if found.get("answer") else 0.0
    box = _box(str(found.get("bbox", "")))
    return Mark(
        extracted=json.dumps(found),
        got=0.5 * said + (0.5 * overlap(box, [float(side) for side in told["bbox"]]) if box else 0.0),
    )


def fields_of(text: str) -> dict[str, Any] | None:
    """The fields that an answer writes as JSON or as Python does, in a fence or not; None where there are none."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    for read in (json.loads, ast.literal_eval) if found else ():
        try:
            value = read(found[0])  # pyright: ignore[reportOptionalSubscript]  (found, or the loop is empty)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, dict):
            return {str(key): inner for key, inner in value.items()}
    return None


def _keyed(answer: str, told: Told) -> Mark:
    """Fields that agree (but for case and blanks) of all that either names; where a field allows several values, the
    best choice of them counts.
    """
    found, truth = fields_of(answer), told["answers"][0]
    if found is None:
        return FAILED
    truth = fields_of(truth) if isinstance(truth, str) else truth
    if truth is None:
        raise ValueError(f"ocrbench v2: the truth {told['answers'][0]!r:.80} holds no fields; check the data")
    lists = [value if isinstance(value, list) else [value] for value in truth.values()]
    wanted = [dict(zip(truth, map(_value, chosen), strict=True)) for chosen in product(*lists)]
    said = {key: _value(value) for key, value in found.items()}
    return Mark(extracted=json.dumps(found), got=max(_agreement(said, each) for each in wanted))


def _value(value: Any) -> str:
    return _formula(str(value[0] if isinstance(value, list) and value else value).strip().lower())


def _agreement(said: Mapping[str, str], truth: Mapping[str, str]) -> float:
    named = said.keys() | truth.keys()
    return sum(key in said and said[key] == truth.get(key) for key in named) / len(named) if named else 0.0


RULES: dict[str, Callable[[str, Told], Mark]] = {
    **dict.fromkeys(
        ("APP agent en", "ASCII art classification en", "math QA en", "reasoning VQA en", "science QA en",
         "text recognition en", "document classification en", "cognition VQA en", "diagram QA en"), _words
    ),
    **dict.fromkeys(("cognition VQA cn", "reasoning VQA cn"), _chinese),
    **dict.fromkeys(("key information extraction en", "key information mapping en", "key information extraction cn"),
                    _keyed),
    "text counting en": _count,
    "formula recognition en": _expression,
    "text grounding en": _grounded,
    "VQA with position en": _placed,
}  # fmt: skip
