"""The language model learns to answer from what the renderer knows; then with the towers' own features.

Loss on the answers' tokens alone. Router biases move towards even loads after each step, and a small loss does the
same smoothly (Nemotron 3 Nano, arXiv 2512.20848, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import OmniConfig
from omni.model import OmniModel
from omni.moe import Router
from omni.splice import Features
from omni.train import mixture, ranks
from omni.train.data.sounds import Mute
from omni.train.loop import Run, Schedule, products
from omni.train.packing import Packed, Packer, expanded
from omni.train.shape import tiny_config
from omni.train.stand_in import StandIn

BALANCE_STEP, BALANCE_LOSS = 2e-3, 1e-2  # larger than the paper's: a small model is trained for fewer steps


class Balancer:
    """Watches routers: moves their biases towards even loads, and tells how uneven the scores are."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, Router)]
        self.seen: list[tuple[Router, Tensor, Tensor]] = []
        for router in self.routers:
            router.register_forward_hook(self._look)

    def _look(self, router: nn.Module, _: object, out: tuple[Tensor, Tensor, Tensor]) -> None:
        if router.training and torch.is_grad_enabled():
            assert isinstance(router, Router)
            self.seen.append((router, out[1], out[2]))

    def loss(self) -> Tensor:
        """Sum over experts of load times mean score, 1 where all is even; mean over the layers."""
        losses = []
        for router, chosen, scores in self.seen:
            load = chosen.flatten().bincount(minlength=router.config.experts).float() / chosen.numel()
            share = (scores / scores.sum(-1, keepdim=True)).mean(0)
            losses.append(router.config.experts * (load * share).sum())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def step(self) -> float:
        """Move the biases; returns the largest load over the mean."""
        worst = 0.0
        loads = [chosen.flatten().bincount(minlength=router.config.experts).float() for router, chosen, _ in self.seen]
        ranks.add_up(loads)
        for (router, _, _), load in zip(self.seen, loads, strict=True):
            router.e_score_correction_bias += BALANCE_STEP * (load.mean() - load).sign()
            worst = max(worst, float(load.max() / load.mean()))
        self.seen.clear()
        return worst


def start(model: OmniModel) -> None:
    """Small first steps: embeddings at a quarter, and what each block adds near zero."""
    with torch.no_grad():
        model.embeddings.weight.mul_(0.25)
        for name, parameter in model.named_parameters():
            if name.startswith("backbone") and any(
                part in name for part in ("out_proj.weight", "o_proj.weight", "down_proj")
            ):
                parameter.mul_(0.3)
        model.head.weight.mul_(0.5)


def answers(model: OmniModel, packed: Packed, features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of the tokens to be learnt, those tokens, their places among all, and the hidden states of all."""
    spliced = model.embed(packed.batch, features)
    hidden = model.backbone.norm_f(model.backbone(spliced.embeddings, spliced.lengths))
    places = expanded(packed, features.counts).nonzero().flatten()
    return model.head(hidden[places - 1]), spliced.tokens[places], places, hidden


def right_answers(logits: Tensor, targets: Tensor, places: Tensor, skills: Sequence[str]) -> dict[str, list[bool]]:
    """Whether every token of each answer comes first, by skill: what greedy decoding would give exactly."""
    right = (logits.argmax(-1) == targets).tolist()
    found: dict[str, list[bool]] = {}
    runs: list[bool] = []
    before = -2
    for place, good in zip(places.tolist(), right, strict=True):
        if place != before + 1:
            runs.append(True)
        runs[-1] &= good
        before = place
    for skill, good in zip(skills, runs, strict=True):
        found.setdefault(skill, []).append(good)
    return found


class Knowing(nn.Module):
    """The model with the stand-in for its towers."""

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.model = OmniModel(config)
        self.stand_in = StandIn(config.backbone.width)
        start(self.model)


def language(
    folder: Path,
    *,
    steps: int = 6000,
    phases: Sequence[mixture.Phase] = mixture.PHASES,
    settled: int = 5400,
    seed: int = 1,
    quiet: bool = False,
) -> Knowing:
    """The backbone on what the renderer knows; short tasks for the first steps, then all.

    settled: steps after which the stand-in stays as it is, so that projectors can learn its features meanwhile.
    """
    torch.manual_seed(seed)
    both = Knowing(tiny_config())
    for part in (
        both.model.vision,
        both.model.audio,
        both.model.project_vision,
        both.model.project_audio,
        both.model.mtp,
    ):
        if part is not None:
            part.requires_grad_(False)
    balancer = Balancer(both.model.backbone)
    packer = Packer(drawn=False)
    made = mixture.makers(Mute(), drawn=False)
    schedule = Schedule(steps=steps, rate=2e-3, matrix_rate=3e-3, warmup=50, decay=0.6, weight_decay=0.1)
    run = Run(both, schedule, folder, "language")
    run.resume()

    def objective(step: int) -> dict[str, Tensor]:
        torch.manual_seed(seed * 1_000_003 + step)
        both.stand_in.requires_grad_(step < settled)
        rng = Random(ranks.seed(f"{seed} language {step}"))
        phase = next(phase for phase in phases if step < phase.until)
        packed = packer(mixture.draw(rng, made, phase.weights, phase.tokens))
        with products():
            logits, targets, _, _ = answers(both.model, packed, both.stand_in(packed.known))
        loss = F.cross_entropy(logits.float(), targets)
        balance = balancer.loss()
        worst = balancer.step()
        right = (logits.argmax(-1) == targets).float().mean()
        return {
            "loss": loss + BALANCE_LOSS * balance,
            "answers": loss,
            "right": right,
            "worst_load": torch.tensor(worst),
        }

    held = mixture.makers(Mute(), held_out=True, drawn=False)
    rng = Random("language held out")
    checks = [packer([held[name](rng) for _ in range(20)]) for name in ("line", "strings", *mixture.ALL)]

    def evaluate() -> dict[str, float]:
        found: dict[str, list[bool]] = {}
        for packed in checks:
            with products():
                logits, targets, places, _ = answers(both.model, packed, both.stand_in(packed.known))
            for skill, goods in right_answers(logits, targets, places, packed.skills).items():
                found.setdefault(skill, []).extend(goods)
        return {f"exact {skill}": round(sum(goods) / len(goods), 3) for skill, goods in found.items()}

    run.train(objective, evaluate=evaluate, evaluate_every=250, quiet=quiet)
    return both
