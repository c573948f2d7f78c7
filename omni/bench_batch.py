"""Benchmark of writing side by side: tokens a second of batches of several sizes, in each format, beside what this
machine reads a second.

Checked first: sequences written together score as each alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from omni.bench_decode import filled_state, touched, touched_beside, writes
from omni.bench_model import CLOSE, HYBRID, Machine, machine
from omni.bench_random import one_of_each, plain_name, random_model, random_packed
from omni.bench_result import line, spread
from omni.config import OmniConfig
from omni.heap import keep_freed
from omni.packed import FORMATS, Format, pack

BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batched:
    """Tokens a second of all sequences together, the median. gain: over the first batch size, a sequence for a
    sequence; share_of_reads: of the machine's, were experts chosen evenly.
    """

    format: str
    batch: int
    decode: float
    gain: float
    share_of_reads: float
    spread: float


def check_together(config: OmniConfig, sequences: int = 3, tokens: int = 20) -> float:
    """The error of a batch's logits against each sequence's alone, as a share of their norm, in float32.

    Raises ValueError where it is too large.
    """
    model = random_model(config).float()
    pack(model)
    with torch.inference_mode():
        state = filled_state(model, tokens, sequences)
        alone = state.split()
        embeddings = model.look_up(torch.arange(sequences))
        made = model.score(model.read(embeddings, (1,) * sequences, state))
        singles = zip(embeddings.split(1), alone, strict=True)
        wanted = torch.cat([model.score(model.read(row, (1,), each)) for row, each in singles])
    error = float((made - wanted).norm() / wanted.norm())
    if not error <= CLOSE:
        raise ValueError(f"bench: logits of a batch differ by {error:.1e} from each alone; want at most {CLOSE}")
    return error


@torch.inference_mode()
def measure(
    config: OmniConfig = HYBRID,
    forms: Sequence[Format | None] = (None, *FORMATS),
    batches: Sequence[int] = BATCHES,
    context: int = 1024,
    new: int = 16,
    repeats: int = 5,
) -> tuple[Machine, list[Batched]]:
    """Each format (None: see `plain_name`) and batch size, `new` tokens of each sequence behind `context` others.

    Raises ValueError for batches of no sequence, and where a check fails.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"bench: batches of {list(batches)} sequences came; want at least one each")
    check_together(one_of_each(config))
    here = machine()
    found: list[Batched] = []
    for form in forms:
        model = random_packed(config, form)
        keep_freed()
        first = 0.0
        for batch in batches:
            state = filled_state(model, context, batch)
            embeddings = model.look_up(torch.randint(0, config.backbone.vocabulary, (batch * new,)))
            times = writes(model, state, embeddings, repeats)
            steps = new / statistics.median(times)
            first = first or steps * batch
            moved = touched(model, batch) + touched_beside(model, state)
            found.append(
                Batched(
                    format=form or plain_name(),
                    batch=batch,
                    decode=steps * batch,
                    gain=steps * batch / first,
                    share_of_reads=steps * moved / 1e9 / here.read,
                    spread=spread(times),
                )
            )
        del model
    return here, found


def report(here: Machine, found: list[Batched]) -> str:
    """One JSON line."""
    return line(machine=asdict(here), batched=[asdict(each) for each in found])
