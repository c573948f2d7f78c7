"""Splice: put the features of media at their slots, as many as arrived.

Each slot's one placeholder becomes a run of placeholders, one a feature; a slot whose features were all pruned
vanishes. Ids and embeddings grow together, so they agree whatever token reduction did.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from processors.batch import KINDS, Batch, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Features of a batch's media at the backbone's width, packed in the order of the items, and their number an
    item.

    kept: which of each clip's tokens pruning left (empty where nobody will ask).
    """

    image: Float[Tensor, "image_tokens width"]
    tubelet: Float[Tensor, "tubelet_tokens width"]
    audio: Float[Tensor, "audio_tokens width"]
    counts: dict[Kind, list[int]]
    kept: tuple[Bool[Tensor, "_ _ _"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced:
    """What the backbone reads.

    spans: each slot's (start, stop) among the packed tokens. kept: (steps, rows, cols) of each clip, True where pruning
    left the token.
    """

    embeddings: Float[Tensor, "tokens width"]
    tokens: Int[Tensor, " tokens"]
    lengths: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    kept: tuple[Bool[Tensor, "_ _ _"], ...] = ()


def expand(
    batch: Batch, counts: dict[Kind, list[int]]
) -> tuple[Int[Tensor, " tokens"], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The ids with every placeholder repeated for its features, the lengths and the slots' spans.

    Raises ValueError when nothing is left of a sequence or the counts do not cover the items.
    """
    for kind, items in batch.media.counts.items():
        if len(counts[kind]) != items:
            raise ValueError(
                f"splice: features of {len(counts[kind])} {kind} items came for {items} in the batch; encode this "
                "batch's media"
            )
    repeats = torch.ones(len(batch.tokens), dtype=torch.long)
    for slot in batch.slots:
        repeats[slot.position] = sum(counts[slot.kind][slot.first : slot.first + slot.count])
    ends = repeats.cumsum(0)
    tokens = batch.tokens.repeat_interleave(repeats.to(batch.tokens.device))
    edges = [0, *(int(ends[end - 1]) for end in batch.lengths.cumsum(0).tolist())]
    lengths = tuple(b - a for a, b in pairwise(edges))
    if min(lengths) < 1:
        raise ValueError(f"splice: sequences of {list(lengths)} tokens are left after pruning; give each some text")
    spans = tuple((int(ends[s.position] - repeats[s.position]), int(ends[s.position])) for s in batch.slots)
    return tokens, lengths, spans


def splice(batch: Batch, table: Float[Tensor, "vocabulary width"], features: Features | None) -> Spliced:
    """Embed the ids and put the features over the placeholders, differentiable in both.

    Raises ValueError for an id outside the vocabulary, and for features of another width or number.
    """
    counts: dict[Kind, list[int]] = features.counts if features else {kind: [] for kind in KINDS}
    tokens, lengths, spans = expand(batch, counts)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= len(table):
        raise ValueError(
            f"splice: token ids from {low} to {high} came for a vocabulary of {len(table)}; "
            "use the processor that belongs to this model"
        )
    embeddings = torch.nn.functional.embedding(tokens, table)
    for kind in KINDS:
        places = [range(*span) for slot, span in zip(batch.slots, spans, strict=True) if slot.kind == kind]
        if features and places:
            at = torch.tensor([place for span in places for place in span], device=tokens.device, dtype=torch.long)
            values = {"image": features.image, "tubelet": features.tubelet, "audio": features.audio}[kind]
            if values.shape != (len(at), table.shape[1]):
                raise ValueError(
                    f"splice: {kind} features of shape {tuple(values.shape)} came for {len(at)} places of width "
                    f"{table.shape[1]}; encode this batch's media with this model"
                )
            embeddings = embeddings.index_put((at,), values.to(embeddings.dtype))
    kept = features.kept if features else ()
    return Spliced(embeddings=embeddings, tokens=tokens, lengths=lengths, spans=spans, kept=kept)
