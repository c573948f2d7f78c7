"""The small model's tokenizer: the family's special tokens, bytes, and whole words of questions.

Byte-level BPE. What has to be read off a page is spelled character by character, so that it is copied the same way
wherever it stands in a word; the words that questions and frames' lines are made of are one token each, with or
without the space before them.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SIZE = 512
SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    18: "<image>",
    21: "<img>",
    22: "</img>",
    27: "<so_embedding>",
    28: "<so_start>",
    29: "<so_end>",
}
RESERVED = 32
FIRST = """What How Which Who Where When Is Does In At On Read Transcribe Write Repeat Copy Say Add Click Frame
This Page frame system user assistant yes no""".split()
LATER = """is the of many much does do it are there shape shapes in order first last appear appears disappear
move moves direction way go to time turn turned become was were said when at on day date number name called
total price cost value title heading largest smallest highest lowest larger than button field click video
sampled seconds and frame recording page text down all be seen can for has given start end comes after again
beeps tones you hear pitch or pitches heard speaker say what window invoice receipt shop customer company
subtotal change paid bought due letter written colour colours""".split()
BOTH = """red green blue yellow purple orange pink cyan circle square triangle star cross ring left right up
down low middle high""".split()
TEMPLATE = Path(__file__).parents[1] / "tiny" / "chat_template.jinja"


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template, always the same."""
    names = [SPECIAL.get(i, f"<special_{i}>") for i in range(RESERVED)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*FIRST, *BOTH, *(f"Ġ{word}" for word in (*LATER, *BOTH))]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*names, *letters, *words]))}
    if len(vocabulary) > SIZE:
        raise ValueError(f"tokens: {len(vocabulary)} entries for a vocabulary of {SIZE}; take words out")
    spelled = sorted({*FIRST, *LATER, *BOTH}, key=lambda word: (-len(word), word))
    pieces = rf"(?: |(?<![A-Za-z]))(?:{'|'.join(spelled)})(?![A-Za-z])|(?m:.)|\n|\r"
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]  (a setter there)
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  (a setter there)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=names,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE.read_text()  # pyright: ignore[reportAttributeAccessIssue]  (untyped there)
    return fast
