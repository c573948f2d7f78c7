"""Scorers of OCRBench and OCRBench v2: a rule for each type of question.

Here are v2's short answers; those that are pages, tables, charts and spotted words lie in `scorers_ocr_long`.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from omni.eval import scorers_ocr_long
from omni.eval.item import FAILED, Item, Mark
from omni.eval.scorers_documents import similarity
from omni.eval.scorers_ocr_long import Told
from omni.eval.spotting import overlap

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
    """By the type of the question. Truth: type, answers, and where the row has them eval, bbox, boxes, content; form of
    an answer that a question asks for. Notes: the type.

    Source: OCRBench v2, arXiv 2501.00321, appendix, and the evaluation that the authors published.
    """
    kind = item.truth["type"]
    return replace(RULES[kind](answer, item.truth), notes={"type": kind})


def abilities(marks: Sequence[Mark]) -> dict[str, float]:
    """OCRBench v2's overall figures: each ability's mean, and of each language the mean of its abilities."""
    found: dict[str, list[float]] = defaultdict(list)
    for mark in marks:
        if mark.most and mark.notes.get("type") in ABILITIES:
            found[ABILITIES[mark.notes["type"]]].append(mark.got)
    means = {name: sum(found[name]) / len(found[name]) for name in dict.fromkeys(ABILITIES.values()) if name in found}
    overall = {
        f"overall {language}": sum(values) / len(values)
        for language in ("en", "cn")
        if (values := [value for name, value in means.items() if name.endswith(language)])
    }
    return overall | means


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
    """The truth stands in the answer, without blanks; where Chinese, without \\text{} around words too."""
    bare = told["type"].endswith("cn")
    said, *truths = (
        _formula(re.sub(r"\\text\{([^{}]*)\}", r"\1", str(text)) if bare else str(text))
        for text in (answer, *told["answers"])
    )
    return Mark(extracted=said, got=float(any(truth in said for truth in truths)))


BETWEEN = ("", ".", ". ", ",", ", ", "\u3001", ";", "; ", " ", "\u548c")


def _handwritten(answer: str, told: Told) -> Mark:
    """Prose as a transcript; otherwise the letters of the truth stand in the answer, with one mark between them."""
    if told.get("form") == "prose":
        return scorers_ocr_long.transcript(answer, told)
    right = any(mark.join(str(told["answers"][0])) in answer for mark in BETWEEN)
    return Mark(extracted=answer, got=float(right))


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
    said = _near(found["answer"], told, same=False).got if "answer" in found else 0.0
    box = _sides(found.get("bbox", ""))
    place = overlap(box, [float(side) for side in told["bbox"]]) if box else 0.0
    return Mark(extracted=json.dumps(found), got=0.5 * said + 0.5 * place)


def _sides(text: str) -> list[int] | None:
    """A box in brackets, in whole numbers; None for anything else."""
    try:
        found = [int(side) for side in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if len(found) >= 4 else None


PAIR = re.compile(r"""["']?([\w\s]+)["']?\s*[:=]\s*["']?([^\n,"'{}]+)["']?""")


def fields_of(text: str) -> dict[str, str] | None:
    """The fields that an answer writes as JSON or as Python does, in a fence or not, or else as "name: value" pairs;
    None where there are none.
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    for read in (json.loads, ast.literal_eval) if found else ():
        try:
            value = read(found[0])  # pyright: ignore[reportOptionalSubscript]  (found, or the loop is empty)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return {str(name).strip(): str(inner).strip() for name, inner in value.items()}
    return {name.strip(): value.strip() for name, value in PAIR.findall(text)} or None


def _keyed(answer: str, told: Told) -> Mark:
    """Fields that agree (but for case and blanks) of all that either names; where a field allows several values, the
    best choice of them counts.
    """
    found, truth = fields_of(answer), _true_fields(told["answers"][0])
    if found is None:
        return FAILED
    if truth is None:
        raise ValueError(f"ocrbench v2: the truth {told['answers'][0]!r:.80} holds no fields; check the data")
    allowed = {name: {_bare(each) for each in (value if isinstance(value, list) else [value])}
               for name, value in truth.items()}  # fmt: skip
    right = sum(_bare(found[name]) in allowed[name] for name in found.keys() & allowed.keys())
    named = len(found.keys() | allowed.keys())
    return Mark(extracted=json.dumps(found), got=right / named)


def _true_fields(truth: Any) -> dict[str, Any] | None:
    """A truth's fields; they may be text, and text of text."""
    for _ in range(2):
        if isinstance(truth, str):
            truth = scorers_ocr_long.plain(truth)
    return truth if isinstance(truth, dict) else None


def _bare(value: Any) -> str:
    return _formula(str(value).strip().lower())


RULES: dict[str, Callable[[str, Told], Mark]] = {
    **dict.fromkeys(
        ("APP agent en", "ASCII art classification en", "math QA en", "reasoning VQA en", "science QA en",
         "text recognition en", "document classification en", "cognition VQA en", "diagram QA en"), _words
    ),
    **dict.fromkeys(("cognition VQA cn", "reasoning VQA cn"), _chinese),
    **dict.fromkeys(("key information extraction en", "key information mapping en", "key information extraction cn"),
                    _keyed),
    **scorers_ocr_long.RULES,
    "text counting en": _count,
    "formula recognition en": _expression,
    "formula recognition cn": _expression,
    "handwritten answer extraction cn": _handwritten,
    "text grounding en": _grounded,
    "VQA with position en": _placed,
}  # fmt: skip
ABILITIES = {
    **dict.fromkeys(("text recognition en", "fine-grained text recognition en", "full-page OCR en"), "recognition en"),
    **dict.fromkeys(("text grounding en", "VQA with position en"), "detection en"),
    "text spotting en": "spotting en",
    **dict.fromkeys(("key information extraction en", "key information mapping en"), "relation extraction en"),
    **dict.fromkeys(("document parsing en", "chart parsing en", "table parsing en", "formula recognition en"),
                    "element parsing en"),
    **dict.fromkeys(("math QA en", "text counting en"), "calculation en"),
    **dict.fromkeys(("document classification en", "cognition VQA en", "diagram QA en"), "understanding en"),
    **dict.fromkeys(("reasoning VQA en", "science QA en", "APP agent en", "ASCII art classification en"),
                    "reasoning en"),
    "full-page OCR cn": "recognition cn",
    **dict.fromkeys(("key information extraction cn", "handwritten answer extraction cn"), "relation extraction cn"),
    **dict.fromkeys(("document parsing cn", "table parsing cn", "formula recognition cn"), "element parsing cn"),
    "cognition VQA cn": "understanding cn",
    **dict.fromkeys(("reasoning VQA cn", "text translation cn"), "reasoning cn"),
}  # fmt: skip
