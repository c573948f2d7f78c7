"""Windows: what a token of a sound hears, at each layer of an encoder; so that sounds can be encoded while they go on.

Sources: chunked attention with a cache (arXiv 2312.17279), convolutions that stop where the chunk ends (arXiv
2304.09325). Both have one border for all layers; here borders may move with depth, so that convolutions which look
ahead stay as they were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a token hears of its sound, so that the sound can be encoded while it goes on. A choice of the call.

    chunk: tokens that attend to one another, and to the `left` tokens before them. ahead: tokens for which each layer's
    convolution waits beyond its chunk; past them it hears silence, so `ahead` = kernel // 2 computes it as trained.
    Each layer's chunks end `ahead` tokens before those of the layer below, so that a token's features are there
    chunk + depth * ahead tokens after it at the latest.
    """

    chunk: int
    left: int
    ahead: int

    def __post_init__(self) -> None:
        if self.chunk < 1 or min(self.left, self.ahead) < 0:
            raise ValueError(
                f"Window: a chunk of {self.chunk} tokens, {self.left} before it and {self.ahead} ahead came; "
                "want at least 1, 0 and 0"
            )

    def borders(self, tokens: int, layer: int) -> list[int]:
        """Where the chunks of a sound of so many tokens begin and end at a layer, counted from 0."""
        ends = (count * self.chunk - layer * self.ahead for count in range(1, tokens // self.chunk + 1))
        return sorted({0, *(max(end, 0) for end in ends), tokens})

    def reach(self, depth: int) -> int:
        """Above the distance between any two tokens that hear each other, in `depth` layers."""
        return self.left + self.chunk + self.ahead * depth


WHOLE = Window(chunk=2**62, left=0, ahead=0)  # every token hears all of its sound


class Span(NamedTuple):
    """Rows start to stop of packed tokens, which hear rows first to last."""

    start: int
    stop: int
    first: int
    last: int


def attention_spans(counts: Sequence[int], window: Window, layer: int) -> list[Span]:
    """What the chunks of packed sounds attend to."""
    spans, at = list[Span](), 0
    for tokens in counts:
        for start, stop in pairwise(window.borders(tokens, layer)):
            spans.append(Span(at + start, at + stop, at + max(start - window.left, 0), at + stop))
        at += tokens
    return spans


def convolution_spans(counts: Sequence[int], window: Window, layer: int, reach: int) -> list[Span]:
    """What the convolution hears: `reach` tokens to either side, but only `ahead` beyond the chunk's end."""
    spans, at = list[Span](), 0
    for tokens in counts:
        for start, stop in pairwise(window.borders(tokens, layer + 1)):
            spans.append(Span(at + start, at + stop, at + max(start - reach, 0), at + min(stop + window.ahead, tokens)))
        at += tokens
    return spans
