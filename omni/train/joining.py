"""Towers and language model become one: projectors learn the stand-in's features, then all parts learn to answer.

The order of the paper's stages (Nemotron 3 Nano Omni, arXiv 2604.24954, section 3): projectors, vision, sound, then
everything together; here each tower and the backbone arrive already taught.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.model import OmniModel
from omni.splice import Features
from omni.train import mixture, ranks
from omni.train.data.page import BOUND, CLEAR, FIELDS
from omni.train.data.sounds import Voice
from omni.train.language import BALANCE_LOSS, Balancer, Knowing, answers, right_answers
from omni.train.loop import Run, Schedule, products
from omni.train.packing import Known, Packed, Packer
from omni.train.readers import field_loss
from omni.train.shape import tiny_config
from omni.train.stand_in import FILM_FIELDS
from processors.batch import KINDS

IMITATED = {
    "lines": 2.0, "document": 4.0, "transcription": 1.0, "chart": 0.6, "screen": 0.8, "video": 1.0, "time": 0.3,
    "speech": 2.0, "sounds": 0.5, "sound and video": 0.5,
}  # fmt: skip
ALONE = 200  # steps in which projectors learn alone: what they give is far off at first, and would shake the towers


class Joined(nn.Module):
    """The whole model, the stand-in that its projectors imitate, and heads that keep telling what patches show."""

    def __init__(self) -> None:
        super().__init__()
        self.knowing = Knowing(tiny_config())
        assert self.model.vision is not None
        self.head = nn.Linear(self.model.vision.width, sum(FIELDS))
        self.film_head = nn.Linear(self.model.vision.width, sum(FILM_FIELDS))
        self.bound_head = nn.Linear(self.model.vision.width, sum(BOUND))

    @property
    def model(self) -> OmniModel:
        """The model that is shipped."""
        return self.knowing.model

    def encode(self, packed: Packed) -> tuple[Features, Tensor]:
        """Features of the towers, and the loss of the dense heads on the vision tower's output."""
        with watched(self.model.vision_norm) as seen:
            features = self.model.encode(packed.batch.media)
        pictures = sum(fields.shape[0] * fields.shape[1] for fields in packed.known.pictures)
        losses = [features.image.new_zeros(())]
        for x in seen:
            of_charts = charts_among(packed.known)
            if bool(of_charts.any()):
                losses.append(2 * field_loss(self.bound_head(x[:pictures][of_charts]), bound_of(packed.known), BOUND))
            if pictures:
                losses.append(field_loss(self.head(x[:pictures]), fields_of(packed.known.pictures), FIELDS))
            if len(x) > pictures:
                losses.append(field_loss(self.film_head(x[pictures:]), fields_of(packed.known.films), FILM_FIELDS))
        return features, torch.stack(losses).sum()


@contextmanager
def watched(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a module gives while this is open."""
    assert module is not None
    seen: list[Tensor] = []

    def look(_module: nn.Module, _given: object, out: Tensor) -> None:
        seen.append(out)

    handle = module.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def charts_among(known: Known) -> Tensor:
    """(patches,) of all pictures: whether each is a chart's."""
    flags = [
        torch.full((fields.shape[0] * fields.shape[1],), bound is not None)
        for fields, bound in zip(known.pictures, known.bound, strict=True)
    ]
    return torch.cat(flags) if flags else torch.zeros(0, dtype=torch.bool)


def bound_of(known: Known) -> Tensor:
    """(patches, fields) of all charts."""
    return fields_of(tuple(each for each in known.bound if each is not None))


def fields_of(items: tuple) -> Tensor:
    """(patches, fields) of all items, packed as their patches are."""
    return torch.cat([torch.from_numpy(item.reshape(-1, item.shape[-1]).copy()).long() for item in items])


def gaps(made: Features, wanted: Features) -> dict[str, Tensor]:
    """For each kind of media, the squared distance of features from those wanted, over the latter's variance."""
    found: dict[str, Tensor] = {}
    for kind in KINDS:
        here, there = getattr(made, kind), getattr(wanted, kind)
        if len(there):
            found[f"gap {kind}"] = (here - there).float().square().mean() / there.float().var()
    return found


def load_parts(joined: Joined, folders: Mapping[str, Path]) -> None:
    """Put the parts that learnt alone together, each from its stage's checkpoint.

    folders: of "language", "vision tower" and "audio tower". Raises ValueError where a checkpoint is missing.
    """
    saved = {}
    for name, folder in folders.items():
        path = folder / f"{name}.pt"
        if not path.is_file():
            raise ValueError(f"joining: {path} is missing; run that stage first")
        saved[name] = torch.load(path, weights_only=True)["module"]
    model = joined.model
    if "language" in saved:
        joined.knowing.load_state_dict(saved["language"])
    if "vision tower" in saved:
        for part, prefix in ((model.vision, "tower."), (model.vision_norm, "norm."), (joined.head, "head."),
                             (joined.film_head, "film_head.")):  # fmt: skip
            assert part is not None
            part.load_state_dict(_below(saved["vision tower"], prefix))
    if "audio tower" in saved:
        assert model.audio is not None
        model.audio.load_state_dict(_below(saved["audio tower"], "tower."))


def load_language(joined: Joined, saved: Mapping[str, Tensor]) -> None:
    """Take the backbone of a "language" checkpoint, which may have learnt on while the projectors did."""
    for name in ("embeddings", "backbone", "head"):
        getattr(joined.model, name).load_state_dict(_below(saved, f"model.{name}."))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


@torch.no_grad()
def wanted_features(joined: Joined, known: Known) -> Features:
    """The stand-in's features, without its noise."""
    stand_in = joined.knowing.stand_in
    training = stand_in.training
    features = stand_in.eval()(known)
    stand_in.train(training)
    return features


def projection(
    joined: Joined,
    folder: Path,
    voice: Voice,
    *,
    steps: int = 900,
    tokens: int = 2048,
    seed: int = 1,
    held_out: Voice | None = None,
    quiet: bool = False,
) -> None:
    """Projectors imitate the stand-in, alone at first, then with the towers; the backbone waits."""
    model = joined.model
    towers = [model.vision, model.vision_norm, model.audio]
    joined.requires_grad_(False)
    for part in (model.vision, model.vision_norm, model.project_vision, model.audio, model.project_audio, joined.head,
                 joined.film_head):  # fmt: skip
        assert part is not None
        part.requires_grad_(True)
    run = Run(
        joined, Schedule(steps=steps, rate=1.2e-3, matrix_rate=1.5e-3, warmup=50, decay=0.6), folder, "projection"
    )
    run.resume()
    packer, made = Packer(drawn=True), mixture.makers(voice, turns=1)  # what is asked does not matter here

    def objective(step: int) -> dict[str, Tensor]:
        for tower in towers:
            assert tower is not None
            tower.requires_grad_(step >= ALONE)
        rng = Random(ranks.seed(f"{seed} projection {step}"))
        packed = packer(mixture.draw(rng, made, IMITATED, tokens))
        with products():
            features, dense = joined.encode(packed)
            found = gaps(features, wanted_features(joined, packed.known))
        return {"loss": torch.stack(list(found.values())).sum() + dense, "dense": dense, **found}

    run.train(objective, evaluate=checks(joined, held_out or voice), evaluate_every=250, quiet=quiet)


def together(
    joined: Joined,
    folder: Path,
    voice: Voice,
    *,
    steps: int = 3500,
    tokens: int = 4096,
    seed: int = 1,
    held_out: Voice | None = None,
    quiet: bool = False,
) -> None:
    """All parts learn to answer about real pixels and sound; patches go on telling what they show."""
    model = joined.model
    joined.requires_grad_(True)
    joined.knowing.stand_in.requires_grad_(False)
    assert model.mtp is not None
    model.mtp.requires_grad_(False)
    balancer = Balancer(model.backbone)
    run = Run(
        joined,
        Schedule(steps=steps, rate=8e-4, matrix_rate=1.2e-3, warmup=50, decay=0.48, weight_decay=0.05),
        folder,
        "together",
    )
    run.resume()
    packer, made = Packer(drawn=True), mixture.makers(voice, how=CLEAR, shown=2, lists=0.7)

    def objective(step: int) -> dict[str, Tensor]:
        rng = Random(ranks.seed(f"{seed} together {step}"))
        packer.rate = rng.choice((0.0, 0.0, 0.3, 0.5, 0.75))
        packed = packer(mixture.draw(rng, made, mixture.JOINT, tokens))
        with products():
            features, dense = joined.encode(packed)
            logits, targets, _, _ = answers(model, packed, features)
        loss, balance = F.cross_entropy(logits.float(), targets), balancer.loss()
        balancer.step()
        return {"loss": loss + 0.5 * dense + BALANCE_LOSS * balance, "answers": loss, "dense": dense}

    run.train(objective, evaluate=checks(joined, held_out or voice), evaluate_every=250, quiet=quiet)


def checks(joined: Joined, voice: Voice, each: int = 24):
    """A function that tells the share of exact answers by skill, on fonts and seeds that training never sees."""
    packer, made = Packer(drawn=True), mixture.makers(voice, held_out=True, turns=2, how=CLEAR)
    rng = Random("joined held out")
    batches = [packer([made[name](rng) for _ in range(each)]) for name in mixture.ALL]

    def evaluate() -> dict[str, float]:
        found: dict[str, list[bool]] = {}
        for packed in batches:
            with products():
                features, _ = joined.encode(packed)
                logits, targets, places, _ = answers(joined.model, packed, features)
            for skill, goods in right_answers(logits, targets, places, packed.skills).items():
                found.setdefault(skill, []).extend(goods)
        return {f"exact {skill}": round(sum(goods) / len(goods), 3) for skill, goods in found.items()}

    return evaluate
