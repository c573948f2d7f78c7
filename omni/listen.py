"""Listen: live sound, read into a model's state as it comes; questions at any moment, a transcript with times.

All that was heard stands in one memory, as a recording in a user's turn that has not ended. A question is asked of a
fork: the recording is closed there and the question put behind it, and the stream goes on unharmed. The state grows
by the keys and values of 12.5 tokens a second; with `keep` only those of the last seconds stay (attention has no
positions, so what is older is plainly deleted) and Mamba's constant state is all that remembers the rest.

The transcript is written stretch by stretch, cut at quiet points: each is transcribed from its own features behind an
empty memory, so it costs the same after hours as in the first minute.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoders.window import Window
from omni.answer import Result
from omni.attention import AttentionConfig
from omni.ear import TOKENS, Ear, window
from omni.memory import Memory
from omni.model import OmniModel
from omni.prefill import Prefix
from omni.seen import Seen
from omni.splice import Features
from processors.audio import STRIDE, block_energy
from processors.batch import Batch, Media, Slot
from processors.given import Given
from processors.mel_stream import Levels
from processors.processor import Processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """How the transcript is made.

    longest: seconds of a stretch, which is cut at the quietest pause of `pause` seconds in its second half. silence:
    mean square up to which nothing is said. question: what the model is asked. pace: tokens that a second may take.
    """

    longest: float = 12.0
    pause: float = 0.4
    silence: float = 1e-7
    question: str = "Transcribe the recording."
    pace: float = 16.0

    def __post_init__(self) -> None:
        if self.longest < 1 or not 0 <= self.pause <= self.longest / 2 or self.pace <= 0:
            raise ValueError(
                f"Transcript: stretches of {self.longest} s, pauses of {self.pause} s and {self.pace} tokens a second; "
                "want at least 1 s, pauses up to half of that, and more than 0"
            )


WRITTEN = Transcript()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What was said from `start` to `end`, in seconds of the stream."""

    start: float
    end: float
    text: str


class Listener:
    """Hears one sound. window: what the encoder hears (None: as `ear.window`). levels: by what mels are normalised.
    transcript: None for none. keep: seconds of sound whose keys and values stay at least, and up to 82 more, a line of
    the grid (`omni.prefill`), with what of it is not a cell yet (None: all). settings: of `processor.ingest`.

    Raises ValueError for a model that hears nothing, and for `keep` where attention knows positions.
    """

    def __init__(
        self,
        model: OmniModel,
        processor: Processor,
        *,
        heard: Window | None = None,
        levels: Levels | None = None,
        transcript: Transcript | None = WRITTEN,
        keep: float | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.processor, self.transcript = model, processor, transcript
        self.ear = Ear(model, heard or window(model), levels)
        self._state = self.ear.new_state()
        self._keep = None if keep is None else _bounded(model, keep)
        # A recording of one token shows what stands before and behind it, and how it is recorded.
        shown: Any = {"type": "audio", "audio": np.zeros(STRIDE * 160, np.float32), "rate": 16000}
        batch = processor.ingest([{"role": "user", "content": [shown]}], **settings)
        at = batch.slots[0].position
        self._placeholder, self._given = batch.tokens[at : at + 1], batch.given[0]
        self._before = _text(batch.tokens[:at], self._given)
        self._behind = batch.tokens[at + 1 :]
        self._memory = Memory(model, Prefix.new(model))
        self._memory.append(self._before)
        self._digest, self._samples = hashlib.sha256(), 0
        self._open = Open(self.ear.mels.rule.block)

    @property
    def seconds(self) -> float:
        """Of sound so far."""
        return self._samples / self.ear.mels.rule.rate

    @property
    def nbytes(self) -> int:
        """Bytes of the state: keys and values that grow, and constants."""
        return self._memory.nbytes + self._state.audio.nbytes

    def hear(self, samples: Float[Tensor, " samples"], *, last: bool = False) -> list[Line]:
        """Hear more 16 kHz samples, or none; the lines that are complete now, with `last` all that are left.

        Raises ValueError for samples that are no numbers, or of several channels; nothing of this piece is heard then.
        """
        if samples.ndim != 1:
            raise ValueError(
                f"listen: samples of shape {tuple(samples.shape)} came; want one channel, one number after the other"
            )
        if len(wrong := (~samples.isfinite()).nonzero()):
            at = self.seconds + int(wrong[0]) / self.ear.mels.rule.rate
            raise ValueError(f"listen: the sound at {at:.2f} s is no number; mend what sends it")
        self._digest.update(samples.float().numpy().tobytes())
        self._samples += len(samples)
        features = self.ear(samples, self._state, last=last)
        if len(features):
            self._memory.append(*self._heard(features))
            if self._keep is not None:  # only the latest sound's keys and values
                self._memory.forget(len(self._before.tokens), self._keep)
        if self.transcript is None:
            return []
        self._open.add(samples, features, last)
        stretches = list(self._open.cut(self.transcript, last))
        return [self._line(*stretch) for stretch in stretches]

    def partial(self) -> Line | None:
        """The line that is still open, as it stands; nothing of it is kept. None where nothing was heard."""
        if self.transcript is None or not len(self._open.features):
            return None
        return self._line(self._open.first, self._open.features, self._open.loudest(len(self._open.features)))

    def settle(self) -> None:
        """Read all that was heard, once for all questions; what is heard reads in longer stretches without."""
        self._memory.settle()

    @property
    def memory(self) -> Memory:
        """A fork of all that was heard, with the recording closed: to be asked, saved or read on."""
        fork = self._memory.fork()
        fork.append(_text(self._behind, self._record(self._digest.hexdigest(), self._memory.seen)))
        return fork

    def ask(self, question: str, *, think: bool = False, **settings: Any) -> Result:
        """Answer a question about what was heard so far; the stream goes on as if nothing was asked.

        settings: of `model.generate`.
        """
        start = time.perf_counter()
        self.settle()
        memory = self.memory
        memory.charge(memory.seen.memory, time.perf_counter() - start)
        return self._answer(memory, question, think, **settings)

    def _answer(self, memory: Memory, question: str, think: bool, **settings: Any) -> Result:
        batch = self.processor.ask(question, after=memory.given, enable_thinking=think)
        result = self.model.generate(batch, memory=memory, **settings)
        assert isinstance(result, Result)
        return result

    def _heard(self, features: Float[Tensor, "tokens width"]) -> tuple[Batch, Features]:
        """Features that stand in the open recording, as a piece of it."""
        count = len(features)
        mels = Media(mels=torch.zeros(count * STRIDE, self.ear.mels.rule.mels), frames=torch.tensor([count * STRIDE]))
        slot = Slot(position=0, kind="audio", first=0)
        batch = Batch(tokens=self._placeholder, lengths=torch.tensor([1]), slots=(slot,), media=mels)
        nothing = features[:0]
        counts: Any = {"image": [], "tubelet": [], "audio": [count]}
        return batch, Features(image=nothing, tubelet=nothing, audio=features, counts=counts)

    def _record(self, sha256: str, seen: Seen, seconds: float | None = None) -> Given:
        """What a receipt says of a live sound: its samples' hash, its length, the window it was heard through."""
        item = replace(
            self._given.items[0],
            name="live sound",
            sha256=sha256,
            size=4 * self._samples,
            source=None,
            slots=len(seen.places),
            tokens=sum(place.tokens for place in seen.places),
            details={
                "seconds": round(self.seconds if seconds is None else seconds, 2),
                "window": asdict(self.ear.encode.window),
                "levels": asdict(self.ear.mels.levels),
                "keep_tokens": self._keep,
            },
        )
        return replace(self._given, items=(item,))

    def _line(self, first: int, features: Float[Tensor, "tokens width"], loudest: float) -> Line:
        """A stretch transcribed."""
        assert self.transcript
        seconds = len(features) / TOKENS
        start, end, text = first / TOKENS, first / TOKENS + seconds, ""
        if loudest > self.transcript.silence:
            memory = Memory(self.model, Prefix.new(self.model))
            memory.append(self._before)
            memory.append(*self._heard(features))
            memory.append(_text(self._behind, self._given))
            most = int(seconds * self.transcript.pace) + 16
            text = self._answer(memory, self.transcript.question, think=False, max_new_tokens=most).text.strip()
        return Line(start=round(start, 2), end=round(end, 2), text=text)


class Open:
    """The stretch that is being heard: its features, and how loud each token is."""

    def __init__(self, block: int) -> None:
        self.first = 0  # token of the stream that it begins with
        self.features = torch.zeros(0, 0)
        self._loudness, self._rest, self._block = torch.zeros(0), torch.zeros(0), block

    def add(self, samples: Tensor, features: Tensor, last: bool) -> None:
        """What came; features come later than their sound."""
        heard = torch.cat((self._rest, samples.float()))
        whole = len(heard) if last else len(heard) // self._block * self._block
        self._rest = heard[whole:]
        if whole:
            self._loudness = torch.cat((self._loudness, block_energy(heard[:whole])))
        self.features = torch.cat((self.features, features)) if len(self.features) else features

    def loudest(self, tokens: int) -> float:
        """Mean square of the loudest of its first tokens."""
        return float(self._loudness[:tokens].max()) if tokens else 0.0

    def cut(self, rule: Transcript, last: bool) -> Any:
        """The stretches that are complete: first token, features, loudness of the loudest token."""
        longest = round(rule.longest * TOKENS)
        while len(self.features) >= longest or (last and len(self.features)):
            size = len(self.features) if len(self.features) < longest else self._quietest(rule, longest)
            yield self.first, self.features[:size], self.loudest(size)
            self.first += size
            self.features, self._loudness = self.features[size:], self._loudness[size:]

    def _quietest(self, rule: Transcript, longest: int) -> int:
        """After how many tokens to cut: in the middle of the quietest pause of the second half."""
        pause = max(round(rule.pause * TOKENS), 1) | 1
        smooth = F.avg_pool1d(self._loudness[None, : longest + pause // 2], pause, 1)[0]  # of pauses from 0, 1 … on
        half = longest // 2
        return half + int(smooth[half - pause // 2 :].argmin())


def _text(tokens: Tensor, given: Given) -> Batch:
    return Batch(tokens=tokens, lengths=torch.tensor([len(tokens)]), given=(given,))


def _bounded(model: OmniModel, seconds: float) -> int:
    """Tokens whose keys stay. Raises ValueError where attention knows where its keys stand."""
    blocks = [block for block in model.config.backbone.blocks if isinstance(block, AttentionConfig)]
    if not 0 < seconds < math.inf or any(block.rope or block.window for block in blocks):
        raise ValueError(
            f"listen: {seconds} s are to be kept; want more than 0, and a model whose attention has no positions"
        )
    return round(seconds * TOKENS)
