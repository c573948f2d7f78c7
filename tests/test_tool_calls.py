"""Tool calls: what the template writes is read back; damaged calls are read where they are clear, else left as text."""

from __future__ import annotations

import time
from typing import Any

import pytest
import talker
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.tool_calls import Parsed, ToolCall, parse

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "nights": {"type": "integer"},
                    "price": {"type": "number"},
                    "breakfast": {"type": "boolean"},
                    "guests": {"type": "array"},
                    "room": {"type": "object"},
                    "note": {"type": ["string", "null"]},
                    "floor": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                },
            },
        },
    }
]
VALUES = {
    "city": st.text(alphabet="aé 1\n{}<>", min_size=1).filter(lambda t: t.strip("\n") == t),
    "nights": st.integers(-5, 5),
    "price": st.integers(-5, 5) | st.floats(-9, 9),
    "breakfast": st.booleans(),
    "guests": st.lists(st.text(alphabet="ab\n<", max_size=3), max_size=3),
    "room": st.dictionaries(st.sampled_from("xy"), st.integers(0, 3)),
    "floor": st.none() | st.integers(0, 9),
}


def call(city: str = "Rome") -> str:
    return f"<tool_call>\n<function=book>\n<parameter=city>\n{city}\n</parameter>\n</function>\n</tool_call>"


@settings(max_examples=40, deadline=None)
@given(arguments=st.lists(st.fixed_dictionaries({}, optional=VALUES), min_size=1, max_size=3))
def test_what_the_template_writes_is_read_back(arguments: list[dict[str, Any]]) -> None:
    calls = [{"function": {"name": "book", "arguments": each}} for each in arguments]
    text = talker.TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Well.", "tool_calls": calls}],
        tokenize=False,
    )
    answer = text.split("<think></think>")[1].removesuffix("<|im_end|>\n")
    parsed = parse(answer, TOOLS)
    assert parsed.text == "Well."
    assert [dict(each.arguments) for each in parsed.calls] == arguments
    assert {each.name for each in parsed.calls} == {"book"}


ROME = (ToolCall(name="book", arguments={"city": "Rome"}),)
DAMAGED = {
    "whole": (call(), "", ROME),
    "text around": (f"I will.\n{call()}\nDone.", "I will.\n\nDone.", ROME),
    "no wrapper": ("<function=book>\n<parameter=city>\nRome\n</parameter>\n</function>", "", ROME),
    "no wrapper's end": (call().removesuffix("</tool_call>"), "", ROME),
    "no function's end": (call().replace("</function>\n", ""), "", ROME),
    "no parameter's end": (call().replace("</parameter>\n", ""), "", ROME),
    "no ends but the value's": (call().split("</function>")[0], "", ROME),
    "all in one line": (call().replace("\n", ""), "", ROME),
    "blanks in marks": (call().replace("=book", "= book ").replace("=city", "= city "), "", ROME),
    "no arguments": ("<tool_call><function=book></function></tool_call>", "", (ToolCall(name="book"),)),
    "two, the first one without an end": (call().removesuffix("\n</tool_call>") + call(), "", ROME * 2),
    "a wrapper twice": ("<tool_call>\n" + call(), "<tool_call>", ROME),
    "cut off in a value": (call().split("me\n")[0], None, ()),
    "cut off in a name": ("<tool_call>\n<function=bo", None, ()),
    "no name": ("<tool_call>\n<parameter=city>Rome</parameter>\n</tool_call>", None, ()),
    "JSON in the wrapper": ('<tool_call>{"name": "book"}</tool_call>', None, ()),
    "only words": ("Use <function> or <tool_call> marks.", None, ()),
    "cut off, then whole": ("<tool_call><function=book<tool_call>" + call()[11:], "<tool_call><function=book", ROME),
    "rubbish after the value": (call().replace("</function>", "what?</function>"), None, ()),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_call_is_read_where_it_is_clear(case: str) -> None:
    text, kept, calls = DAMAGED[case]
    parsed = parse(text, TOOLS)
    assert parsed.calls == calls
    assert parsed.text == (text if kept is None else kept)


def value(text: str, key: str, tools: list[dict[str, Any]] | None = None) -> Any:
    written = f"<function=book><parameter={key}>\n{text}\n</parameter></function>"
    return parse(written, TOOLS if tools is None else tools).calls[0].arguments[key]


def test_values_have_their_schemas_types() -> None:
    assert value("7", "city") == "7"
    assert value("7", "nights") == 7
    assert value("True", "breakfast") is True
    assert value("null", "floor") is value("None", "floor") is None
    assert value('["a", 1]', "guests") == ["a", 1]
    assert value("two\nlines", "city") == "two\nlines"


def test_a_value_that_is_not_what_its_schema_says_stays_text() -> None:
    assert value("seven", "nights") == "seven"
    assert value("true", "nights") == "true"
    assert value("1.5", "nights") == "1.5"
    assert value("[1", "guests") == "[1"


def test_without_a_schema_json_is_read_as_json() -> None:
    assert [value(text, "k", []) for text in ("7", "a b", '"q"', "{}")] == [7, "a b", '"q"', {}]


@pytest.mark.parametrize(
    "schema",
    [True, None, {"type": 5}, {"anyOf": [{"type": ["string", "null"]}, {"type": "integer"}]}, {"anyOf": [True]}],
)
def test_schemas_of_any_make_are_read_as_far_as_they_say_types(schema: Any) -> None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": schema}}}}, {"function": {}}]
    (call,) = parse("<function=f><parameter=a>null</parameter></function>", tools).calls
    assert call.arguments["a"] == (None if isinstance(schema, dict) else "null")


@pytest.mark.parametrize(
    ("schema", "value", "read"),
    [
        ({"$ref": "#/$defs/P"}, '{"x": 1}', {"x": 1}),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": "true"}, "true", "true"),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, "3.5", "3.5"),
    ],
)
def test_values_are_what_their_schemas_mean(schema: dict[str, Any], value: str, read: Any) -> None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": schema}}}}]
    (call,) = parse(f"<function=f><parameter=a>{value}</parameter></function>", tools).calls
    assert (call.arguments["a"], type(call.arguments["a"])) == (read, type(read))


@pytest.mark.parametrize("value", ["[" * 100_000, "NaN", "-Infinity"])
def test_a_value_that_is_no_json_stays_text(value: str) -> None:
    (call,) = parse(f"<function=f><parameter=a>{value}</parameter></function>").calls
    assert call.arguments == {"a": value}


def test_many_calls_that_never_end_are_soon_read() -> None:
    text, start = "<function=f><parameter=a>x" * 4000, time.perf_counter()
    assert parse(text) == Parsed(text=text, calls=())
    assert time.perf_counter() - start < 5
