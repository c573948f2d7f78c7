"""Needles in haystacks of any length, after RULER (arXiv 2404.06654): values of keys, hidden among other sentences.

Source of the wording: RULER's NIAH tasks. Its essays are not shipped; `sentences` are made by this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from omni.eval.item import Item, Lazy
from omni.eval.spec import Spec
from omni.train.data import words as vocabulary

Kind = Literal["single", "keys", "values", "queries"]
Text = Literal["noise", "sentences", "needles"]
Form = Literal["ruler", "plain"]
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ABOUT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n{text}\nWhat is the special magic number for {keys} mentioned in the provided text?"
)
ABOUT_ALL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards.\n{text}\nWhat are all the special magic numbers for {keys} mentioned in the provided text?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Haystack:
    """kind: single needle; keys: others of the same form beside it; values: several of one key; queries: several keys.

    words: of the text, about; count: needles (of kind keys: those beside it). form: RULER's wording, or "Key: value".
    """

    kind: Kind
    text: Text
    form: Form
    words: int
    count: int

    def item(self, name: str, rng: Random, depth: float) -> Item:
        """One question; of a single needle, `depth` (0 to 1) says where in the text it lies."""
        keys, wanted, beside = self._needles(rng)
        hidden = [self._line(key, value) for key, value in wanted + beside]
        lines = self._straw(rng, self.words - sum(len(line.split()) for line in hidden), {*keys})
        places = sorted(rng.sample(range(len(lines) + len(hidden)), len(hidden)))
        if len(hidden) == 1:
            places = [round(depth * len(lines))]
        rng.shuffle(hidden)
        for place, line in zip(places, hidden, strict=True):
            lines.insert(place, line)
        return Item(
            name=name,
            fields={"question": self._question(lines, keys)},
            truth=[value for _, value in wanted],
            groups={"depth": f"{depth:.2f}"} if len(hidden) == 1 else {},
        )

    def _needles(self, rng: Random) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]:
        """Keys asked for, their needles, and needles beside them."""
        count = 1 if self.kind == "single" else self.count
        keys = _keys(rng, count + (self.kind == "keys"))
        values = [str(value) for value in rng.sample(range(1_000_000, 10_000_000), len(keys))]
        pairs = list(zip(keys, values, strict=True))
        if self.kind == "keys":
            return keys[:1], pairs[:1], pairs[1:]
        if self.kind == "values":
            return keys[:1], [(keys[0], value) for value in values], []
        return keys, pairs, []

    def _line(self, key: str, value: str) -> str:
        return f"{key}: {value}" if self.form == "plain" else f"One of the special magic numbers for {key} is: {value}."

    def _straw(self, rng: Random, count: int, taken: set[str]) -> list[str]:
        """Lines of about so many words in all."""
        lines, written = list[str](), 0
        while written < count:
            if self.text == "needles":
                (key,) = _keys(rng, 1)
                line = "" if key in taken else self._line(key, str(rng.randrange(1_000_000, 10_000_000)))
            else:
                line = NOISE if self.text == "noise" else vocabulary.sentence(rng)
            lines += [line] if line else []
            written += len(line.split())
        return lines

    def _question(self, lines: Sequence[str], keys: Sequence[str]) -> str:
        text = "\n".join(lines)
        if self.form == "plain":
            return f"{text}\n\nWhat is {' and '.join(keys)}?"
        named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
        return (ABOUT if self.kind in ("single", "keys") else ABOUT_ALL).format(text=text, keys=named)


def _keys(rng: Random, count: int) -> list[str]:
    """Different keys of two words, as RULER has them."""
    found = dict[str, None]()
    while len(found) < count:
        found[f"{rng.choice(vocabulary.ADJECTIVES)}-{rng.choice(vocabulary.NOUNS)}"] = None
    return list(found)


def needles(spec: Spec) -> Lazy:
    """Items of a haystack, the same from the same seed. Raises ValueError for options out of range."""
    options = dict(spec.options)
    for name, known in (("kind", get_args(Kind)), ("text", get_args(Text)), ("form", get_args(Form))):
        if options[name] not in known:
            raise ValueError(f"spec: options.{name} is {options[name]!r}; want one of {', '.join(known)}")
    count = options.pop("items")
    if min(count, options["words"], options["count"]) < 1:
        raise ValueError("spec: options.items, words and count want 1 or more")
    haystack = Haystack(**options)

    def make(index: int, _: int) -> Item:
        rng = Random(f"needles {spec.seed} {index}")
        return haystack.item(str(index), rng, index / max(1, count - 1))

    return Lazy(range(count), make)
