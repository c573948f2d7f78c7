"""Answers satisfy a schema or are one of the choices, whatever the model would rather write; thinking is left alone."""

from __future__ import annotations

import json

import pytest
import talker
from test_thinking import dictate

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "items": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "paid": {"enum": ["yes", "no"]},
    },
    "required": ["total", "items", "paid"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", [None, 3])
def test_a_random_models_answer_satisfies_the_schema(temperature: float, draft: int | None) -> None:
    model = talker.talker(talker.DRAFTS)
    result = model.generate(
        talker.prompt("?"), 400, temperature=temperature, top_k=40, seed=4, schema=SCHEMA, draft=draft
    )
    values = json.loads(result.text)
    assert result.stopped == "grammar"
    assert set(values) == {"total", "items", "paid"}
    assert values["paid"] in ("yes", "no")
    assert isinstance(values["total"], int | float)


@pytest.mark.parametrize("end", [talker.THINK, talker.ANSWER])
def test_a_random_models_answer_is_one_of_the_choices(end: str) -> None:
    model = talker.talker()
    choices = ["Zürich", 'a "quoted" one', "line\nbreak"]
    result = model.generate(talker.prompt("?", end), 60, temperature=1.0, seed=2, choices=choices, thinking_budget=5)
    assert result.text in choices
    assert (len(result.thinking) > 0) == (end == talker.THINK)
    assert result.thinking_tokens <= 21


def test_the_grammar_holds_behind_thinking_and_a_newline_only() -> None:
    result, _ = dictate('so {"a"\n</think>\nyes, I think', choices=("yes", "no"))
    assert (result.thinking, result.text, result.stopped) == ('so {"a"', "yes", "grammar")
    result, _ = dictate("<think>hm</think>no", "<|im_start|>assistant\n", choices=("yes", "no"))
    assert (result.thinking, result.text) == ("hm", "no")
    result, _ = dictate("maybe", "<|im_start|>assistant\n", choices=("yes", "no"))
    assert result.text in ("yes", "no")


def test_a_choice_that_begins_another_may_end_there() -> None:
    assert dictate("yes", talker.ANSWER, choices=("yes", "yes, please"))[0].text == "yes"
    assert dictate("yes, please", talker.ANSWER, choices=("yes", "yes, please"))[0].text == "yes, please"


def test_an_answer_without_end_to_its_blanks_is_impossible() -> None:
    result, _ = dictate("{" + " \n" * 100, talker.ANSWER, schema=SCHEMA, max_new_tokens=60)
    assert "\n\n" not in result.text
    assert "  \n" not in result.text


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        dictate("a", schema=SCHEMA, choices=("a",))
    with pytest.raises(ValueError, match="cannot be used"):
        dictate("a", schema={"type": "nothing"})
