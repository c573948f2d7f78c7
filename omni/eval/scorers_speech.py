"""Scorer of transcripts: word errors behind the normaliser of the Open ASR leaderboard."""

from __future__ import annotations

from functools import cache

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

from omni.eval.item import Item, Mark


@cache
def _normaliser() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def word_errors(answer: str, item: Item) -> Mark:
    """Substituted, left out and added words, of the words of the truth; both behind Whisper's English normaliser.

    Over a corpus the errors and the words are summed, then divided. An utterance without words, as the leaderboard has
    it, counts nothing. An empty answer is a failure, and all of the words are errors. Source: Open ASR leaderboard,
    arXiv 2510.06961; Whisper, arXiv 2212.04356, appendix C.
    """
    truth, said = _normaliser()(item.truth).strip(), _normaliser()(answer).strip()
    if not truth:
        return Mark(extracted=said or None, got=0.0, most=0.0)
    found = jiwer.process_words(truth, said)
    errors = found.substitutions + found.deletions + found.insertions
    words = found.hits + found.substitutions + found.deletions
    return Mark(extracted=said or None, got=float(errors), most=float(words))
