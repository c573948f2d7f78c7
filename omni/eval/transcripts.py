"""Transcripts: how near a long text is to its truth, as OCRBench v2 (arXiv 2501.00321) measures whole pages.

BLEU and METEOR are NLTK's, as the benchmark has them; METEOR's synonyms are WordNet's, and Chinese words jieba's.
"""

from __future__ import annotations

import logging
import re
import warnings
from functools import cache
from typing import Any

from rapidfuzz.distance import Levenshtein

CHINESE = re.compile("[\u4e00-\u9fa5]")
ABSENT = "eval: transcripts are marked by METEOR, which needs WordNet; python -m nltk.downloader wordnet"


def nearness(said: str, truth: str) -> float:
    """The mean of BLEU, METEOR, the F-measure of the words that occur, and 1 - edits / characters of the longer text.

    Raises ValueError where WordNet is not installed.
    """
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import meteor_score

    chinese = bool(CHINESE.search(said) or CHINESE.search(truth))
    ours, theirs = _words(said, chinese), _words(truth, chinese)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no run of words in common is 0, and needs no warning
        bleu = float(sentence_bleu([theirs], ours))  # pyright: ignore[reportArgumentType]  (a float by default)
    meteor = float(meteor_score([theirs], ours, wordnet=synonyms()))
    edits = Levenshtein.normalized_distance(said, truth)
    return (bleu + meteor + _overlap(set(ours), set(theirs)) + 1 - edits) / 4


def _overlap(ours: set[str], theirs: set[str]) -> float:
    """The F-measure of two sets."""
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 0.0


def _words(text: str, chinese: bool) -> list[str]:
    return _jieba().lcut(text) if chinese else text.split()


@cache
def _jieba() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        import jieba

    jieba.setLogLevel(logging.WARNING)  # it tells how it loads
    return jieba


@cache
def synonyms() -> Any:
    """WordNet. Raises ValueError where it is not installed."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise ValueError(ABSENT) from None
    return wordnet
