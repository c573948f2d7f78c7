"""The whole model: a batch of many = each alone, pruned ids agree with embeddings, and everything trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import small
import torch

from omni.model import OmniModel
from omni.moe import Router
from omni.splice import Features
from processors.batch import Batch, Media, Slot
from token_reduction import evs, evs_causal, random_dropping, uniform_dropping

OMNI = small.FAMILIES["Omni"]


@torch.no_grad()
def test_a_batch_of_mixed_requests_equals_each_alone() -> None:
    model = small.model(OMNI)
    requests = [small.mixed(seed) if seed % 3 else small.sentence(5 + seed, seed) for seed in range(6)]
    together = list(model(Batch.pack(requests)))
    assert len(together) == 6
    for got, request in zip(together, requests, strict=True):
        torch.testing.assert_close(got, model(request).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_of_mixed_requests_equals_each_alone_in_bfloat16_but_for_rounding() -> None:
    """The order of sums within a product may differ, and with it the last bit; a router near a tie turns on it."""
    model = small.model(OMNI).bfloat16()
    requests = [small.mixed(seed).to("cpu", torch.bfloat16) for seed in (1, 2, 3)] + [small.sentence(8)]
    together = model(Batch.pack(requests))
    exact = small.model(OMNI)(Batch.pack([small.mixed(seed) for seed in (1, 2, 3)] + [small.sentence(8)]))
    assert together.logits.dtype == torch.bfloat16
    assert together.lengths == exact.lengths
    error = ((together.logits - exact.logits).norm(dim=-1) / exact.logits.norm(dim=-1)).median()
    assert 1e-4 < float(error) < 0.03
    for got, request in zip(together, requests, strict=True):
        alone = model(request).logits
        rows = ((got - alone).float().norm(dim=-1) / alone.float().norm(dim=-1)).median()
        assert float(rows) < float(error)


def test_packing_and_iterating_undo_one_another() -> None:
    requests = [small.mixed(1), small.sentence(7), small.mixed(4), small.mixed(2)]
    for got, want in zip(Batch.pack(requests), requests, strict=True):
        assert torch.equal(got.tokens, want.tokens)
        assert got.slots == want.slots
        for name in ("patches", "grids", "tubelets", "clips", "rates", "mels", "frames", "trims"):
            a, b = getattr(got.media, name), getattr(want.media, name)
            assert len(a) == len(b) == 0 or torch.equal(a, b)


@torch.no_grad()
def test_ids_and_embeddings_agree_after_pruning() -> None:
    model = small.model(OMNI)
    batch = small.mixed(3)
    spliced = model.embed(batch)
    features = model.encode(batch.media)
    steps = features.counts["tubelet"]
    assert sum(steps[:3]) == 3  # max(2, int(3 * 2 * 0.5))
    assert sum(steps[3:]) == 11  # max(4, int(4 * 4 * 0.7))
    assert len(spliced.tokens) == len(spliced.embeddings) == sum(spliced.lengths)
    placeholders = sum(stop - start for start, stop in spliced.spans)
    assert placeholders == len(features.image) + len(features.tubelet) + len(features.audio)
    table = model.embeddings.weight
    inside = torch.zeros(len(spliced.tokens), dtype=torch.bool)
    for slot, (start, stop) in zip(batch.slots, spliced.spans, strict=True):
        assert set(spliced.tokens[start:stop].tolist()) <= {27 if slot.kind == "audio" else 18}
        inside[start:stop] = True
    assert torch.equal(spliced.embeddings[~inside], table[spliced.tokens[~inside]])
    assert torch.equal(
        spliced.embeddings[spliced.spans[0][0] : spliced.spans[0][1]], features.image[: features.counts["image"][0]]
    )


@torch.no_grad()
@pytest.mark.parametrize("prune", [evs_causal, random_dropping, uniform_dropping, partial(evs, score_dtype=torch.half)])
def test_clips_may_be_pruned_otherwise_to_the_same_number(prune: Callable[..., torch.Tensor]) -> None:
    model, request = small.model(OMNI), small.mixed(3)
    whole = model(request)
    media = request.media
    plain = model.encode(replace(media, rates=torch.zeros(2, dtype=torch.float64))).tubelet
    model.prune = prune
    torch.manual_seed(4)
    features = model.encode(media)
    torch.manual_seed(4)
    mask = prune(plain, torch.tensor([[3, 1, 2], [4, 2, 2]]), media.rates)
    assert torch.equal(features.tubelet, plain[mask])
    assert len(model(request, features=features).tokens) == len(whole.tokens)


@torch.no_grad()
def test_a_typed_placeholder_stays_text() -> None:
    model = small.model(OMNI)
    batch = small.mixed(1)
    spliced = model.embed(batch)
    assert spliced.tokens[-2] == 18
    assert torch.equal(spliced.embeddings[-2], model.embeddings.weight[18])


@torch.no_grad()
def test_one_slot_may_hold_several_items() -> None:
    model = small.model(OMNI)
    patches = torch.randn(12, 768)
    grids = torch.tensor([[2, 2], [4, 2]])
    media = Media(patches=patches, grids=grids)
    one = Batch(
        tokens=torch.tensor([5, 18, 6]),
        lengths=torch.tensor([3]),
        slots=(Slot(position=1, kind="image", first=0, count=2),),
        media=media,
    )
    two = Batch(
        tokens=torch.tensor([5, 18, 18, 6]),
        lengths=torch.tensor([4]),
        slots=(Slot(position=1, kind="image", first=0), Slot(position=2, kind="image", first=1)),
        media=media,
    )
    assert torch.equal(model(one).logits, model(two).logits)


@torch.no_grad()
def test_media_may_be_encoded_before_and_given() -> None:
    model = small.model(OMNI)
    batch = small.mixed(2)
    assert torch.equal(model(batch, features=model.encode(batch.media)).logits, model(batch).logits)


@torch.no_grad()
def test_a_conversation_goes_on_from_its_state() -> None:
    model = small.model(OMNI)
    first, second = small.mixed(2), small.sentence(9)
    whole = Batch(
        tokens=torch.cat((first.tokens, second.tokens)),
        lengths=first.lengths + second.lengths,
        slots=first.slots,
        media=first.media,
    )
    state = model.new_state()
    model(first, state)
    got = model(second, state)
    torch.testing.assert_close(got.logits, model(whole).logits[-9:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", list(small.FAMILIES))
def test_one_step_lowers_the_loss_and_every_weight_takes_part(family: str) -> None:
    config = small.FAMILIES[family]
    model = small.model(config).train()
    batch = small.sentence(40)
    if config.vision:
        batch = Batch.pack([batch, small.mixed(1, config.vision.tubelet_frames, config.audio is not None)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def loss() -> torch.Tensor:
        out = model(batch)
        value = torch.nn.functional.cross_entropy(out.logits[:-1], out.tokens[1:])
        if model.mtp is not None:
            following = model.embeddings(out.tokens[1:])
            lengths = (*out.lengths[:-1], out.lengths[-1] - 1)
            ahead = model.head(model.mtp(following, out.hidden[:-1], lengths))
            value = value + 0.3 * torch.nn.functional.cross_entropy(ahead[:-1], out.tokens[2:])
        return value

    before = loss()
    before.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not idle
    assert not [name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.any())]
    optimizer.step()
    with torch.no_grad():
        assert loss() < before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near_full(dtype: torch.dtype) -> None:
    model = small.model(OMNI)
    batch = small.mixed(1)
    want = model.encode(batch.media)
    model = model.to(dtype)
    batch = batch.to("cpu", dtype)
    got = model.encode(batch.media)
    assert got.image.dtype == dtype
    assert got.counts == want.counts
    torch.testing.assert_close(got.image.float(), want.image, rtol=0.1, atol=0.05)
    torch.testing.assert_close(got.audio.float(), want.audio, rtol=0.1, atol=0.05)
    if dtype == torch.bfloat16:
        logits = model(batch, features=replace_tubelets(got, want)).logits.float()
        reference = small.model(OMNI)(small.mixed(1), features=want).logits
        rows = (logits - reference).norm(dim=-1) / reference.norm(dim=-1)
        assert float(rows.median()) < 0.03  # a row whose router was near a tie may take another expert


def replace_tubelets(got: Features, want: Features) -> Features:
    """Near ties of EVS may fall otherwise in half precision; compare with the same choice."""
    return replace(got, tubelet=want.tubelet.to(got.image.dtype))


def test_recomputing_gives_the_same_gradients() -> None:
    model = small.model(OMNI)
    batch = small.mixed(1)
    grads = []
    for recompute in (False, True):
        model.backbone.checkpoint = recompute
        assert model.vision is not None
        assert model.audio is not None
        model.vision.checkpoint = model.audio.checkpoint = recompute
        model.zero_grad()
        model(batch).logits.square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_the_routers_bias_only_selects() -> None:
    router = Router(small.MOE, 32)
    x = torch.randn(50, 32)
    weights, chosen, scores = router(x)
    router.e_score_correction_bias[3] = 10.0
    biased, now, _ = router(x)
    assert bool((now == 3).any(-1).all())
    assert not bool((chosen == 3).any(-1).all())
    torch.testing.assert_close(biased.sum(-1), torch.full((50,), 2.5))
    same = (now.sort(-1).values == chosen.sort(-1).values).all(-1)
    torch.testing.assert_close(biased[same].sort(-1).values, weights[same].sort(-1).values)
    assert scores.shape == (50, 6)


def test_a_softmax_router_weighs_by_probabilities() -> None:
    router = Router(replace(small.MOE, router="softmax", normalize=False, scale=1.0), 32)
    weights, chosen, scores = router(torch.randn(9, 32))
    torch.testing.assert_close(scores.sum(-1), torch.ones(9))
    torch.testing.assert_close(weights, scores.gather(-1, chosen))


@torch.no_grad()
def test_drafting_one_by_one_equals_at_once() -> None:
    model = small.model(small.FAMILIES["Super"])
    assert model.mtp is not None
    out = model(small.sentence(12))
    following = model.embeddings(out.tokens)
    state = model.mtp.new_state()
    steps = [model.mtp(following[t : t + 1], out.hidden[t : t + 1], (1,), state) for t in range(12)]
    torch.testing.assert_close(torch.cat(steps), model.mtp(following, out.hidden, (12,)), rtol=1e-4, atol=1e-5)


def batch(**changes: object) -> Batch:
    values: dict[str, object] = {"tokens": torch.tensor([5, 18, 6]), "lengths": torch.tensor([3])}
    return Batch(**(values | changes))  # pyright: ignore[reportArgumentType]  (each case breaks one)


def with_features(**changes: torch.Tensor) -> None:
    model, request = small.model(OMNI), small.mixed(1)
    plain: Any = inspect.unwrap(Features.__init__)  # the annotations would refuse it first
    features = model.encode(request.media)
    values = {name: getattr(features, name) for name in ("image", "tubelet", "audio", "counts", "kept")} | changes
    plain(made := object.__new__(Features), **values)
    model(request, features=made)


PICTURE = Media(patches=torch.zeros(4, 768), grids=torch.tensor([[2, 2]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: batch(lengths=torch.tensor([2])), "want 2"),
        (lambda: batch(lengths=torch.tensor([3, 0])), "empty sequence"),
        (lambda: batch(slots=(Slot(position=1, kind="image", first=0),)), "image slots take 1 items"),
        (lambda: batch(media=PICTURE), "the media hold 1"),
        (lambda: batch(media=PICTURE, slots=(Slot(position=3, kind="image", first=0),)), "outside the 3 ids"),
        (lambda: batch(media=PICTURE, slots=(Slot(position=1, kind="image", first=1),)), "gap or overlap"),
        (lambda: batch(media=PICTURE, slots=(Slot(position=1, kind="image", first=0, count=0),)), "gap or overlap"),
        (lambda: batch(slots=(Slot(position=1, kind="image", first=0),) * 2), "do not rise"),
        (lambda: Media(patches=torch.zeros(3, 768), grids=torch.tensor([[2, 2]])), "Media.patches: 3 rows"),
        (lambda: Media(tubelets=torch.zeros(3, 1536), clips=torch.tensor([[1, 2, 2]])), "Media.tubelets: 3 rows"),
        (lambda: Media(mels=torch.zeros(3, 128), frames=torch.tensor([4])), "Media.mels: 3 frames"),
        (lambda: Media(rates=torch.zeros(1, dtype=torch.float64)), "1 rates came for 0 clips"),
        (lambda: Media(trims=torch.zeros(1, 2, dtype=torch.long)), "1 pairs came for 0 sounds"),
        (lambda: Batch.pack([]), "no batch"),
        (lambda: small.model(OMNI)(batch(tokens=torch.tensor([5, 64, 6]))), "vocabulary of 64"),
        (lambda: small.model(small.FAMILIES["Nano 3"])(small.mixed(1)), "no vision"),
        (
            lambda: small.model(small.FAMILIES["V2 VL"]).encode(
                Media(mels=torch.zeros(8, 16), frames=torch.tensor([8]))
            ),
            "no hearing",
        ),
        (
            lambda: small.model(OMNI)(small.mixed(1), features=small.model(OMNI).encode(Media())),
            "encode this batch's media",
        ),
        (lambda: with_features(image=torch.zeros(3, 32)), r"image features of shape \(3, 32\) came for 5 places"),
        (lambda: with_features(audio=torch.zeros(3, 16)), "audio features of shape"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_a_sequence_of_pruned_media_alone_is_refused() -> None:
    from omni.splice import expand

    empty = batch(
        media=PICTURE,
        slots=(Slot(position=1, kind="image", first=0),),
        tokens=torch.tensor([5, 18, 6]),
        lengths=torch.tensor([1, 1, 1]),
    )
    with pytest.raises(ValueError, match="after pruning"):
        expand(empty, {"image": [0], "tubelet": [], "audio": []})


def test_tied_embeddings_share_their_weights() -> None:
    config = replace(small.FAMILIES["Nano 2"], backbone=replace(small.FAMILIES["Nano 2"].backbone, tied=True))
    model = OmniModel(config)
    assert model.head.weight is model.embeddings.weight


@torch.no_grad()
def test_the_masks_tell_which_tokens_pruning_left() -> None:
    model, batch = small.model(small.FAMILIES["Omni"]), small.mixed(2)
    features = model.encode(batch.media)
    assert [tuple(mask.shape) for mask in features.kept] == [(3, 1, 2), (3, 2, 2)]
    per_step = [int(step.sum()) for mask in features.kept for step in mask]
    assert per_step == features.counts["tubelet"]
    whole = replace(batch.media, rates=torch.zeros(2, dtype=torch.float64))
    every = torch.cat([mask.flatten() for mask in features.kept])
    assert torch.equal(model.encode(whole).tubelet[every], features.tubelet)
    assert not bool(every.all())
    assert model.embed(batch, features).kept == features.kept
