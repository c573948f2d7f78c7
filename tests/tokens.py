"""A tiny byte-level tokenizer of the family: its special tokens at their ids, its chat template, no merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import omni

SPECIAL = {
    0: "<unk>", 1: "<s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>", 18: "<image>",
    21: "<img>", 22: "</img>", 27: "<so_embedding>", 28: "<so_start>", 29: "<so_end>",
}  # fmt: skip


def tokenizer(template: str | None = None) -> Any:
    names = [SPECIAL.get(i, f"<special_{i}>") for i in range(32)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate([*names, *letters])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=names, unk_token="<unk>")
    fast.chat_template = template or (Path(omni.__file__).parent / "tiny" / "chat_template.jinja").read_text()
    return fast


def text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
