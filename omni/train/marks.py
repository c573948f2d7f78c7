"""Marks: what an answer is worth against the truth, as (got, most); for errors, how many of how much text."""

from __future__ import annotations

import re

import jiwer


def exact(answer: str, truth: str) -> tuple[float, float]:
    """1 where the answer is the truth, letter by letter."""
    return float(answer.strip() == truth), 1.0


def edits(answer: str, truth: str) -> tuple[float, float]:
    """Character errors of the truth's characters."""
    return jiwer.cer(truth, answer) * len(truth), float(len(truth))


def word_edits(answer: str, truth: str) -> tuple[float, float]:
    """Word errors of the truth's words."""
    count = len(truth.split())
    return jiwer.wer(truth, answer) * count, float(count)


def near(answer: str, truth: str, within: float = 1.0) -> tuple[float, float]:
    """1 where a time lies within one tubelet (two frames, half a second apart at least) of the true one."""
    found = re.match(r"([0-9]+\.?[0-9]*)", answer.strip())
    return float(found is not None and abs(float(found[1]) - float(truth.split()[0])) <= within), 1.0
