"""Words as VQA's evaluation compares them: without articles and punctuation, numbers as digits, contractions whole.

Source: the VQA evaluation (arXiv 1505.00468), as EvalAI's processor applies it to TextVQA.
"""

from __future__ import annotations

import re
from itertools import combinations

ARTICLES = ("a", "an", "the")
DIGITS: dict[str, str] = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
DIGITS["none"] = "0"
MARKS = ';/[]"{}()=+\\_-><@`,?!'
WHOLE = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've""".split()


def _clipped(word: str) -> list[str]:
    """The word without one or more of its apostrophes."""
    places = [i for i, char in enumerate(word) if char == "'"]
    dropped = [set(each) for count in range(1, len(places) + 1) for each in combinations(places, count)]
    return ["".join(char for i, char in enumerate(word) if i not in gone) for gone in dropped]


CONTRACTIONS: dict[str, str] = {clipped: word for word in WHOLE for clipped in _clipped(word)}


def plain(text: str) -> str:
    """An answer as it is compared."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _without_marks(" ".join(text.split()))
    words = [DIGITS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(text: str) -> str:
    """A mark beside a blank is dropped, one within a word parts it; a point stays where a digit follows."""
    out = text
    for mark in MARKS:
        edge = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if edge else " ")
    return re.sub(r"\.(?!\d)", "", out)
