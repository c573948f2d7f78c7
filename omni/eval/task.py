"""Task: a benchmark's data, prompt and rule; from its name alone comes a whole spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omni.eval.item import Lazy
from omni.eval.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """items: of a spec. prompt, rule, source: what the benchmark's authors use, where a spec says nothing else.

    tokens: of an answer at most. shown, thinking: of the spec's fields preprocessing and thinking. options: of this
    task alone, with their defaults; `about` says what they mean.
    """

    name: str
    about: str
    items: Callable[[Spec], Lazy]
    rule: str
    prompt: str = "{question}"
    source: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 128
    batch: int = 8
    shown: Mapping[str, Any] = field(default_factory=dict)
    thinking: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, values: Mapping[str, Any] | None = None) -> Spec:
        """A spec with this task's defaults for what `values` leave out. Raises ValueError for unknown options."""
        given = dict(values or {})
        options = _mapping(given, "options")
        if unknown := [name for name in options if name not in self.options]:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"spec: options.{', options.'.join(unknown)} is unknown; {self.name} has {known}")
        for name, value in options.items():
            if self.options[name] is not None and type(value) is not type(self.options[name]):
                raise ValueError(f"spec: options.{name} is {value!r}; want a value such as {self.options[name]!r}")
        own = {
            "scoring": {"rule": self.rule},
            "source": self.source,
            "preprocessing": self.shown,
            "thinking": self.thinking,
            "decoding": {"max_new_tokens": self.tokens, "batch": self.batch},
            "options": self.options,
        }
        merged = {name: {**values, **_mapping(given, name)} for name, values in own.items()}
        return Spec.of({"prompt": self.prompt, **given, **merged, "task": self.name})


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"spec: {name} is {found!r}; want fields below it")
    return found
