"""Processes that train one model together: each draws its own examples, and all take the same step.

Start them with `torchrun --nproc-per-node N -m omni.train FOLDER STAGE`, on a CPU one a core, each with one thread.
Alone, all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Meet the other processes, where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """This process's number; the first one, 0, logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Processes in all."""
    return dist.get_world_size() if dist.is_initialized() else 1


def seed(text: str) -> str:
    """The seed of this process's examples: the first one's is that of a process alone."""
    return f"{text} {rank()}" if rank() else text


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one exchange."""
    parts = list(tensors)
    if count() == 1 or not parts:
        return
    flat = torch.cat([part.flatten().float() for part in parts])
    dist.all_reduce(flat)
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Gradients of the mean of all processes' losses; a parameter that one of them did not use counts as zero there."""
    if count() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    add_up(gradients)
    for gradient in gradients:
        gradient.div_(count())
