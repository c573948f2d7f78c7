"""The codec: text comes in whole characters, marks never leak, bytes equal transformers' decoding."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
import talker
import tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from omni.codec import Codec, TextStream

CODEC = Codec(talker.TOKENIZER, media=(18, 27))
LETTERS = st.text(alphabet="ab<|e>\n é日🙂", max_size=30)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_decoding_undoes_encoding(text: str) -> None:
    ids = talker.TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert CODEC.decode(ids) == text == tokens.text(talker.TOKENIZER, ids)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(32, 287), max_size=30))
def test_any_ids_decode_as_transformers_does(ids: list[int]) -> None:
    assert CODEC.decode(ids) == tokens.text(talker.TOKENIZER, ids)


@settings(max_examples=60, deadline=None)
@given(text=LETTERS)
def test_a_character_split_over_tokens_is_shown_once_it_is_whole(text: str) -> None:
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    shown = [
        characters.decode(CODEC.bytes_of(token)) for token in talker.TOKENIZER.encode(text, add_special_tokens=False)
    ]
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


@settings(max_examples=200, deadline=None)
@given(
    text=LETTERS,
    cuts=st.lists(st.integers(0, 30), max_size=6),
    marks=st.lists(st.text(alphabet="ab<|e>", min_size=1, max_size=4), max_size=3),
)
def test_a_stream_shows_all_up_to_the_mark_that_is_whole_first_whatever_the_pieces(
    text: str, cuts: list[int], marks: list[str]
) -> None:
    ends = [(end, end - len(mark)) for mark in marks for end in range(len(text) + 1) if text[:end].endswith(mark)]
    want = text[: min(ends)[1]] if ends else text
    stream, shown = TextStream(marks), ""
    for start, end in pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]):
        shown += stream.feed(text[start:end])
        assert want.startswith(shown)  # never a mark's beginning
        if stream.hit is not None:
            break
    shown += "" if stream.hit else stream.finish()
    assert shown == stream.text == want
    assert (stream.hit is not None) == bool(ends)


def test_newlines_around_thinking_are_left_out() -> None:
    stream = TextStream(("</think>",), lead=True, trail=True)
    shown = [stream.feed(piece) for piece in ("\n", "\na\n", "\nb\n", "</thi", "nk>", "")]
    assert shown == ["", "a", "\n\nb", "", "", ""]
    assert stream.text == "a\n\nb"


def test_special_tokens_write_nothing_but_marks_of_thinking_and_tools() -> None:
    assert CODEC.bytes_of(10) == CODEC.bytes_of(31) == CODEC.bytes_of(100_000) == b""
    assert CODEC.decode([12, 13]) == "<think></think>"
    assert (CODEC.open, CODEC.close) == ((12,), (13,))


def test_media_and_ids_without_a_token_are_banned() -> None:
    assert Codec(talker.TOKENIZER, vocabulary=291, media=(18, 27)).banned == (18, 21, 22, 27, 28, 29, 288, 289, 290)
    assert Codec(talker.TOKENIZER).banned == ()  # a text model may use these ids for anything


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    made.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match=r"Metaspace.*byte-level"):
        Codec(PreTrainedTokenizerFast(tokenizer_object=made))
