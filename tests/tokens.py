"""A tiny byte-level tokenizer of the family: its special tokens at their ids, its chat template, no merges."""

from __future__ import annotations

from typing import Any

from demos.tour import tokenizer as plain


def tokenizer(template: str | None = None) -> Any:
    made: Any = plain()
    if template:
        made.chat_template = template
    return made


def text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
