"""Benchmark of drafting: greedy answers with the multi-token head and without, prompt by prompt in turns.

Answers are compared first: a draft may only save time. Times are of decoding alone, batch 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

from omni.answer import Result
from omni.bench_result import line
from omni.model import OmniModel
from processors.batch import Batch

Depth = int | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """Drafting `depth` tokens a round over all prompts.

    equal: answers that are token by token those without drafts. tokens_a_round: written in a pass of the backbone, the
    mean. gain: time without drafts over time with them, of all prompts; low, high: quartiles of the prompts' own.
    """

    depth: Depth
    prompts: int
    equal: int
    tokens_a_round: float
    tokens_a_second: float
    gain: float
    low: float
    high: float


def questions(count: int) -> list[tuple[str, bool]]:
    """Texts to repeat, sums, keys to look up, the same every time; and whether to think first, which is about sums."""
    random = Random(0)
    words = "house garden river bridge train letter market winter doctor kitchen piano island castle colour".split()
    made: list[tuple[str, bool]] = []
    for number in range(count):
        chosen = random.sample(words, 4)
        values = [random.randint(100, 999) for _ in chosen]
        table = "\n".join(f"{word}: {value}" for word, value in zip(chosen, values, strict=True))
        kinds = (
            f"Repeat: {', '.join(chosen)}",
            f"What is {values[0]} + {values[1]}?",
            f"{table}\n\nWhat is {chosen[number // 4 % 4]}?",
            f"Copy: {', '.join(map(str, values))}",
        )
        made.append((kinds[number % 4], number % 4 == 1))
    return made


def drafts(
    model: OmniModel, prompts: Iterable[Batch], depths: Iterable[Depth] = (1, 2, 3, "auto"), max_new_tokens: int = 64
) -> list[Drafted]:
    """Measure each depth. Raises ValueError when no prompt came."""
    depths = list(depths)
    plain: list[Result] = []
    drafted: dict[Depth, list[Result]] = {depth: [] for depth in depths}
    for number, prompt in enumerate(prompts):
        if not number:  # warm up
            for depth in (None, *depths):
                _answer(model, prompt, depth, max_new_tokens)
        turn = number % (1 + len(depths))  # another one begins each time: a busy machine shall favour nobody
        for depth in [*depths[turn:], None, *depths[:turn]]:
            into = plain if depth is None else drafted[depth]
            into.append(_answer(model, prompt, depth, max_new_tokens))
    if not plain:
        raise ValueError("bench: no prompt came; pass at least one")
    return [_compare(depth, plain, results) for depth, results in drafted.items()]


def _answer(model: OmniModel, prompt: Batch, depth: Depth | None, max_new_tokens: int) -> Result:
    result = model.generate(prompt, max_new_tokens, draft=depth)
    assert isinstance(result, Result), "prompts are single conversations"
    return result


def _compare(depth: Depth, plain: list[Result], drafted: list[Result]) -> Drafted:
    long = [i for i, result in enumerate(plain) if result.rounds > 1] or [0]  # one token needs no decoding
    gains = [plain[i].seconds["decode"] / max(drafted[i].seconds["decode"], 1e-9) for i in long]
    low, _, high = statistics.quantiles(gains, n=4) if len(gains) > 1 else gains * 3
    before, after = (sum(result.seconds["decode"] for result in results) for results in (plain, drafted))
    written = sum(len(result.tokens) - 1 for result in drafted)
    return Drafted(
        depth=depth,
        prompts=len(plain),
        equal=sum(a.tokens == b.tokens for a, b in zip(plain, drafted, strict=True)),
        tokens_a_round=written / max(1, sum(result.rounds - 1 for result in drafted)),
        tokens_a_second=written / max(1e-9, after),
        gain=before / max(1e-9, after),
        low=low,
        high=high,
    )


def report(rows: list[Drafted]) -> str:
    """One JSON line."""
    return line(drafts=[asdict(row) for row in rows])
