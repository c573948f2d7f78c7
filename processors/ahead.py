"""Ahead: what comes next is made while what came before is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(pieces: Iterator[T]) -> Iterator[T]:
    """The same pieces in order, one of them made in advance, in a thread of its own.

    What making one raises is raised where it would have come. Decoders and torch leave the interpreter free, so that
    a page is drawn while the one before is encoded.
    """
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = maker.submit(next, pieces, None)
            yield piece
