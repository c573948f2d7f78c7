"""The backbone learns to answer while the towers rest: what they saw is kept, and asked about several times.

Running and teaching the towers is most of the cost of a step of the whole, and a picture holds more answers than one
conversation asks for (an earlier answer tells later ones). So the features of the last steps' examples stay, each step
adds a few and draws its conversations from all of them. What a step sees depends on (seed, step) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni.splice import Features
from omni.train import mixture, ranks
from omni.train.data.example import Example, Film, Medium, Picture, Recording
from omni.train.data.page import CLEAR
from omni.train.data.sounds import Voice
from omni.train.joining import Joined, checks
from omni.train.language import BALANCE_LOSS, Balancer, answers
from omni.train.loop import Run, Schedule, freeze, products
from omni.train.mixture import Maker
from omni.train.packing import Packed, Packer
from processors.batch import KINDS, Kind

NEW = 0.25  # share of a step's tokens that are seen for the first time
LISTED = 0.4  # of the conversations about what can be listed whole
AT_ONCE: Mapping[str, int] = {"chart": 2, "video": 2, "time": 2, "sound and video": 2}  # turns at most; else 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An example without its pixels and samples, and its media's features, by kind."""

    example: Example
    parts: Mapping[Kind, Tensor]
    counts: Mapping[Kind, list[int]]


def look(joined: Joined, packer: Packer, examples: Sequence[Example]) -> list[Seen]:
    """What the towers make of examples."""
    packed = packer(examples)
    learning = joined.training
    joined.eval()  # norms of the audio tower that watch their batch must not
    with torch.no_grad(), products():
        features = joined.model.encode(packed.batch.media)
    joined.train(learning)
    taken: dict[Kind, int] = dict.fromkeys(KINDS, 0)  # items
    used: dict[Kind, int] = dict.fromkeys(KINDS, 0)  # features
    seen = []
    for example in examples:
        items = _items(example.media)
        counts: dict[Kind, list[int]] = {
            kind: features.counts[kind][taken[kind] : taken[kind] + items[kind]] for kind in KINDS
        }
        parts: dict[Kind, Tensor] = {
            kind: getattr(features, kind)[used[kind] : used[kind] + sum(counts[kind])].bfloat16() for kind in KINDS
        }
        for kind in KINDS:
            taken[kind] += items[kind]
            used[kind] += sum(counts[kind])
        seen.append(Seen(example=bare(example), parts=parts, counts=counts))
    return seen


def _items(media: Sequence[Medium]) -> dict[Kind, int]:
    """Images, tubelets and sounds among media."""
    films = [medium for medium in media if isinstance(medium, Film)]
    return {
        "image": sum(isinstance(medium, Picture) for medium in media),
        "tubelet": sum(-(-len(film.times) // 2) for film in films),
        "audio": sum(isinstance(medium, Recording) for medium in media) + sum(film.sound is not None for film in films),
    }


def bare(example: Example) -> Example:
    """An example without pixels and samples; sizes and texts stay."""

    def without(medium: Medium) -> Medium:
        match medium:
            case Picture():
                return replace(medium, image=medium.image.resize((1, 1)), blurred=())
            case Film():
                sound = medium.sound
                return replace(medium, frames=medium.frames[:0], sound=None if sound is None else without(sound))
            case Recording():
                return replace(medium, samples=np.broadcast_to(np.float32(0), len(medium.samples)))

    return replace(example, media=tuple(without(medium) for medium in example.media))


def asked(rng: Random, seen: Seen) -> Seen:
    """The same media with other questions of those that there are, or with one list."""
    example = seen.example
    if example.lists and rng.random() < LISTED:
        turns = (rng.choice(example.lists),)
    else:
        turns = example.turns
        turns = tuple(rng.sample(turns, min(len(turns), AT_ONCE.get(example.skill, 8))))
    return replace(seen, example=replace(example, turns=turns))


def gathered(packer: Packer, seen: Sequence[Seen]) -> tuple[Packed, Features]:
    """A packed batch and its features."""
    parts: dict[Kind, Tensor] = {kind: torch.cat([each.parts[kind] for each in seen]) for kind in KINDS}
    counts: dict[Kind, list[int]] = {kind: [n for each in seen for n in each.counts[kind]] for kind in KINDS}
    return packer([each.example for each in seen]), Features(**parts, counts=counts)


def size(seen: Seen) -> int:
    """About how many tokens a conversation takes."""
    written = sum(20 + len(t.question) // 3 + len(t.answer) + len(t.thinking) for t in seen.example.turns)
    return written + sum(len(part) for part in seen.parts.values())


class Pool:
    """What was seen in the last `window` steps, and conversations about it, of about `tokens` tokens a step."""

    def __init__(self, joined: Joined, made: Mapping[str, Maker], tokens: int, window: int, seed: int) -> None:
        self.joined, self.made, self.tokens, self.seed = joined, made, tokens, seed
        self.kept: deque[list[Seen]] = deque(maxlen=window)
        self.next: int | None = None
        self.drawn, self.plain = Packer(drawn=True), Packer(drawn=False)

    def conversations(self, step: int) -> tuple[Packed, Features]:
        """The batch of a step. A first one, or one out of order, looks at all that its window holds."""
        first = step if self.next == step else step + 1 - (self.kept.maxlen or 1)
        for each in range(first, step + 1):
            self.kept.append(self._new(each))
        self.next = step + 1
        rng = Random(ranks.seed(f"{self.seed} answering {step}"))
        every, chosen, room = [each for few in self.kept for each in few], list[Seen](), self.tokens
        while room > 0:
            chosen.append(asked(rng, rng.choice(every)))
            room -= size(chosen[-1])
        return gathered(self.plain, chosen)

    def _new(self, step: int) -> list[Seen]:
        rng = Random(ranks.seed(f"{self.seed} looking {step}"))
        self.drawn.rate = rng.choice((0.0, 0.0, 0.3, 0.5, 0.75))
        return look(self.joined, self.drawn, mixture.draw(rng, self.made, mixture.ANSWERED, int(NEW * self.tokens)))


def answering(
    joined: Joined,
    folder: Path,
    voice: Voice,
    *,
    steps: int = 2300,
    tokens: int = 4096,
    window: int = 100,
    seed: int = 1,
    held_out: Voice | None = None,
    quiet: bool = False,
) -> None:
    """The backbone alone learns on, on the towers' own features; those of the last `window` steps are kept."""
    model = joined.model
    freeze(joined, (model.embeddings, model.backbone, model.head))
    balancer = Balancer(model.backbone)
    run = Run(
        joined,
        Schedule(steps=steps, rate=8e-4, matrix_rate=1.2e-3, warmup=50, decay=0.8, weight_decay=0.05),
        folder,
        "answering",
    )
    run.resume()
    pool = Pool(joined, mixture.makers(voice, how=CLEAR, turns=99, shown=99), tokens, window, seed)

    def objective(step: int) -> dict[str, Tensor]:
        packed, features = pool.conversations(step)
        with products():
            logits, targets, _, _ = answers(model, packed, features)
        loss, balance = F.cross_entropy(logits.float(), targets), balancer.loss()
        balancer.step()
        return {"loss": loss + BALANCE_LOSS * balance, "answers": loss}

    run.train(objective, evaluate=checks(joined, held_out or voice), evaluate_every=250, quiet=quiet)
