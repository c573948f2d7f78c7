"""Mel frames of live sound, with explicit state: the same for every way of cutting, at constant memory.

A frame comes as soon as the samples it is made of are there. A recording is normalised by the mean and deviation of
the whole; a stream cannot know them, so a `Levels` says which part of the past stands for it. After a warm-up as long
as the recording the frames are those of `audio.mel_features`. What the stand-in costs, on recordings of 11 s that join
six voices: after a warm-up of 4 s the frames are off by 0.18 deviations (root mean square; 0.28 frozen, 0.30 after
0.5 s), and a CTC head that knew whole recordings alone made 1 to 3 more mistakes in a hundred words.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from processors.audio import REFERENCE, STRIDE, MelRule, log_mel


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Whose mean and deviation normalise a frame: all that was heard up to its token, the newest counting most.

    warmup: seconds that are heard before the first frame is given, and normalised together. half_life: seconds after
    which a frame counts half (inf: all count alike). frozen: nothing after the warm-up counts.
    """

    warmup: float = 4.0
    half_life: float = inf
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.warmup < 0 or not self.half_life > 0 or (self.frozen and not self.warmup):
            raise ValueError(
                f"Levels: a warm-up of {self.warmup} s and a half-life of {self.half_life} s came; want none negative, "
                "a half-life above 0, and a warm-up above 0 where it decides alone"
            )


@dataclass(slots=True, kw_only=True)
class MelState:
    """A sound that goes on. Tensors are replaced, never written into.

    samples: the end of what was heard, from two frames before the next one. logs: frames that are not normalised yet.
    weight, total, squares: of the frames that count, in float64.
    """

    samples: Float[Tensor, " samples"]
    logs: Float[Tensor, "frames mels"]
    total: Float[Tensor, " mels"]
    squares: Float[Tensor, " mels"]
    weight: float = 0.0
    made: int = 0
    given: int = 0
    ended: bool = False

    def clone(self) -> MelState:
        """A fork: what one hears later, the other does not know."""
        return replace(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MelStream:
    """How a stream's samples become frames."""

    rule: MelRule = REFERENCE.mel
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if self.rule.extra_frame or self.rule.shortest:
            raise ValueError(
                f"MelStream: {self.rule} pads a sound's end, which a stream has not; use the reference rule"
            )

    def new_state(self) -> MelState:
        """Of a sound of which nothing is heard yet."""
        zeros = torch.zeros(self.rule.mels, dtype=torch.float64)
        return MelState(samples=torch.zeros(0), logs=torch.zeros(0, self.rule.mels), total=zeros, squares=zeros)

    def __call__(
        self, samples: Float[Tensor, " samples"], state: MelState, *, last: bool = False
    ) -> Float[Tensor, "frames mels"]:
        """Hear more samples, or none; returns the frames that are ready, whole tokens of them until the `last`.

        Raises ValueError for samples that are not finite, and after the last ones.
        """
        if state.ended or not bool(samples.isfinite().all()):
            raise ValueError(
                f"MelStream: {len(samples)} samples came {'after the last' if state.ended else 'that are not finite'}; "
                "begin another sound with new_state()"
            )
        logs = torch.cat((state.logs, self._logs(samples.float(), state, last)))
        made = [logs[:0]]
        if not state.given and (last or len(logs) >= self._warmup):
            made.append(self._normalised(logs[: self._warmup], state, counted=True))
            logs = logs[self._warmup :]
            state.given = len(made[-1])
        if state.given:
            whole = len(logs) if last else len(logs) // STRIDE * STRIDE
            blocks = logs[:whole].split(STRIDE) if whole else ()
            made += [self._normalised(block, state, counted=not self.levels.frozen) for block in blocks]
            logs = logs[whole:]
            state.given += whole
        state.logs, state.ended = logs, last
        return torch.cat(made)

    @property
    def _warmup(self) -> int:
        """Frames of the warm-up: a token's at least."""
        tokens = round(self.levels.warmup * self.rule.rate / self.rule.block)
        return max(tokens, 1) * STRIDE

    def _logs(self, samples: Tensor, state: MelState, last: bool) -> Tensor:
        """The log-mel frames whose samples are all there; silence follows the last."""
        heard, hop = torch.cat((state.samples, samples)), self.rule.hop
        reach = self.rule.fft // 2
        context = -(-(reach + 1) // hop)  # frames back to the first sample that the next frame hears
        before = min(state.made, context)
        ready = len(heard) // hop if last else (len(heard) - reach) // hop + 1
        if ready <= before:
            state.samples = heard
            return state.logs[:0]
        state.samples = heard[max(ready - context, 0) * hop :]
        state.made += ready - before
        return log_mel(heard, self.rule)[before:ready]  # those at the ends did not hear all of theirs

    def _normalised(self, logs: Tensor, state: MelState, *, counted: bool) -> Tensor:
        """Frames by the levels so far, their own included where they count."""
        wide = logs.double()
        if counted and len(logs):
            kept = 0.5 ** (len(logs) * self.rule.hop / self.rule.rate / self.levels.half_life)
            state.weight = state.weight * kept + len(logs)
            state.total = state.total * kept + wide.sum(0)
            state.squares = state.squares * kept + wide.square().sum(0)
        weight = max(state.weight, 1.0)
        mean = state.total / weight
        deviation = ((state.squares - mean * state.total) / max(weight - 1, 1.0)).clamp_min(0).sqrt()
        return ((wide - mean) / (deviation + self.rule.eps)).float()
