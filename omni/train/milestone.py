"""Milestone: the weights of stages that are under way, small enough to be kept with the code.

`keep` writes what a folder's checkpoints hold, in bfloat16 and without the optimisers; `restore` makes checkpoints of
them again, from which training goes on (with optimisers that begin anew) on another machine.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni.train.language import Knowing
from omni.train.shape import tiny_config

APART = ("model.vision.", "model.audio.", "model.vision_norm.", "model.project_", "model.mtp.")  # not the language's
MILESTONE = Path(__file__).parent / "milestone"


def keep(folder: Path, out: Path = MILESTONE) -> list[str]:
    """Write the weights of every stage that has a checkpoint in the folder; the stages. Raises ValueError for none."""
    paths = sorted(folder.glob("*.pt"))
    if not paths:
        raise ValueError(f"train: {folder} has no checkpoint to keep; run a stage first")
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        state = torch.load(path, weights_only=True)
        module: dict[str, torch.Tensor] = state["module"]
        weights = {
            name: (value.bfloat16() if value.ndim > 1 else value).clone()
            for name, value in module.items()
            if path.stem != "language" or not name.startswith(APART)
        }
        about = {"step": str(state["step"]), "seconds": str(state["seconds"])}
        save_file(weights, out / f"{path.stem}.safetensors", about)
    return [path.stem for path in paths]


def restore(folder: Path, kept: Path = MILESTONE) -> list[str]:
    """Make checkpoints of what was kept, for stages that have none in the folder; the stages.

    Raises ValueError where nothing was kept.
    """
    paths = sorted(kept.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"train: {kept} holds no weights; begin with `omni train tiny`")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[str] = []
    for path in paths:
        target = folder / f"{path.stem}.pt"
        if target.is_file():
            continue
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a dict)
            about = file.metadata()
        if path.stem == "language":  # the parts that it does not train begin as they do
            weights = Knowing(tiny_config()).state_dict() | weights
        state = {"module": weights, "step": int(about["step"]), "seconds": float(about["seconds"])}
        torch.save(state, target)
        made.append(path.stem)
    return made
