"""Long video: decode, encode, prune and read stretch by stretch, at the memory of one stretch and the growing state.

EVS looks at the whole clip before it keeps a token. `exact` therefore goes through the clip twice: first for the
scores alone (a float a token, 2 MB for an hour), then to read what they leave; the ids and features are those of the
clip read at once. Features of the first pass are held as far as HELD goes, so that a short clip is encoded once.
`causal` goes through it once and keeps of each tubelet what changed most since the one before it
(`token_reduction.evs_step`). Either way the memory may be asked while it is still being read: nothing that was read
changes any more. Source: EVS (arXiv 2510.14624); the two passes and the causal one are ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from omni.memory import Memory
from omni.model import OmniModel
from omni.splice import Features
from processors.batch import Media
from processors.chat import Conversation
from processors.processor import Piece, Processor
from token_reduction import changes, evs_of_scores, evs_step

PRUNING = ("exact", "causal")
HELD = 2**28  # bytes of features that wait for the second pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a reading is. piece: what was just scored (in the first pass of `exact`) or read. memory: what was read so
    far; it may be asked or forked.
    """

    piece: Piece
    scored: bool
    memory: Memory

    @property
    def name(self) -> str:
        """Of the file that the piece is of."""
        number, (given,) = self.piece.item, self.piece.batch.given
        return "text" if number is None else given.items[number].name


@torch.no_grad()
def read_long(
    model: OmniModel,
    processor: Processor,
    messages: Conversation,
    *,
    evs: str = "exact",
    segment: int = 16,
    memory: Memory | None = None,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Memory:
    """Read a conversation with clips of any length, up to where a question can follow.

    evs: exact or causal. segment: sampled frames that are decoded and encoded at a time. memory: what was read before;
    it is read on. progress: called after each piece. settings: those of `processor.ingest`. Interrupted, a memory that
    was given holds the pieces read so far. Raises ValueError for another `evs`, and what the processor raises.
    """
    if evs not in PRUNING:
        raise ValueError(f"read_long: evs {evs!r} is unknown; want one of {', '.join(PRUNING)}")
    memory = memory or Memory.ingest(model, [])
    after = memory.given if memory.given.calls else None
    settings = {"reserve": 256, **settings, "frames": segment, "evs": evs, "ingest": True, "after": after}

    report = progress or (lambda progress: None)
    pruning = Exact() if evs == "exact" else Causal()
    encoding, room = 0.0, HELD
    held: dict[tuple[int | None, int], Features] = {}
    if isinstance(pruning, Exact):
        for piece in processor.pieces(messages, scout=True, **settings):
            start = time.perf_counter()
            features = model.encode(_unpruned(piece))
            pruning.score(piece, _tubelets(features, piece))
            room -= features.tubelet.nbytes
            if room >= 0:
                held[piece.item, piece.step] = features
            encoding += time.perf_counter() - start
            report(Progress(piece=piece, scored=True, memory=memory))
    for piece in processor.pieces(messages, **settings):
        start = time.perf_counter() - encoding
        seen = held.pop((piece.item, piece.step), None) if len(piece.batch.media.clips) else None  # else its sound
        features = _pruned(seen or model.encode(_unpruned(piece)), piece, pruning)
        memory.append(piece.batch, features, time.perf_counter() - start)
        encoding = 0.0
        report(Progress(piece=piece, scored=False, memory=memory))
    memory.settle()
    return memory


@dataclass(slots=True)
class Causal:
    """Keeps tokens by the tubelet before alone. Stretches of a clip come in order, each once."""

    _before: Tensor | None = None

    def keep(
        self, piece: Piece, tubelets: Float[Tensor, "steps places width"], rate: float
    ) -> Bool[Tensor, "steps places"]:
        """Of each tubelet, its share of what the published rule would have kept so far."""
        before = self._before if piece.step else None
        kept = []
        for step, tubelet in enumerate(tubelets, piece.step):
            kept.append(evs_step(tubelet, before, step, rate))
            before = tubelet
        self._before = before
        return torch.stack(kept)


@dataclass(slots=True)
class Exact:
    """Keeps tokens by the scores of the whole clip, which `score` has seen, stretch by stretch."""

    _scores: dict[int | None, list[Tensor]] = field(default_factory=dict)
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _last: Tensor | None = None

    def score(self, piece: Piece, tubelets: Float[Tensor, "steps places width"]) -> None:
        """Look at a stretch."""
        before = self._last if piece.step else None
        seen = tubelets if before is None else torch.cat((before[None], tubelets))
        self._scores.setdefault(piece.item, []).append(changes(seen)[len(seen) - len(tubelets) :])
        self._last = tubelets[-1]

    def keep(
        self, piece: Piece, tubelets: Float[Tensor, "steps places width"], rate: float
    ) -> Bool[Tensor, "steps places"]:
        """The clip's mask, from this stretch's first tubelet on."""
        if not rate:
            return torch.ones(tubelets.shape[:2], dtype=torch.bool, device=tubelets.device)
        if piece.item not in self._masks:
            self._masks[piece.item] = evs_of_scores(torch.cat(self._scores.pop(piece.item)), rate)
        return self._masks[piece.item][piece.step : piece.step + len(tubelets)]


def _unpruned(piece: Piece) -> Media:
    media = piece.batch.media
    return replace(media, rates=torch.zeros_like(media.rates))


def _tubelets(features: Features, piece: Piece) -> Tensor:
    """The tubelets of a stretch, none left out: (steps, places, width)."""
    steps = piece.batch.media.counts["tubelet"]
    return features.tubelet.unflatten(0, (steps, -1))


def _pruned(features: Features, piece: Piece, pruning: Exact | Causal) -> Features:
    """What is left of a piece's features; all but a clip's stay as they are."""
    media = piece.batch.media
    if not len(media.clips):
        return features
    tubelets = _tubelets(features, piece)
    mask = pruning.keep(piece, tubelets, float(media.rates[0]))
    counts = {**features.counts, "tubelet": mask.sum(1).tolist()}
    kept = (mask.view(features.kept[0].shape),)
    return replace(features, tubelet=tubelets[mask], counts=counts, kept=kept)
