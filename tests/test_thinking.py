"""Thinking stays apart from the answer and within its budget, and the answer follows."""

from __future__ import annotations

import pytest
import talker
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.answer import Result, Settings
from omni.codec import Codec
from omni.thinking import Budget, Split
from omni.writer import Writer

CODEC = Codec(talker.TOKENIZER, media=(18, 27))
EOS = 11


def ids(text: str) -> list[int]:
    return talker.TOKENIZER.encode(text, add_special_tokens=False)


def dictate(wish: str, end: str = talker.THINK, **settings: object) -> tuple[Result, str]:
    """What a model writes that wants to write `wish` and stop then: the result, and all that was streamed.

    Told to write something else, it goes on where the wish has got to.
    """
    writer = Writer(Settings(**settings).seeded(), CODEC, ids("x" + end))  # pyright: ignore[reportArgumentType]
    left, shown = [*ids(wish), EOS], ""
    while writer.stopped is None:
        logits = torch.zeros(1, CODEC.size)
        logits[0, 100] = 1  # the second best is a letter
        logits[0, left[0] if left else EOS] = 2
        shown += "".join(piece.text for piece in writer.write(logits, [int(logits.argmax())]))
        if left and writer.tokens[-1] == left[0]:
            left.pop(0)
    return writer.result({}), shown


def test_thinking_and_answer_come_apart() -> None:
    result, shown = dictate("I see.\n</think>\nIt is 7.")
    assert (result.thinking, result.text, result.stopped) == ("I see.", "It is 7.", "eos")
    assert shown == "I see.It is 7."
    assert result.thinking_tokens == len("I see.\n")


def test_a_prompt_that_closed_thinking_gets_an_answer_alone() -> None:
    result, _ = dictate("It is 7.", talker.ANSWER)
    assert (result.thinking, result.text) == ("", "It is 7.")


def test_a_model_that_opens_thinking_itself_is_understood() -> None:
    plain = "<|im_start|>assistant\n"
    result, shown = dictate("<think>\nI see.\n</think>\n\nIt is 7.", plain)
    assert (result.thinking, result.text) == ("I see.", "It is 7.")
    assert shown == "I see.It is 7."
    result, shown = dictate("<the> answer", plain)  # begins like the mark, and is none
    assert (result.thinking, result.text, shown) == ("", "<the> answer", "<the> answer")
    assert dictate("<th", plain)[0].text == "<th"


THOUGHT = "one two three\n" * 6


@pytest.mark.parametrize("budget", [1, 7, 14, 64])
def test_after_the_budget_thinking_ends_at_the_next_newline(budget: int) -> None:
    result, _ = dictate(THOUGHT + "</think>ok", thinking_budget=budget, grace=100, max_new_tokens=2000)
    want = -(-budget // 14) * 14  # a line has 14 tokens
    assert result.thinking_tokens == want
    assert result.thinking == THOUGHT[:want].rstrip("\n")
    assert result.text


@pytest.mark.parametrize("budget", [1, 7, 64])
@pytest.mark.parametrize("grace", [0, 5])
def test_after_the_grace_thinking_is_cut(budget: int, grace: int) -> None:
    result, _ = dictate("a" * 300, thinking_budget=budget, grace=grace, max_new_tokens=500)
    assert result.thinking == "a" * (budget + grace)
    assert result.tokens[budget + grace] == CODEC.close[0]
    assert result.text


def test_a_budget_of_zero_means_no_thinking_even_with_grace() -> None:
    result, _ = dictate("abc", thinking_budget=0, grace=50)
    assert (result.thinking, result.thinking_tokens, result.text) == ("", 0, "abc")
    assert result.tokens[0] == CODEC.close[0]


def test_without_a_budget_thinking_leaves_room_for_the_answer() -> None:
    result, _ = dictate("a" * 500, max_new_tokens=100)
    assert len(result.tokens) == 100
    assert result.thinking_tokens == 75
    assert len(result.text) == 24


@settings(max_examples=40, deadline=None)
@given(
    budget=st.sampled_from([0, 1, 7, 64, None]),
    grace=st.none() | st.integers(0, 20),
    most=st.integers(1, 120),
    wish=st.text(alphabet="ab\n", max_size=90).map(lambda text: text.replace("b\n", "b</think>")),
)
def test_no_budget_is_ever_exceeded_and_an_answer_follows(
    budget: int | None, grace: int | None, most: int, wish: str
) -> None:
    result, shown = dictate(wish, thinking_budget=budget, grace=grace, max_new_tokens=most)
    hard = Budget.of(budget, grace, most).hard
    assert result.thinking_tokens <= hard <= most
    assert budget is None or result.thinking_tokens <= budget + (16 if grace is None else grace)
    assert len(result.tokens) <= most
    assert most < 2 or result.text.strip() or result.stopped == "length"
    assert most < 2 or CODEC.close[0] in result.tokens
    assert shown == result.thinking + result.text


def test_a_model_that_stops_while_thinking_or_before_it_answers_goes_on_to_an_answer() -> None:
    result, _ = dictate("I see.")  # and then the end
    assert result.thinking == "I see."
    assert result.tokens[len("I see.")] == CODEC.close[0]
    assert result.text
    assert dictate("I see.</think>\n\n")[0].text.strip()
    for end in (talker.ANSWER, "<|im_start|>assistant\n"):  # without thinking just as well
        assert dictate("", end)[0].text.strip()
        assert dictate(" \n", end)[0].text.strip()
    assert dictate("", talker.ANSWER, schema={"type": "string", "enum": ["a"]})[0].text == '"a"'


def test_stop_strings_end_the_answer_not_the_thinking() -> None:
    result, shown = dictate("a STOP b</think>c STOP d", stop=("STOP",))
    assert (result.thinking, result.text, result.stopped) == ("a STOP b", "c ", "stop")
    assert shown == "a STOP bc "
    result, _ = dictate("ab</think>cab", stop=(ids("b")[0],))
    assert (result.thinking, result.text, result.stopped) == ("ab", "ca", "stop")


def test_marks_of_several_tokens_work_as_well() -> None:
    codec = Codec(talker.TOKENIZER)
    codec.open, codec.close = (tuple(ids(" ".join(mark))[::2]) for mark in ("<think>", "</think>"))
    writer = Writer(Settings(thinking_budget=3, grace=0).seeded(), codec, ids("x"))
    for token in (*codec.open, *ids("abcdefghijklmnop")):
        logits = torch.zeros(1, codec.size)
        logits[0, token] = 1
        writer.write(logits, [token])
    writer.cancel()
    result = writer.result({})
    assert (result.thinking, result.text) == ("abc", "lmnop")  # d to k were what it wanted while the mark was written


def test_a_prompts_end_says_whether_thinking_is_open() -> None:
    assert [Split(end).phase for end in ("a<think>\n", "<think></think>", "<think>a</think>\n", "a")] == [
        "open",
        "closed",
        "closed",
        "before",
    ]


def test_negative_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="0: no thinking"):
        Budget.of(-1, None, 10)
