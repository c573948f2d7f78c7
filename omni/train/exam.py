"""The exam: held-out pages, clips, voices and sums, asked as a user asks; every answer is written, then marked.

Seeds, fonts and voices are none that training sees. Each skill gets its share of right answers (or its error rate)
with a 95 % interval; the model card's table is this, and a slow test asks it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

from omni.answer import Result
from omni.generate import Stream
from omni.interval import difference, interval
from omni.load import OmniProcessor
from omni.model import OmniModel, Prune
from omni.train import mixture
from omni.train.data import texts
from omni.train.data.example import Example, Film, Medium, Picture, Recording
from omni.train.data.page import CLEAR
from omni.train.data.sounds import Voice
from omni.train.marks import edits, exact, near, word_edits
from processors.batch import Batch
from token_reduction import random_dropping

Marks = list[tuple[float, float]]  # what was got of what could be got, one a question
Mark = Callable[[str, str], tuple[float, float]]  # (answer, truth) → the same of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A skill's result: share of right answers (or errors over length), its 95 % interval, the questions asked."""

    skill: str
    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A part of the exam.

    maker: of mixture.makers; only turns of `skill` count where it is named. rate: of the clips' tokens that are
    pruned, by `prune` (None: the model's own way).
    """

    name: str
    maker: str
    mark: Mark
    skill: str = ""
    examples: int = 100
    thinking: bool = False
    rate: float = 0.0
    prune: Prune | None = None
    longest: int = 96


PAPERS = (
    Paper(name="document questions", maker="document", mark=exact, examples=120),
    Paper(name="questions on pages", maker="pages", mark=exact, examples=60),
    Paper(name="page transcription, character errors", maker="transcription", mark=edits, examples=60, longest=400),
    Paper(name="chart questions", maker="chart", mark=exact, examples=80),
    Paper(name="video questions", maker="video", skill="video", mark=exact, examples=120),
    Paper(name="time of an event, within one tubelet", maker="time", mark=near, examples=120),
    Paper(name="speech, word errors", maker="speech", mark=word_edits, examples=100),
    Paper(name="sound questions", maker="sounds", mark=exact, examples=60),
    Paper(name="sound and video questions", maker="sound and video", mark=exact, examples=80),
    Paper(name="video, half the tokens pruned", maker="video", skill="video", mark=exact, examples=120, rate=0.5),
    Paper(name="video, three quarters pruned", maker="video", skill="video", mark=exact, examples=120, rate=0.75),
    Paper(
        name="video, three quarters dropped at random", maker="video", skill="video", mark=exact, examples=120,
        rate=0.75, prune=random_dropping,
    ),
    Paper(name="sums, thinking off", maker="sums", mark=exact, examples=150),
    Paper(name="sums, thinking on", maker="sums", mark=exact, examples=150, thinking=True, longest=160),
)  # fmt: skip
COMPARED = (  # (name, paper before, paper after): the same questions, so the differences are of pairs
    ("half the clips' tokens pruned, against all kept", "video questions", "video, half the tokens pruned"),
    (
        "EVS against random dropping, three quarters", "video, three quarters dropped at random",
        "video, three quarters pruned",
    ),
    ("sums with thinking on, against off", "sums, thinking off", "sums, thinking on"),
)  # fmt: skip


def parts_of(media: Sequence[Medium], rate: float = 0.0) -> list[dict[str, object]]:
    """Media as the parts of a message that a user would send."""
    parts: list[dict[str, object]] = []
    for place, medium in enumerate(media):
        match medium:
            case Picture():
                if medium.label:
                    parts.append({"type": "text", "text": ("\n" if place else "") + medium.label})
                parts.append({"type": "image", "image": medium.image})
            case Recording():
                parts.append({"type": "audio", "audio": medium.samples, "rate": 16000})
            case Film():
                clip = {"frames": list(medium.frames), "times": list(medium.times), "pruning_rate": rate}
                parts.append({"type": "video", **clip})
                parts += parts_of([medium.sound]) if medium.sound is not None else []
    return parts


def ask(
    model: OmniModel,
    processor: OmniProcessor,
    asked: Sequence[tuple[Example, int]],
    *,
    thinking: bool = False,
    rate: float = 0.0,
    longest: int = 96,
    together: int = 16,
) -> list[Result]:
    """Answers to questions, each (example, turn) asked by itself with the example's media, greedily."""
    answers: list[Result] = []
    for start in range(0, len(asked), together):
        batches = []
        for example, turn in asked[start : start + together]:
            question = {"type": "text", "text": example.turns[turn].question}
            messages = [{"role": "user", "content": [*parts_of(example.media, rate), question]}]
            batches.append(processor(messages, enable_thinking=thinking))
        results = model.generate(Batch.pack(batches), max_new_tokens=longest)
        assert not isinstance(results, Stream)
        answers += results if isinstance(results, list) else [results]
    return answers


def questions(voice: Voice, paper: Paper, seed: int = 1) -> list[tuple[Example, int]]:
    """What a paper asks, each as (example, turn); the same from the same seed."""
    made = mixture.makers(voice, held_out=True, turns=2, how=CLEAR)
    made["sums"] = lambda rng: texts.sums(rng, thinking=paper.thinking)
    rng = Random(f"exam {seed} {paper.maker}")
    examples = [made[paper.maker](rng) for _ in range(paper.examples)]
    return [
        (example, index)
        for example in examples
        for index, turn in enumerate(example.turns)
        if not paper.skill or (turn.skill or example.skill) == paper.skill
    ]


def marks_of(model: OmniModel, processor: OmniProcessor, voice: Voice, paper: Paper, seed: int = 1) -> Marks:
    """One paper asked and marked."""
    asked, own = questions(voice, paper, seed), model.prune
    try:
        model.prune = paper.prune or own
        answers = ask(model, processor, asked, thinking=paper.thinking, rate=paper.rate, longest=paper.longest)
    finally:
        model.prune = own
    return [
        paper.mark(answer.text, example.turns[turn].answer)
        for answer, (example, turn) in zip(answers, asked, strict=True)
    ]


def score(name: str, marks: Marks, seed: int = 1) -> Score:
    """The sum got over the sum to be got, with a bootstrap interval over the questions."""
    value, low, high = interval(marks, seed)
    return Score(skill=name, value=value, low=low, high=high, questions=len(marks))


def differences(marks: Mapping[str, Marks], seed: int = 1) -> list[Score]:
    """Each of COMPARED whose papers are there: the second's share minus the first's."""
    found = list[Score]()
    for name, before, after in COMPARED:
        if before in marks and after in marks:
            value, low, high = difference(marks[before], marks[after], seed)
            found.append(Score(skill=name, value=value, low=low, high=high, questions=len(marks[after])))
    return found


def table(scores: Sequence[Score], *, signed: bool = False) -> str:
    """The scores as a Markdown table. signed: they are differences."""
    form, named = ("+.1%", "difference | points") if signed else (".1%", "skill | result")
    rows = [f"| {s.skill} | {s.value:{form}} | {s.low:{form}} to {s.high:{form}} | {s.questions} |" for s in scores]
    return "\n".join([f"| {named} | 95 % interval | questions |", "|---|---|---|---|", *rows])


def record(scores: Sequence[Score]) -> list[dict[str, object]]:
    """The scores as plain values."""
    return [asdict(each) for each in scores]
