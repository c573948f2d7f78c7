"""The training loop: steps that resume exactly, a log to plot, nothing lost.

Data are made from (seed, step), so a run that is stopped and resumed sees the batches that an uninterrupted one sees,
and its checkpoint (weights, optimisers, step) makes it go on bit for bit. Muon for matrices (Jordan et al., 2024),
AdamW for all else. Products are in bfloat16 on processors that multiply it faster; weights and sums are float32.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from omni.precision import fast_bfloat16
from omni.train import ranks
from omni.train.muon import Muon


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps of a stage and its learning rates: linear warm-up, flat, then linear to zero over the last `decay`."""

    steps: int
    rate: float = 2e-3
    matrix_rate: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0

    def scale(self, step: int) -> float:
        """Share of the learning rate at a step."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


Objective = Callable[[int], dict[str, Tensor]]  # step → losses by name; "loss" is the one to lower


class Run:
    """A stage in training: model, optimisers, step; saved to and resumed from a folder."""

    def __init__(self, module: nn.Module, schedule: Schedule, folder: Path, stage: str) -> None:
        self.module, self.schedule, self.folder, self.stage = module, schedule, folder, stage
        self.step = 0
        self.seconds = 0.0
        self.optimisers = _optimisers(module, schedule)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        """The stage's checkpoint."""
        return self.folder / f"{self.stage}.pt"

    def save(self) -> None:
        """Write the checkpoint; the one before stays until this is whole. Of several processes, the first one does."""
        if ranks.rank():
            return
        state = {
            "module": self.module.state_dict(),
            "optimisers": [each.state_dict() for each in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        if not self.path.is_file():
            return False
        state = torch.load(self.path, weights_only=True)
        self.module.load_state_dict(state["module"])
        if "optimisers" in state:  # a milestone has none: they begin anew
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def advance(self, objective: Objective) -> dict[str, float]:
        """One step down."""
        scale = self.schedule.scale(self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * scale
            optimiser.zero_grad()
        losses = objective(self.step)
        losses["loss"].backward()
        learning = [p for p in self.module.parameters() if p.requires_grad]
        ranks.average_gradients(learning)
        norm = nn.utils.clip_grad_norm_(learning, self.schedule.clip)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"{self.stage}, step {self.step}: the gradient is {float(norm)}; lower the rate")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": float(norm)}

    def train(
        self,
        objective: Objective,
        *,
        save_every: float = 180.0,
        log_every: int = 20,
        evaluate: Callable[[], dict[str, float]] | None = None,
        evaluate_every: int = 500,
        quiet: bool = False,
    ) -> None:
        """All remaining steps, with a bar, a line of JSON every few steps, and a checkpoint every few minutes."""
        self.module.train()
        sums: dict[str, float] = {}
        count, saved, started = 0, time.monotonic(), time.monotonic()
        before = self.seconds
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=quiet or ranks.rank() > 0) as progress:
            task = progress.add_task(self.stage, total=self.schedule.steps, completed=self.step)
            while self.step < self.schedule.steps:
                for name, value in self.advance(objective).items():
                    sums[name] = sums.get(name, 0.0) + value
                count += 1
                self.seconds = before + time.monotonic() - started
                last = self.step == self.schedule.steps
                extra: dict[str, float] = {}
                if evaluate is not None and not ranks.rank() and (last or self.step % evaluate_every == 0):
                    self.module.eval()
                    with torch.no_grad():
                        extra = evaluate()
                    self.module.train()
                if self.step % log_every == 0 or last or extra:
                    means = {name: round(value / count, 5) for name, value in sums.items()}
                    self._log(
                        {"stage": self.stage, "step": self.step, "seconds": round(self.seconds), **means, **extra}
                    )
                    progress.update(task, completed=self.step, description=f"{self.stage} {means.get('loss', 0):.3f}")
                    sums, count = {}, 0
                if last or time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
        self.module.eval()

    def _log(self, line: dict[str, Any]) -> None:
        if ranks.rank():
            return
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def products() -> torch.autocast:
    """Around what a model computes, not around the making of its data: products in bfloat16, if that is fast here."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16())


def _optimisers(module: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks; AdamW for embeddings, heads, norms, biases and stacked experts.

    Routers learn by AdamW at a tenth of the rate: under Muon their scores come to depend on the mean of all tokens,
    and every token chooses the same experts.
    """
    matrices, routers, others = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and not any(part in name for part in ("embed", "head", "token", "row", "col"))
        (routers if ".gate." in name else matrices if inner else others).append(parameter)
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(Muon(matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay))
    if others or routers:
        groups = [{"params": others, "lr": schedule.rate}, {"params": routers, "lr": 0.1 * schedule.rate}]
        made.append(torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.0))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["full_rate"] = group["lr"]
    return made


def freeze(module: nn.Module, trained: Iterable[nn.Module | nn.Parameter]) -> None:
    """Let only these parts learn."""
    module.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
