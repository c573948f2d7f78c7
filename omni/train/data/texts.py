"""Text without media: copying, look-up, counting, small sums; sums can be thought through digit by digit."""

from __future__ import annotations

from random import Random

from omni.train.data import words
from omni.train.data.documents import spelled
from omni.train.data.example import Example, Turn

STRINGS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-"


def _item(rng: Random) -> str:
    return rng.choice((words.code, words.invented, words.person, lambda r: r.choice(words.NOUNS), words.date))(rng)


def copying(rng: Random) -> Example:
    """Repeat a text, forwards or one part of it."""
    parts = [_item(rng) for _ in range(rng.randint(1, 6))]
    text = ", ".join(parts)
    turns = [Turn(question=f"{rng.choice(('Repeat', 'Copy', 'Say again'))}: {text}", answer=text)]
    if len(parts) > 2:
        index = rng.randrange(len(parts) - 1)
        turns.append(Turn(question=f"What comes after {parts[index]}?", answer=parts[index + 1]))
        turns.append(Turn(question="What comes first?", answer=parts[0]))
        turns.append(Turn(question="What comes last?", answer=parts[-1]))
        turns.append(Turn(question="How many are there?", answer=str(len(parts))))
    return Example(skill="copying", turns=(turns[0], *rng.sample(turns[1:], min(2, len(turns) - 1))))


def strings(rng: Random) -> Example:
    """Repeat characters at random: nothing but copying helps."""
    text = "".join(rng.choice(STRINGS) for _ in range(rng.randint(4, 30)))
    return Example(skill="strings", turns=(Turn(question=f"Repeat: {text}", answer=text),))


def lookup(rng: Random) -> Example:
    """Keys with values in the prompt, and questions for them: in one line, line by line, or as a table."""
    keys = rng.sample(rng.choice((words.KEYS, words.FIRST, words.GOODS, words.CITIES)), rng.randint(3, 10))
    if rng.random() < 0.3:
        keys = [words.invented(rng) for _ in keys]
    pairs = {key: spelled(rng.randint(50, 9999)) if rng.random() < 0.4 else _item(rng) for key in keys}
    mark, joint = rng.choice(((": ", "\n"), (" ", "\n"), (" is ", ". "), (" = ", ", "), ("  ", "\n")))
    text = joint.join(f"{key}{mark}{value}" for key, value in pairs.items())
    asked = rng.sample(sorted(pairs), min(4, len(pairs)))
    turns = [
        Turn(question=rng.choice((f"What is {key}?", f"What is the {key}?", f"{key}?")), answer=pairs[key])
        for key in asked
    ]
    turns[0] = Turn(question=f"{text}\n\n{turns[0].question}", answer=turns[0].answer)
    return Example(skill="look-up", turns=tuple(turns))


def added(a: int, b: int) -> str:
    """How to add two numbers by hand: digit by digit from the right, with what is carried."""
    left, right = str(a)[::-1], str(b)[::-1]
    carry, lines = 0, []
    for index in range(max(len(left), len(right))):
        x = int(left[index]) if index < len(left) else 0
        y = int(right[index]) if index < len(right) else 0
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    if carry:
        lines.append(f"{carry}")
    return "\n".join(lines)


def sums(rng: Random, *, thinking: bool | None = None, digits: int = 3) -> Example:
    """Add two numbers of as many digits, up to `digits`, at once or thought through."""
    low = rng.randint(1, digits)
    a, b = (rng.randint(10 ** (low - 1), 10**low - 1) for _ in range(2))
    thinks = rng.random() < 0.5 if thinking is None else thinking
    question = rng.choice(("What is {} + {}?", "{} + {} = ?", "Add {} and {}.")).format(a, b)
    return Example(
        skill="sums", turns=(Turn(question=question, answer=str(a + b), thinking=added(a, b) if thinks else ""),)
    )
