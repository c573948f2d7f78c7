"""Milestone: what training needs beside the shipped model, small enough to be kept with the code.

`keep` writes the stand-in and the heads of the stage `together`, in bfloat16; `restore` puts them and the shipped
weights together to a checkpoint, from which training goes on (with optimisers that begin anew) on another machine.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni.model import OmniModel
from omni.train.joining import Joined

STAGE = "together"
MODEL = "knowing.model."  # names of what is shipped
MILESTONE = Path(__file__).parent / "milestone"


def keep(folder: Path, out: Path = MILESTONE) -> None:
    """Write what is not shipped of a folder's checkpoint. Raises ValueError where there is none."""
    path = folder / f"{STAGE}.pt"
    if not path.is_file():
        raise ValueError(f"train: {path} is missing; run the stage {STAGE} first")
    state = torch.load(path, weights_only=True)
    weights = {k: v.bfloat16().clone() for k, v in state["module"].items() if not k.startswith(MODEL)}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / f"{STAGE}.safetensors", {"step": str(state["step"]), "seconds": str(state["seconds"])})


def restore(folder: Path, shipped: Path, kept: Path = MILESTONE) -> bool:
    """Make a checkpoint of the shipped model and of what was kept; False where there is one already.

    Raises ValueError where nothing was kept.
    """
    path, target = kept / f"{STAGE}.safetensors", folder / f"{STAGE}.pt"
    if target.is_file():
        return False
    if not path.is_file():
        raise ValueError(f"train: {path} is missing; begin with `omni train tiny`")
    weights = Joined().state_dict()
    model = OmniModel.from_pretrained(shipped, torch.float32)
    weights |= {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    with safe_open(path, "pt") as file:
        weights |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a dict)
        about = file.metadata()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"module": weights, "step": int(about["step"]), "seconds": float(about["seconds"])}, target)
    return True
