"""Plan: what a conversation will cost before anything is decoded, item by item.

What the processor then makes equals it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedItem:
    """One item of media.

    tokens: features the model will read for it, after pruning. text_tokens: labels, times and brackets around them.
    details: what was decided: grids, effective dpi of each page, frames and their true times, seconds of sound,
    chunks, pages left out.
    """

    kind: str
    name: str
    tokens: int
    text_tokens: int
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """text_tokens: of the conversation itself.

    context: what the caller stated. left_out: what was dropped when told so.
    """

    items: tuple[PlannedItem, ...]
    text_tokens: int
    context: int | None
    left_out: tuple[str, ...]
    rules: dict[str, Any]
    cache_bytes_a_token: int = 0
    state_bytes: int = 0

    @property
    def tokens(self) -> int:
        """All tokens of the prompt: text, media and what stands around them."""
        return self.text_tokens + sum(item.tokens + item.text_tokens for item in self.items)

    @property
    def cache_bytes(self) -> int:
        """Memory of the model's state after the prompt."""
        return self.tokens * self.cache_bytes_a_token + self.state_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "tokens": self.tokens, "cache_bytes": self.cache_bytes}
