"""The MTP head learns to guess the token after next, from the finished backbone, which stays as it is.

Loss on answers' tokens, one and two steps ahead of the backbone's own, the block applied again with shared weights
(Nemotron 3 Super, arXiv 2604.12374, section 2).
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.model import OmniModel
from omni.ops import Lengths
from omni.train import mixture, ranks
from omni.train.data.page import CLEAR
from omni.train.data.sounds import Voice
from omni.train.language import answers
from omni.train.loop import Run, Schedule, products
from omni.train.packing import Packer

DEPTH = 3  # tokens ahead that are learnt; drafts may go further


def losses_ahead(
    model: OmniModel, tokens: Tensor, hidden: Tensor, lengths: Lengths, learnt: Tensor, depth: int = DEPTH
) -> list[tuple[Tensor, Tensor]]:
    """(loss, share right) for each token ahead: the k-th application guesses the token k + 1 after a position.

    tokens, hidden: of packed sequences, hidden after the final norm. learnt: places whose token counts.
    """
    assert model.mtp is not None
    found, width = [], hidden.shape[1]
    ends = torch.tensor(lengths).cumsum(0)
    left = (ends.repeat_interleave(torch.tensor(lengths)) - 1 - torch.arange(len(tokens))).to(tokens.device)
    state = hidden
    for ahead in range(1, depth + 1):
        following = torch.roll(tokens, -ahead)  # past a sequence's end it is another's; `left` leaves those out
        state = model.mtp(model.embeddings(following), state, lengths)
        target = torch.roll(tokens, -ahead - 1)
        counted = (left > ahead) & torch.roll(learnt, -ahead - 1)
        logits = model.head(state[counted].view(-1, width))
        wanted = target[counted]
        right = (logits.argmax(-1) == wanted).float().mean()
        found.append((F.cross_entropy(logits.float(), wanted), right))
    return found


def drafting(
    model: OmniModel, folder: Path, voice: Voice, *, steps: int = 800, tokens: int = 2048, seed: int = 1,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Train the MTP head alone."""
    assert model.mtp is not None
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    run = Run(model, Schedule(steps=steps, rate=1e-3, matrix_rate=2e-3, warmup=50, decay=0.6), folder, "drafting")
    run.resume()
    packer, made = Packer(drawn=True), mixture.makers(voice, how=CLEAR, shown=2)

    def objective(step: int) -> dict[str, Tensor]:
        packed = packer(mixture.draw(Random(ranks.seed(f"{seed} drafting {step}")), made, mixture.DRAFTED, tokens))
        with torch.no_grad(), products():
            features = model.encode(packed.batch.media)
            _, _, places, hidden = answers(model, packed, features)
            spliced = model.embed(packed.batch, features)
        learnt = torch.zeros(len(hidden), dtype=torch.bool)
        learnt[places] = True
        with products():
            found = losses_ahead(model, spliced.tokens, hidden, spliced.lengths, learnt)
        loss = torch.stack([each for each, _ in found]).mean()
        return {"loss": loss, **{f"right {k + 2} ahead": right for k, (_, right) in enumerate(found)}}

    run.train(objective, quiet=quiet)
