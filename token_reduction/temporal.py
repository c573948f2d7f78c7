"""Efficient video sampling (EVS): of each clip, keep the tokens that changed since the tubelet before.

Source: EVS (arXiv 2510.14624), Nemotron Nano V2 VL (arXiv 2511.03929, section 2.3), Nemotron 3 Nano Omni (arXiv
2604.24954). The backbone's attention has no positions, so what is not kept is simply deleted. Beside the published
rule: one with a floor for every tubelet, a causal one that needs only the tubelet before (bounded memory), and random
and uniform dropping as baselines, all keeping the same number.

Clips lie one behind the other: `clips` holds (steps, rows, cols) of each in tokens, `rates` the share to remove.
Masks are True where a token is kept. Rates are float64, so that 0.7 means what it means in Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

FIRST = 255.0  # the score of a first tubelet's tokens: above any change
BLOCK = 2**20  # feature values scored at a time, so that their wide copies stay small beside the clip


def num_kept(steps: int, places: int, rate: float) -> int:
    """Tokens kept of `steps` tubelets of `places` tokens: a first tubelet at least. Depends on the shape alone.

    Raises ValueError unless 0 <= rate < 1 and the sizes are positive.
    """
    if not 0 <= rate < 1 or steps < 1 or places < 1:
        raise ValueError(
            f"num_kept: rate {rate} on {steps} tubelets of {places} tokens; want 0 <= rate < 1 and positive sizes"
        )
    return max(places, int(steps * places * (1 - rate)))


def changes(
    features: Float[Tensor, "steps places width"], score_dtype: torch.dtype = torch.float32
) -> Float[Tensor, "steps places"]:
    """1 - cosine between each token and the one before it at its place; 255 for the first tubelet.

    Raises ValueError for features that are not finite: they have no order.
    """
    steps, places, width = features.shape
    scores = torch.full((steps, places), FIRST, dtype=score_dtype, device=features.device)
    block = max(1, BLOCK // max(1, places * width))
    for start in range(1, steps, block):
        wide = features[start - 1 : start + block].to(score_dtype)
        scores[start : start + block] = 1 - F.cosine_similarity(wide[1:], wide[:-1], dim=-1)
    if bool(scores.isnan().any()):
        raise ValueError(
            f"evs: features of {steps} tubelets of {places} tokens are not all finite; "
            "run the tower and its projector in float32 or bfloat16"
        )
    return scores


@torch.no_grad()
def evs(
    features: Float[Tensor, "tokens width"],
    clips: Int[Tensor, "clips 3"],
    rates: Float[Tensor, " clips"],
    score_dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " tokens"]:
    """Keep the `num_kept` tokens of each clip that changed most; of equals, the earlier.

    `score_dtype` other than float32 is for bit parity with engines that score in the model's dtype: in bfloat16 most
    scores are ties.
    """

    def choose(clip: Tensor, keep: int) -> Tensor:
        if keep == clip.shape[0] * clip.shape[1]:  # nothing to choose, so nothing to score
            return torch.ones(keep, dtype=torch.bool, device=clip.device)
        return _best(changes(clip, score_dtype).flatten(), keep)

    return _each_clip(features, clips, rates, choose)


@torch.no_grad()
def evs_of_scores(scores: Float[Tensor, "steps places"], rate: float) -> Bool[Tensor, "steps places"]:
    """`evs` of one clip whose `changes` are at hand: of a long one its features need not be."""
    steps, places = scores.shape
    return _best(scores.flatten(), num_kept(steps, places, rate)).view(steps, places)


@torch.no_grad()
def evs_with_floor(
    features: Float[Tensor, "tokens width"],
    clips: Int[Tensor, "clips 3"],
    rates: Float[Tensor, " clips"],
    floor: int,
    score_dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " tokens"]:
    """EVS that keeps at least `floor` tokens of every tubelet, within the same total.

    Raises ValueError when the floors alone need more than the total, or more than a tubelet has.
    """

    def choose(clip: Tensor, keep: int) -> Tensor:
        steps, places, _ = clip.shape
        if not 0 <= floor <= places or steps * floor > keep:
            raise ValueError(
                f"evs_with_floor: a floor of {floor} in {steps} tubelets of {places} tokens, {keep} kept in all; "
                f"want at most {min(places, keep // steps)}"
            )
        scores = changes(clip, score_dtype)
        sure = torch.stack([_best(row, floor) for row in scores]).flatten()
        rest = _best(scores.flatten().masked_fill(sure, -torch.inf), keep - int(sure.sum()))
        return sure | rest

    return _each_clip(features, clips, rates, choose)


@torch.no_grad()
def evs_step(
    features: Float[Tensor, "places width"],
    before: Float[Tensor, "places width"] | None,
    step: int,
    rate: float,
    score_dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " places"]:
    """One tubelet of causal EVS: its tokens that changed most since `before` (None for the first, kept whole).

    Tubelet `step` (from 0) is given what the published rule's total grows by, num_kept(step + 1) - num_kept(step), so
    any prefix of a clip keeps as many tokens as EVS would, and no later frame changes an earlier choice.
    """
    places = len(features)
    if (before is None) != (step == 0):
        raise ValueError(f"evs_step: tubelet {step} came {'without' if before is None else 'with'} the one before it")
    kept = num_kept(step + 1, places, rate)
    if before is None:
        return torch.ones(places, dtype=torch.bool, device=features.device)
    if before.shape != features.shape:
        raise ValueError(
            f"evs_step: a tubelet of shape {tuple(features.shape)} came after one of {tuple(before.shape)}; "
            "begin another clip with step 0 and nothing before"
        )
    share = kept - num_kept(step, places, rate)
    assert 0 <= share <= places
    return _best(changes(torch.stack((before, features)), score_dtype)[1], share)


@torch.no_grad()
def evs_causal(
    features: Float[Tensor, "tokens width"],
    clips: Int[Tensor, "clips 3"],
    rates: Float[Tensor, " clips"],
    score_dtype: torch.dtype = torch.float32,
) -> Bool[Tensor, " tokens"]:
    """`evs_step` over whole clips. Keeps as many tokens as `evs`."""
    masks: list[Tensor] = []
    for clip, rate in _split(features, clips, rates):
        before: Tensor | None = None
        for step, tubelet in enumerate(clip):
            masks.append(evs_step(tubelet, before, step, rate, score_dtype))
            before = tubelet
    return torch.cat(masks) if masks else features.new_zeros(0, dtype=torch.bool)


@torch.no_grad()
def random_dropping(
    features: Float[Tensor, "tokens width"],
    clips: Int[Tensor, "clips 3"],
    rates: Float[Tensor, " clips"],
    generator: torch.Generator | None = None,
) -> Bool[Tensor, " tokens"]:
    """Baseline: as many tokens as `evs` keeps, drawn evenly from the whole clip."""

    def choose(clip: Tensor, keep: int) -> Tensor:
        device = generator.device if generator else None
        draw = torch.rand(clip.shape[0] * clip.shape[1], generator=generator, device=device)
        return _best(draw, keep).to(clip.device)

    return _each_clip(features, clips, rates, choose)


@torch.no_grad()
def uniform_dropping(
    features: Float[Tensor, "tokens width"],
    clips: Int[Tensor, "clips 3"],
    rates: Float[Tensor, " clips"],
) -> Bool[Tensor, " tokens"]:
    """Baseline: as many tokens as `evs` keeps, in whole tubelets spread evenly (the first one included).

    What does not fill a tubelet is the beginning of one more.
    """

    def choose(clip: Tensor, keep: int) -> Tensor:
        steps, places, _ = clip.shape
        whole, rest = divmod(keep, places)
        count = whole + (rest > 0)
        chosen = [index * steps // count for index in range(count)]
        mask = torch.zeros(steps, places, dtype=torch.bool, device=clip.device)
        mask[chosen] = True
        if rest:
            mask[chosen[-1], rest:] = False
        return mask.flatten()

    return _each_clip(features, clips, rates, choose)


def num_kept_per_step(mask: Bool[Tensor, " tokens"], clips: Int[Tensor, "clips 3"]) -> Int[Tensor, " steps"]:
    """How many tokens are kept of each tubelet, all clips' tubelets one behind the other; on the CPU.

    Raises ValueError when the clips do not add up to the mask.
    """
    if int(clips.prod(-1).sum()) != len(mask):
        raise ValueError(
            f"num_kept_per_step: a mask of {len(mask)} came for clips {clips.tolist()}; "
            "want steps * rows * cols of each"
        )
    sizes = torch.cat([torch.full((steps,), rows * cols) for steps, rows, cols in clips.tolist()] or [torch.zeros(0)])
    steps = torch.arange(len(sizes)).repeat_interleave(sizes.long())
    return torch.bincount(steps[mask.cpu()], minlength=len(sizes))


def _best(scores: Tensor, keep: int) -> Tensor:
    """True at the `keep` highest; of equals, the earlier."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.argsort(descending=True, stable=True)[:keep]] = True
    return mask


def _split(features: Tensor, clips: Tensor, rates: Tensor) -> list[tuple[Tensor, float]]:
    """Each clip as (steps, places, width) with its rate."""
    sizes = clips.prod(-1).tolist()
    if bool((clips < 1).any()):
        raise ValueError(f"evs: clips {clips.tolist()} hold an empty one; leave clips without tokens out")
    if sum(sizes) != len(features):
        raise ValueError(
            f"evs: {len(features)} tokens came for clips {clips.tolist()}; want steps * rows * cols of each"
        )
    if rates.dtype != torch.float64:
        raise ValueError(f"evs: rates are {rates.dtype}; want float64, since int(n * (1 - rate)) depends on every bit")
    if len(rates) != len(clips):
        raise ValueError(f"evs: {len(rates)} rates came for {len(clips)} clips; give each clip its own")
    parts = zip(features.split(sizes), clips[:, 0].tolist(), rates.tolist(), strict=True)
    return [(part.unflatten(0, (steps, -1)), rate) for part, steps, rate in parts]


def _each_clip(features: Tensor, clips: Tensor, rates: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    masks = [choose(clip, num_kept(len(clip), clip.shape[1], rate)) for clip, rate in _split(features, clips, rates)]
    return torch.cat(masks) if masks else features.new_zeros(0, dtype=torch.bool)
