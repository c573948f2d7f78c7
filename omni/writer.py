"""Writer: one answer being written. It chooses each token as its settings say, keeps thinking within its budget, and
ends at an end token, a stop string, a complete grammar, or the last token allowed.

A writer knows no model and no neighbours: it gets logits and gives tokens, and draws from random numbers of its own.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from omni.answer import Piece, Result, Settings, Stopped
from omni.codec import Codec
from omni.grammar import Matcher, grammar_of
from omni.sampling import Draft, distribution, draw, keep_or_redraw, penalise
from omni.thinking import Budget, Split

TAIL = 16  # ids at a prompt's end that tell whether it leaves thinking open


class Writer:
    """Writes the answer to a prompt.

    Raises ValueError for settings that do not fit one another.
    """

    def __init__(self, settings: Settings, codec: Codec, prompt: Sequence[int], sequence: int = 0) -> None:
        self.settings, self.codec, self.sequence = settings, codec, sequence
        self.tokens: list[int] = []
        self.stopped: Stopped | None = None
        self.prompt_tokens, self._thinking_tokens, self._rounds = len(prompt), 0, 0
        self._logprobs: list[float] = []
        self._budget = Budget.of(settings.thinking_budget, settings.grace, settings.max_new_tokens)
        self._split = Split(codec.decode(prompt[-TAIL:]), [mark for mark in settings.stop if isinstance(mark, str)])
        self._ends = {*codec.eos, *(mark for mark in settings.stop if isinstance(mark, int))}
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._random = Random(settings.seed)
        grammar = grammar_of(settings.schema, settings.choices)
        if mute := [choice for choice in settings.choices if not all(map(codec.bytes_of, codec.encode(choice)))]:
            raise ValueError(f"generate: the choice {mute[0]!r} holds a special token, which is no text; leave it out")
        self._matcher = Matcher(grammar, codec) if grammar else None
        self._open, self._close = (ids if len(ids) == 1 else () for ids in (codec.open, codec.close))
        if self._matcher and not self._open and self._split.phase == "before":
            self._split.phase = "closed"  # no token says that thinking begins: the grammar holds from the start
        self._forced: deque[int] = deque()
        self._seen: Tensor | None = None
        if settings.sampling.repetition_penalty != 1:
            self._seen = torch.zeros(codec.size, dtype=torch.bool)
            self._seen[list(prompt)] = True
        self._force_end_of_thinking(newline=False)

    def propose(self, logits: Float[Tensor, " vocabulary"]) -> Draft:
        """A draft of the next token, from the multi-token head's logits."""
        if self.settings.sampling.greedy:
            return Draft(int(logits.argmax()))
        drawn_from = distribution(logits, self.settings.sampling)
        return Draft(draw(drawn_from, self._random), drawn_from)

    def write(
        self, logits: Float[Tensor, "rows vocabulary"], best: Sequence[int], drafts: Sequence[Draft] = ()
    ) -> list[Piece]:
        """Choose the next token by the first row of logits, and one by each further row as long as its draft was right.

        best: the likeliest token of each row. At least one token is written. Raises ValueError for logits that are no
        numbers.
        """
        self._rounds += 1
        shown: list[tuple[str, bool]] = []
        for row, likeliest in enumerate(best):
            if not logits[row, likeliest] < torch.inf:
                raise ValueError(
                    f"generate: the logits of token {len(self.tokens)} are no numbers; load the model in bfloat16 or "
                    "float32 where float16 overflows, else look for the weights that are no numbers"
                )
            draft = drafts[row] if row < len(drafts) else None
            forced = bool(self._forced)
            token = self._forced.popleft() if forced else self._choose(logits[row], likeliest, draft)
            if self.settings.logprobs:
                self._logprobs.append(float(logits[row].log_softmax(-1)[token]))
            shown += self._accept(token, forced)
            if self.stopped or draft is None or token != draft.token:
                break
        return [Piece(text=text, thinking=thinking, sequence=self.sequence) for text, thinking in shown if text]

    def cancel(self) -> None:
        """End here."""
        self.stopped = "cancelled"
        self._split.finish()

    def result(self, seconds: Mapping[str, float]) -> Result:
        """The answer, once it has stopped."""
        assert self.stopped
        return Result(
            text=self._split.answer.text,
            thinking=self._split.thought.text,
            tokens=tuple(self.tokens),
            stopped=self.stopped,
            prompt_tokens=self.prompt_tokens,
            thinking_tokens=self._thinking_tokens,
            rounds=self._rounds,
            seconds=seconds,
            settings=self.settings,
            logprobs=tuple(self._logprobs) if self.settings.logprobs else None,
        )

    # Choosing a token

    def _choose(self, logits: Tensor, likeliest: int, draft: Draft | None) -> int:
        sampling, matching = self.settings.sampling, self._matcher and self._split.phase != "open"
        if sampling.greedy and self._seen is None and not matching and likeliest not in self._unwanted():
            return likeliest
        wanted = distribution(self._constrain(logits), sampling)
        return draw(wanted, self._random) if draft is None else keep_or_redraw(wanted, draft, self._random)

    def _unwanted(self) -> tuple[int, ...]:
        """Ids that may not be written now, likely as they may be."""
        if self._split.phase == "open":
            return (*self._open, *self.codec.eos)
        empty = self.codec.eos if not self._matcher and self._split.blank else ()  # a grammar may allow an empty answer
        if self._split.phase == "before":
            return (*self._close, *(self._open if self._budget.hard == 0 else ()), *empty)
        return (*self._open, *self._close, *empty)

    def _constrain(self, logits: Tensor) -> Tensor:
        """Rule out what may not follow; who wants to end while thinking ends the thinking."""
        if self._seen is not None:
            logits = penalise(logits, self._seen.to(logits.device), self.settings.sampling.repetition_penalty)
        unwanted = list(self._unwanted())
        allowed = logits.clone()
        allowed[unwanted] = -torch.inf
        if self._split.phase == "open":
            if self._close:
                allowed[self._close[0]] = logits[[*self._close, *self.codec.eos]].logsumexp(0)
        elif self._matcher:
            free = [token for token in self._free() if token not in unwanted]
            allowed = self._matcher.allow(allowed)
            allowed[free] = logits[free]
        return allowed

    def _free(self) -> tuple[int, ...]:
        """Ids outside the grammar: the mark that opens thinking, the newline that follows it."""
        if self._split.phase == "before":
            return self._open
        behind = self._split.has_thought and self.tokens and self.tokens[-1] == self.codec.close[-1]
        return (self.codec.newline,) if behind else ()

    # Writing it down

    def _accept(self, token: int, forced: bool) -> list[tuple[str, bool]]:
        before, free = self._split.phase, self._free()
        self.tokens.append(token)
        if self._seen is not None:
            self._seen[token] = True
        if before != "open" and token in self._ends:
            self.stopped = "eos" if token in self.codec.eos else "stop"
            return self._split.finish()
        spelt = self.codec.bytes_of(token)
        shown = self._split.feed(self._characters.decode(spelt))
        if self._split.phase == "open":
            self._thinking_tokens += before == "open" and not forced
            self._force_end_of_thinking(b"\n" in spelt)
        elif self._matcher and before != "open" and token not in free:
            self._matcher.consume(token)
        if self._split.answer.hit is not None:
            self.stopped = "stop"
        elif self._matcher and self._matcher.complete:
            self.stopped = "grammar"
        elif len(self.tokens) >= self.settings.max_new_tokens:
            self.stopped = "length"
        return shown + self._split.finish() if self.stopped else shown

    def _force_end_of_thinking(self, newline: bool) -> None:
        if self._split.phase == "open" and not self._forced and self._budget.spent(self._thinking_tokens, newline):
            self._forced.extend(self.codec.close)
