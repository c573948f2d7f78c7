"""Engine: a continuous batch. Requests of different lengths and media are read in turn, write side by side, and leave
when they are done; none changes what another writes.

A step reads one stretch of the oldest waiting prompt and lets everyone who has been read write one round: a token, or
with drafts as many as were right. `generate` is a loop around it, and so may a server be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from omni.answer import Piece, Result, Settings
from omni.language import LanguageModel, codec_of
from omni.prefill import Prefix
from omni.receipt import Receipt
from omni.sampling import Draft
from omni.speculate import Depth, Drafter
from omni.splice import Features
from omni.state import State
from omni.writer import Writer
from processors.batch import Batch


@dataclass(slots=True, eq=False)
class Request:
    """A conversation on its way through an engine.

    result: once it is done. error: what ended it, where it could not be read or written; what came before it is in its
    result. seconds: spent so far by stage; what a stage does for several at once counts for each.
    """

    batch: Batch
    writer: Writer
    prefix: Prefix
    features: Features | None
    began: float
    embedded: bool = False
    fresh: list[int] = field(default_factory=list)  # tokens that the multi-token head has not seen
    hidden: Tensor | None = None  # the hidden states before them
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "prefill": 0.0, "decode": 0.0})
    result: Result | None = None
    error: ValueError | None = None


class Engine:
    """Reads and writes for any number of requests with one model.

    draft: tokens to draft a round with the multi-token head ("auto": as many as pay off; None: no drafts). limit: how
    many may write at once. Raises ValueError for a model without a tokenizer, or without the head that drafts.
    """

    def __init__(
        self, model: LanguageModel, draft: int | Literal["auto"] | None = None, limit: int | None = None
    ) -> None:
        self.model, self.codec, self.limit = model, codec_of(model), limit
        self.depth = Depth.of(draft, model)
        self._first = int(self.depth)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._state: State | None = None  # of those that run, in their order
        self._drafter: Drafter | None = None
        self._banned = torch.tensor(self.codec.banned, dtype=torch.long)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.waiting or self.running)

    @torch.no_grad()
    def submit(
        self,
        batch: Batch,
        settings: Settings | None = None,
        *,
        prefix: Prefix | None = None,
        features: Features | None = None,
        sequence: int = 0,
    ) -> Request:
        """Queue a batch of one conversation. Its pieces carry the number `sequence`.

        prefix: what was read before it; it is taken over, so pass a fork to keep it. features: of the batch's media,
        where they are encoded already. Raises ValueError for settings that do not fit.
        """
        if len(batch) != 1:
            raise ValueError(f"engine: a batch of {len(batch)} conversations came; submit them one by one")
        prefix = prefix or Prefix.new(self.model)
        if self.depth.any and prefix.drafter is None:
            prefix.drafter = Drafter.new(self.model)  # it knows nothing of what was read before
        prompt = [*prefix.tokens.tolist(), *batch.tokens.tolist()]
        writer = Writer((settings or Settings()).seeded(), self.codec, prompt, sequence)
        began = time.perf_counter() - prefix.spent.get("all", 0.0)
        request = Request(batch, writer, prefix, features, began)
        request.seconds |= {stage: seconds for stage, seconds in prefix.spent.items() if stage != "all"}
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Take a request out, wherever it is; its result is what was written so far."""
        request.writer.cancel()
        if request in self.waiting:
            self.waiting.remove(request)
            self._close(request)
        self._let_go()

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Read a stretch, write a round; the text that can be shown now. A request that cannot be read or written ends
        with its `error`; the others go on.
        """
        pieces: list[Piece] = []
        if self.waiting and (self.limit is None or len(self.running) < self.limit):
            request = self.waiting[0]
            try:
                pieces += self._read(request)
            except ValueError as error:
                request.error = error
                self.cancel(request)
        if self.running:
            pieces += self._write()
        self._let_go()
        return pieces

    def _read(self, request: Request) -> list[Piece]:
        prefix = request.prefix
        if not request.embedded:
            with _timed([request], "encode"):
                spliced = self.model.embed(request.batch, request.features)
                prefix.append(request.batch, spliced)
            request.embedded, request.features = True, None
            request.writer.prompt_tokens = len(prefix.tokens)
        with _timed([request], "prefill"):
            if prefix.advance(self.model):
                return []
            hidden = prefix.finish(self.model)
            self.waiting.popleft()
            pieces, _ = self._choose([request], hidden, [])
        if request.writer.stopped:
            self._close(request)
            return pieces
        self.running.append(request)
        self._state = State.join([self._state, prefix.state]) if self._state else prefix.state
        if prefix.drafter is not None and self.depth.any:
            self._drafter = Drafter.join([self._drafter, prefix.drafter]) if self._drafter else prefix.drafter
        prefix.hand_over()
        return pieces

    def _write(self) -> list[Piece]:
        """A round: draft, read the last token and the drafts in one pass, keep what is right, take back the rest."""
        with _timed(self.running, "decode"):
            drafts = self._draft(self._depth)
            rows = 1 + len(drafts[0])
            tokens = [[r.writer.tokens[-1], *(d.token for d in ds)] for r, ds in zip(self.running, drafts, strict=True)]
            embeddings = self.model.look_up(torch.tensor(tokens).flatten())
            assert self._state
            hidden = self.model.read(embeddings, (rows,) * len(tokens), self._state)
            pieces, counts = self._choose(self.running, hidden, drafts)
            self._state.rewind([rows - count for count in counts])
        return pieces

    @property
    def _depth(self) -> int:
        """Drafts this round. They decide which random numbers are drawn, so where anyone samples, what the others'
        drafts were worth may not change their number.
        """
        return self._first if self._sampled else int(self.depth)

    @property
    def _sampled(self) -> bool:
        return any(not request.writer.settings.sampling.greedy for request in self.running)

    def _draft(self, depth: int) -> list[list[Draft]]:
        """Drafts for each that runs."""
        if self._drafter is None or not depth:
            return [[] for _ in self.running]
        fresh = [request.fresh for request in self.running]
        hidden = torch.cat([request.hidden for request in self.running if request.hidden is not None])
        tokens, lengths = [token for each in fresh for token in each], tuple(len(each) for each in fresh)
        steps = self._drafter.draft(self.model, tokens, hidden, lengths, self.depth, depth, self._propose)
        for request in self.running:
            request.fresh, request.hidden = [], None
        return [[step[i] for step in steps] for i in range(len(self.running))]

    def _propose(self, logits: Float[Tensor, "sequences vocabulary"]) -> list[Draft]:
        logits.index_fill_(1, self._banned, -torch.inf)
        if self._sampled:
            return [request.writer.propose(row) for request, row in zip(self.running, logits, strict=True)]
        chances, best = logits.softmax(-1, torch.float32).max(-1)
        return [Draft(token, None, chance) for token, chance in zip(best.tolist(), chances.tolist(), strict=True)]

    def _choose(
        self, requests: list[Request], hidden: Float[Tensor, "tokens width"], drafts: list[list[Draft]]
    ) -> tuple[list[Piece], list[int]]:
        """Let each write by its rows; what can be shown, and how many tokens each wrote."""
        logits = self.model.score(hidden)
        logits.index_fill_(1, self._banned, -torch.inf)
        best = logits.argmax(-1).tolist()
        rows, pieces, counts = len(hidden) // len(requests), list[Piece](), list[int]()
        for i, request in enumerate(requests):
            mine, drafted = slice(i * rows, (i + 1) * rows), drafts[i] if drafts else []
            before = len(request.writer.tokens)
            try:
                pieces += request.writer.write(logits[mine], best[mine], drafted)
            except ValueError as error:  # a grammar that leaves nothing to write, logits that are no numbers
                request.error = error
                request.writer.cancel()
            written = request.writer.tokens[before:]
            counts.append(max(1, len(written)))
            if self.depth.any:
                self._remember(request, written, hidden[mine][: len(written)])
                if drafts and not request.writer.stopped:
                    self.depth.learn(len(drafted), len(written) - 1)
        return pieces, counts

    @staticmethod
    def _remember(request: Request, tokens: list[int], hidden: Tensor) -> None:
        """Keep for the multi-token head what was written since it drafted last."""
        request.fresh = request.fresh + tokens
        request.hidden = hidden if request.hidden is None else torch.cat((request.hidden, hidden))

    def _close(self, request: Request) -> None:
        """Draw up the result and its receipt."""
        request.seconds["all"] = time.perf_counter() - request.began
        result, prefix = request.writer.result(request.seconds), request.prefix
        receipt = Receipt.of(prefix.seen, prefix.tokens, self.codec, self.model.identity, result, self.depth.wanted)
        request.result = replace(result, receipt=receipt)

    def _let_go(self) -> None:
        """Those that have stopped leave."""
        stay = [i for i, request in enumerate(self.running) if not request.writer.stopped]
        if len(stay) == len(self.running):
            return
        for request in self.running:
            if request.writer.stopped:
                self._close(request)
        self.running = [self.running[i] for i in stay]
        self._state = self._state.take(stay) if self._state and stay else None
        self._drafter = self._drafter.take(stay) if self._drafter and stay else None


@contextmanager
def _timed(requests: list[Request], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    for request in requests:
        request.seconds[stage] += time.perf_counter() - start
