"""Tool calls, as the family writes them (qwen3_coder's XML):

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

Models damage this now and then: they forget a closing mark, are cut off, leave out the wrapper. Whatever says clearly
what is called with what becomes a call; a call without a name, or cut off inside a value, stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CALL = re.compile(r"<tool_call>\s*|(?=<function=)")
NAME = re.compile(r"<function=\s*([^\s<>]+?)\s*>")
KEY = re.compile(r"<parameter=\s*([^\s<>]+?)\s*>")
VALUE_END = re.compile(r"</parameter>|(?=<parameter=)|(?=</function>)|(?=</tool_call>)")
FUNCTION_END = re.compile(r"\s*</function>|\s*(?=</tool_call>|<tool_call>|<function=)|\s*\Z")
CALL_END = re.compile(r"\s*</tool_call>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function to be called, and with what."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """An answer's text without its calls, and the calls in order."""

    text: str
    calls: tuple[ToolCall, ...]


def parse(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
    """Take the calls out of an answer.

    tools: what was offered, in OpenAI's form: their schemas say which values are numbers, lists or objects; a value
    that is not what its schema says stays a string. Without a schema, what is JSON (but no string) is read as JSON.
    """
    functions = [tool.get("function", tool) for tool in tools]
    schemas = {function.get("name", ""): _properties(function) for function in functions}
    kept: list[str] = []
    calls: list[ToolCall] = []
    lost: set[int] = set()
    at = 0
    while found := CALL.search(text, at):
        read = _call(text, found.end(), schemas, lost)
        if read is None:
            kept.append(text[at : found.end() + (found.end() == found.start())])
            at = found.end() + (found.end() == found.start())
            continue
        kept.append(text[at : found.start()])
        call, at = read
        calls.append(call)
    kept.append(text[at:])
    return Parsed(text="".join(kept).strip() if calls else text, calls=tuple(calls))


def _call(text: str, at: int, schemas: Mapping[str, Mapping[str, Any]], lost: set[int]) -> tuple[ToolCall, int] | None:
    """The call that begins here and where it ends; None if it is none. lost: values from which none was reached, so
    that a text of many beginnings is not walked through from each of them.
    """
    name = NAME.match(text, at)
    if name is None:
        return None
    schema, arguments, at, passed = schemas.get(name[1]), dict[str, Any](), name.end(), list[int]()
    while key := re.compile(r"\s*" + KEY.pattern).match(text, at):
        passed.append(key.end())
        end = None if key.end() in lost else VALUE_END.search(text, key.end())
        if end is None:
            lost.update(passed)
            return None  # cut off: nobody knows the rest of the value
        value = text[key.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[key[1]] = _typed(value, schema, key[1])
        at = end.end()
    end = FUNCTION_END.match(text, at)
    if end is None:
        lost.update(passed)
        return None
    closed = CALL_END.match(text, end.end())
    return ToolCall(name=name[1], arguments=arguments), (closed or end).end()


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


KINDS: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def _typed(value: str, schema: Mapping[str, Any] | None, key: str) -> Any:
    kinds, declared = list[str](), None
    if schema is not None:
        declared = schema.get(key)
        kinds = _kinds(declared)
        if not isinstance(declared, Mapping) or kinds == ["string"]:
            return value
    try:
        plain = value if value.strip() not in ("True", "False", "None") else _python(value)
        read = json.loads(plain, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return value
    if isinstance(declared, Mapping) and value in declared.get("enum", [declared.get("const")]):
        return value
    if not kinds:
        return value if isinstance(read, str) else read
    if "integer" in kinds and isinstance(read, float) and read.is_integer():
        return int(read)
    fits = any(kind in KINDS and isinstance(read, KINDS[kind]) for kind in kinds)
    odd = isinstance(read, bool) and "boolean" not in kinds  # Python counts true as a number
    return read if fits and not odd else value


def _kinds(schema: Any) -> list[str]:
    """The types that a schema allows, of all its alternatives."""
    if not isinstance(schema, Mapping):
        return []
    named, parts = schema.get("type"), schema.get("anyOf")
    kinds = named if isinstance(named, list) else [named]
    return [kind for kind in kinds if isinstance(kind, str)] or [
        kind for part in (parts if isinstance(parts, list) else []) for kind in _kinds(part)
    ]


def _refuse(constant: str) -> None:
    """NaN and infinities are no JSON."""
    raise ValueError(constant)


def _python(value: str) -> str:
    return {"True": "true", "False": "false", "None": "null"}[value.strip()]
