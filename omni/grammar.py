"""Grammar: answers that satisfy a JSON schema, or are one of a list of choices.

llguidance walks the grammar over the tokenizer's bytes and says before each token which ones may follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from omni.codec import Codec
from processors.chat import HALF

SPACE = r"( |\n {0,16})?"  # between JSON's parts: bounded, so that a model cannot write blanks for ever


@lru_cache(maxsize=4)
def _prepared(codec: Codec) -> LLTokenizer:
    return from_tokenizer(codec.tokenizer, n_vocab=codec.size, eos_token=list(codec.eos))


def grammar_of(schema: Mapping[str, Any] | None, choices: Sequence[str]) -> str | None:
    """A JSON schema, or a list of choices, as a grammar; None for neither. Raises ValueError for both, and for what is
    no schema or no text.
    """
    if schema is not None and choices:
        raise ValueError("grammar: a schema and choices came; give one of them")
    if schema is not None:
        if not isinstance(schema, Mapping):
            raise ValueError(f"grammar: {schema!r:.80} came as a schema; want a mapping such as {{'type': 'object'}}")
        try:
            text = json.dumps(dict(schema), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"grammar: the schema is not plain JSON ({error}); want texts, numbers and lists"
            ) from None
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACE})
    wrong = [choice for choice in choices if not isinstance(choice, str) or HALF.search(choice)]
    if isinstance(choices, str) or wrong:
        raise ValueError(f"grammar: {choices!r:.80} came as choices; want a list of texts")
    if choices:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))
    return None


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, grammar: str, codec: Codec) -> None:
        """Raises ValueError when the grammar, or a schema behind it, cannot be used."""
        self._matcher = LLMatcher(_prepared(codec), grammar, log_level=0)
        self._check("the schema or the choices cannot be used")

    def allow(self, logits: Float[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
        """Rule out all that cannot follow."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        self._check("no token can follow")
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: len(logits)].bool()
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def consume(self, token: int) -> None:
        """Step over a token that was allowed."""
        self._matcher.consume_token(token)
        self._check(f"token {token} does not follow")

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing more can follow."""
        return self._matcher.is_stopped()

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise ValueError(f"grammar: {what}: {self._matcher.get_error()}")
