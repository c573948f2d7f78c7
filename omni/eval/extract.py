"""Extract: what an answer says, read by fixed rules. Where they find nothing, or two things, the result is None.

Nothing is ever guessed, and thinking is never read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from omni.thinking import CLOSE, OPEN

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)"
ALONE = re.compile(r"[\s*(\[\"']*([A-Za-z])[\s*)\]\"'.,:;]*")
CHOSEN = r"[\s*(\[\"']*([B-HJ-Z](?![A-Za-z'’])|[AI](?=\s*(?:[^\s\w'’]|$|because\b|since\b|as\b)))"
ANSWER = re.compile(
    r"(?:\b[Aa](?:nswer|NSWER)\b(?:\s+(?:is|would\s+be|should\s+be|option|choice))*\s*[:=]?\s*(?:[Oo]ption\s+)?"
    rf"|\\boxed\{{\s*(?:\\text\{{)?){CHOSEN}"
)
OPTION = re.compile(r"\b(?:[Oo]ption|[Cc]hoice)\s+[\s*(\[\"']*([A-Z])(?![A-Za-z'’])")
LEADING = re.compile(r"^[\s*(\[]*([A-Z])[.):](?=[\s*]|$)", re.MULTILINE)
LISTED = re.compile(r"[\s*(\[]*[A-Z][\s.):\],;/&]*(?:and|or)?[\s*(\[]*[A-Z][\s.)\]]*")
BRACKETED = re.compile(r"[(\[]([A-Za-z])[)\]]")
STANDING = re.compile(r"(?<![\w'’])([A-HJ-Z])(?![\w'’])")  # I is a word


def spoken(text: str) -> str | None:
    """An answer without thinking; None where nothing but thinking came, ended or not."""
    text = re.sub(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}", "", text, flags=re.DOTALL)
    text = text.rpartition(CLOSE)[2].partition(OPEN)[0].strip()
    return text or None


def letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer chooses among options, read in this order: it is only a letter; "the answer is B" (the
    last such statement); it begins "B."; "option B"; one letter in brackets; one option's words; one letter alone.
    """
    allowed = LETTERS[: len(options)]
    if found := ALONE.fullmatch(text):
        return _allowed(found[1], allowed)
    if stated := ANSWER.findall(text):
        return _allowed(stated[-1], allowed)
    if LEADING.match(text):
        return None if LISTED.fullmatch(text) else _only(LEADING.findall(text), allowed)
    for rule in (OPTION, BRACKETED):
        if found := rule.findall(text):
            return _only(found, allowed)
    return _worded(text, options) or _only(_not_a_word(STANDING.findall(text)), allowed)


def _allowed(found: str, allowed: str) -> str | None:
    return found.upper() if found.upper() in allowed else None


def _only(found: Sequence[str], allowed: str) -> str | None:
    kinds = {each.upper() for each in found}
    return _allowed(kinds.pop(), allowed) if len(kinds) == 1 else None


def _not_a_word(found: list[str]) -> list[str]:
    """A capital A alone may be an article: it is no answer, but beside another letter it leaves a doubt."""
    return [] if set(found) == {"A"} else found


def _worded(text: str, options: Sequence[str]) -> str | None:
    """The option whose words stand in the text, where it is the only one; one inside another's words does not count."""
    said = _plain(text)
    there = [i for i, option in enumerate(options) if _plain(option).strip() and _plain(option) in said]
    longest = [i for i in there if not any(_plain(options[i]) in _plain(options[j]) for j in there if j != i)]
    return LETTERS[longest[0]] if len(longest) == 1 else None


def _plain(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "


def number(text: str) -> str | None:
    """The number after "####" if there is one, else the last number: without commas, signs of money or a final point.

    Source: GSM8K's own mark, and the flexible rule of EleutherAI's harness.
    """
    marked = re.findall(rf"####\s*\$?\s*({NUMBER})", text)
    found = marked[-1:] or re.findall(NUMBER, text)
    return found[-1].replace(",", "").rstrip(".").lstrip("+") if found else None


def same_number(one: str, other: str) -> bool:
    """Whether two texts are one number: 18 is 18.0."""
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def point(text: str) -> tuple[float, float] | None:
    """Where an answer points, in its own unit: two numbers, or the middle of a box of four; else None."""
    found = [float(each) for each in re.findall(r"-?\d+\.\d+|-?\d+|-?\.\d+", _coordinates(text))]
    if len(found) == 2:
        return found[0], found[1]
    return ((found[0] + found[2]) / 2, (found[1] + found[3]) / 2) if len(found) == 4 else None


def _coordinates(text: str) -> str:
    """The part of a text that holds coordinates: the last brackets with numbers in them, or all."""
    text = re.sub(r"\b[xy]_?[12]?\s*[=:]", " ", text)
    inside = re.findall(r"[(\[]([\s\d.,\-]*\d[\s\d.,\-]*)[)\]]", text)
    return inside[-1] if inside else text
