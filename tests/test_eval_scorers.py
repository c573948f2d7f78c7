"""Scorers give what the benchmarks' rules give, worked out by hand; they guess nothing and read no thinking."""

from __future__ import annotations

from typing import Any

import pytest

from omni.eval import extract, transcripts
from omni.eval.item import Item, Mark
from omni.eval.scorers import SCORERS, named
from omni.eval.scorers_documents import f1
from omni.eval.scorers_ocr import ABILITIES, RULES, abilities
from omni.eval.vqa_words import plain

FOUR = ("a dog", "a cat", "red", "dark red")
PEOPLE = ["stop"] * 4 + ["stop sign"] * 2 + ["halt"] + ["no"] * 3
BOX = {"box": [0.2, 0.4, 0.4, 0.6], "size": [1.0, 1.0]}


def number(value: Any, form: str) -> dict[str, Any]:
    return {"answer": value, "format": form}


def v2(kind: str, *answers: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, "answers": list(answers), **more}


def v2_words(*texts: str) -> dict[str, Any]:
    """Words side by side, each 10 wide in 20."""
    boxes = [[20 * i, 0, 20 * i + 10, 0, 20 * i + 10, 10, 20 * i, 10] for i in range(len(texts))]
    return v2("text spotting en", content=list(texts), boxes=boxes)


HTML = "<table><tr><td>a</td><td>bcde</td></tr></table>"
LINES = "| a | b |\n|---|---|\n| c | d |"
SIXTH = "a b c d e"
V2_LONG: list[tuple[dict[str, Any], str, float]] = [  # of OCRBench v2
    (v2("table parsing en", HTML, form="html"), f"Here:\n```html\n{HTML}\n```", 1.0),
    (v2("table parsing en", HTML, form="html"), HTML.replace("e<", "x<"), 1 - 0.25 / 3),  # a quarter of a cell, 3 nodes
    (
        v2("table parsing en", HTML, form="html"),
        "<table><tr><td colspan=2>a",
        1 - 2 / 3,
    ),  # a cell of two is another cell
    (v2("table parsing cn", HTML, form="html"), HTML.replace("td", "th"), 1 - 2 / 3),
    (
        v2("table parsing en", HTML, form="html"),
        HTML.replace("a<", "<b>a</b><"),
        1 - (2 / 3) / 4,
    ),  # tags are characters
    (v2("table parsing en", LINES, form="markdown"), f"```markdown\n{LINES}\n```", 1.0),
    (v2("table parsing en", LINES, form="markdown"), "| a | b |\n|---|---|", 1 - 3 / 6),  # a row of two cells
    (v2("chart parsing en", '{"a": "12", "b": {"c": 1}}'), "data = {'a': '12', 'b': {'c': 1}}  # so", 1.0),
    (v2("chart parsing en", '{"a": "12"}'), "```python\n{'a': 13}\n```", 1 - (1 / 3) / 3),  # "1 2" and "1 3"
    (v2("document parsing en", "# A\nx\ny"), "# other words\nx", 1 - 1 / 5),  # root, title, a heading, two lines
    (v2("document parsing cn", "x\n\ny"), "x\ny\n**", 1 - 2 / 5),  # a line without words is not like any other
    (v2_words("Exit", "Stop!"), '[(0, 0, 10, 10, "EXIT"), (20, 0, 30, 10, "Stop")]', 1.0),
    (v2_words("Exit", "###"), "so [0, 0, 10, 10, exit] (20, 0, 30, 9, 'x') (80, 0, 90, 10, it)", 2 / 3),
    (v2_words("Exit"), "[[0, 0, 5, 10, 'exit'], [0, 0, 6, 10, 'exit'], [0, 0, 2000, 9, 'exit']]", 2 / 3),  # over a half
    (v2("full-page OCR en", SIXTH), "a b c d x", (0.2**0.25 + 0.8 * (1 - 0.5 / 4**3) + 0.8 + 8 / 9) / 4),
    (v2("full-page OCR en", SIXTH), SIXTH, (1 + (1 - 0.5 / 5**3) + 1 + 1) / 4),
    (v2("full-page OCR en", "a b"), "c d", (0 + 0 + 0 + 1 / 3) / 4),
    (v2("full-page OCR cn", "\u6211\u7231\u5317\u4eac"), "\u6211\u7231\u5317\u4eac", (0 + (1 - 0.5 / 3**3) + 2) / 4),
    (v2("fine-grained text recognition en", "walks"), "walking", (0 + 0.5 + 0 + 4 / 7) / 4),  # METEOR knows its stem
    (v2("text translation cn", "a b c d e"), SIXTH, (1 + (1 - 0.5 / 5**3) + 1 + 1) / 4),
    (v2("text translation cn", ""), "x", 0.0),
    (v2("handwritten answer extraction cn", "ABC"), "so A, B, C", 1.0),
    (v2("handwritten answer extraction cn", "ABC"), "A and B and C", 0.0),
    (v2("handwritten answer extraction cn", SIXTH, form="prose"), SIXTH, (1 + (1 - 0.5 / 5**3) + 1 + 1) / 4),
    (v2("formula recognition cn", "x=\\text{\u957f}"), "x = \u957f", 1.0),
    (v2("formula recognition en", "x=\\text{a}"), "x = a", 0.0),
]
WORTH: list[tuple[str, Any, str, float]] = [
    ("choice", "B", "B", 1.0),
    ("choice", "B", "(b)", 1.0),
    ("choice", "B", "The answer is B, not option A.", 1.0),
    ("choice", "B", "Answer: A cat", 1.0),  # the article is no letter
    ("choice", "D", "It is dark red.", 1.0),  # the longer option's words hold the shorter one's
    ("choice", "C", "\\boxed{C}", 1.0),
    ("choice", "A", "A. a dog", 1.0),
    ("choice", "A", "First B looks right. But the answer is: **A**", 1.0),
    ("choice", "A", "B", 0.0),
    ("numeric", "He has 3 left.\n#### 18", "3 and 15 make 18.", 1.0),
    ("numeric", "#### 1,234", "#### 1234.00\nso 7 of them", 1.0),
    ("numeric", "#### 18", "$18.50", 0.0),
    ("click", BOX, "0.3, 0.5", 1.0),
    ("click", BOX, "click(x=0.2, y=0.6)", 1.0),  # the edge is within
    ("click", BOX, "[0.1, 0.3, 0.3, 0.5]", 1.0),  # the middle of a box: 0.2, 0.4
    ("click", BOX, "0.5, 0.5", 0.0),
    ("click", {"box": [0.2, 0.4, 0.4, 0.6], "size": [1000, 1000]}, "(300, 500)", 1.0),
    ("needles", ["7261", "9944"], "They are 7261 and 1.", 0.5),
    ("anls", ["Hello World"], "hello  world", 1.0),
    ("anls", ["abcd", "wxyz"], "abcx", 0.75),
    ("anls", ["abcd"], "abxy", 0.5),  # just a half counts
    ("anls", ["abcd"], "axyz", 0.0),
    ("long documents", {"answer": "abcd", "format": "Str"}, "abxy", 0.0),  # here it does not
    ("relaxed", "100", "104.9", 1.0),
    ("relaxed", "100", "105.1", 0.0),
    ("relaxed", "0.5", "50%", 1.0),
    ("relaxed", "Red", "red", 1.0),
    ("relaxed", "0", "0", 1.0),
    ("vqa", PEOPLE, "Stop!", 1.0),
    ("vqa", PEOPLE, "halt", 9 * (1 / 3) / 10),  # whoever said it has nobody else who did
    ("vqa", PEOPLE, "stop sign", (8 * (2 / 3) + 2 * (1 / 3)) / 10),
    ("vqa", ["2"] * 10, "Two", 1.0),
    ("ocrbench", {"answers": ["Caf\uff45"], "dataset": "x"}, "It says CAFE.", 1.0),
    ("ocrbench", {"answers": ["x ^ 2"], "dataset": "HME100k"}, "so x^2", 1.0),
    ("ocrbench", {"answers": ["x ^ 2"], "dataset": "HME100k"}, "so X^2", 0.0),
    ("ocrbench v2", v2("text recognition en", "Exit"), "the sign: EXIT", 1.0),
    ("ocrbench v2", v2("reasoning VQA en", "Exit", eval="case sensitive"), "EXIT", 0.0),
    ("ocrbench v2", v2("science QA en", "B", eval="multiple choice"), "(B)", 1.0),
    ("ocrbench v2", v2("cognition VQA en", "one two three four five"), "one two three four fivx", 22 / 23),
    ("ocrbench v2", v2("text counting en", "10", eval="regression"), "about 8", 0.8),
    ("ocrbench v2", v2("text counting en", "10", eval="regression"), "about 5", 0.0),
    ("ocrbench v2", v2("text counting en", "10", eval="exact match"), "10 words", 1.0),
    ("ocrbench v2", v2("formula recognition en", "a + b"), "it is a+b", 1.0),
    ("ocrbench v2", v2("text grounding en", 0, 0, 10, 10), "[5, 0, 15, 10]", 50 / 150),
    ("ocrbench v2", v2("cognition VQA cn", "\u7ea2 \u8272"), "\u7ea2\u8272\u7684", 1.0),
    (
        "ocrbench v2",
        v2("VQA with position en", "cat", bbox=[0, 0, 10, 10]),
        '{"answer": "a cat", "bbox": [0, 0, 10, 5]}',
        0.5 + 0.25,
    ),
    (
        "ocrbench v2",
        v2("key information extraction en", '{"total": ["5.00", "$5.00"], "date": "1 May"}'),
        '```json\n{"total": "$5.00", "date": "2 May", "shop": "x"}\n```',
        1 / 3,
    ),
    ("ocrbench v2", v2("key information extraction cn", "{'a': '1', 'b': '2'}"), "A: 1\na: 1, b = 3", 1 / 3),
    ("ocrbench v2", v2("VQA with position en", "cat", bbox=[0, 0, 10, 10]), "{'bbox': [0.9, 0.0, 10.0, 5.0]}", 0.25),
    ("long documents", number("12", "Int"), "12 pages", 1.0),
    ("long documents", number("0.25", "Float"), "25%", 1.0),
    ("long documents", number("3.5", "Float"), "3.53", 1.0),
    ("long documents", number("3.5", "Float"), "3.6", 0.0),
    ("long documents", number("Paris (France)", "Str"), "paris", 1.0),
    ("long documents", number("page 12", "Str"), "page 13", 0.0),  # letter by letter
    ("long documents", number("['b', 'abcd']", "List"), "abcx, b", 0.75),
    ("long documents", number("['1', '2']", "List"), "['2', '3']", 0.0),
    ("long documents", number("['1', '2']", "List"), "['2', '1']", 1.0),
    ("long documents", number("Not answerable", "None"), "Not answerable", 1.0),
    ("exact", "12.50", " 12.50\n", 1.0),
    ("time", "3.00 seconds", "3.50 seconds", 1.0),
    ("plain character errors", "abc", "abd", 1.0),
    ("plain word errors", "one two three", "one three", 1.0),
    ("word errors", "Mr. Smith's colour is grey, okay?", "mister smith has color is gray ok", 2.0),
    ("word errors", "I have twenty-five dollars", "i have $25", 0.0),
    *(("ocrbench v2", *case) for case in V2_LONG),
]


class Nobody:
    """A WordNet in which no word has a synonym but those that are told."""

    def __init__(self, *alike: str) -> None:
        self.alike = alike

    def synsets(self, word: str) -> list[Any]:
        return [self] if word in self.alike else []

    def lemmas(self) -> list[Any]:
        return [Lemma(word) for word in self.alike]


class Lemma:
    def __init__(self, word: str) -> None:
        self.name = lambda: word


class Absent:
    def ensure_loaded(self) -> None:
        raise LookupError


@pytest.fixture(autouse=True)
def _no_synonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "synonyms", Nobody)


def item(truth: Any) -> Item:
    return Item(name="1", truth=truth, options=FOUR)


@pytest.mark.parametrize(("rule", "truth", "answer", "got"), WORTH)
def test_an_answer_is_worth_what_the_rule_says(rule: str, truth: Any, answer: str, got: float) -> None:
    mark = named(rule).mark(answer, item(truth))
    assert mark.got == pytest.approx(got)
    assert mark.extracted is not None


UNREADABLE = {
    "choice": "I think A bird, or B",
    "numeric": "no idea",
    "click": "in the corner",
    "needles": "none",
    "time": "soon",
}
TRUTHS = {rule: truth for rule, truth, _, _ in reversed(WORTH)}
RIGHT = {rule: answer for rule, _, answer, _ in reversed(WORTH)}


def test_each_rule_has_a_case_of_every_kind() -> None:
    assert TRUTHS.keys() == SCORERS.keys()


@pytest.mark.parametrize("rule", SCORERS)
def test_what_cannot_be_read_is_a_failure_and_gets_nothing(rule: str) -> None:
    scorer, asked = named(rule), item(TRUTHS[rule])
    for answer in ("", "  \n", UNREADABLE.get(rule, "")):
        mark = scorer.mark(answer, asked)
        assert mark.extracted is None
        assert mark.got == (mark.most if scorer.errors else 0.0)


V2_TRUTHS = {case[1]["type"]: case[1] for case in reversed(WORTH) if case[0] == "ocrbench v2"}
V2_TRUTHS |= {kind: v2(kind, "exit") for kind in RULES if kind not in V2_TRUTHS}
V2_TRUTHS["key information mapping en"] = v2("key information mapping en", '{"a": "1"}')


def test_all_types_of_ocrbench_v2_have_a_rule_and_an_ability() -> None:
    assert RULES.keys() == ABILITIES.keys()
    assert len(RULES) == 30


@pytest.mark.parametrize("kind", RULES)
def test_no_type_of_ocrbench_v2_marks_what_is_not_said(kind: str) -> None:
    for answer in ("", " \n", "<think>exit {'a': '1'} (0, 0, 10, 10, 'Exit') <table>", "<think>x</think> "):
        mark = named("ocrbench v2").mark(answer, item(V2_TRUTHS[kind]))
        assert (mark.extracted, mark.got, mark.notes) == (None, 0.0, {"type": kind})


@pytest.mark.parametrize(("truth", "answer", "got"), V2_LONG)
def test_no_type_of_ocrbench_v2_reads_thinking(truth: dict[str, Any], answer: str, got: float) -> None:
    mark = named("ocrbench v2").mark(
        f"<think>\n{HTML} {LINES} (0, 0, 9, 9, 'no') {{'a': 5}}\n</think>{answer}", item(truth)
    )
    assert mark.got == pytest.approx(got)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (v2("text grounding en", 0, 0, 1, 1), "top left"),
        (v2("VQA with position en", "1", bbox=[0, 0, 1, 1]), "a cat"),
        (v2("text counting en", "1", eval="regression"), "many"),
        (v2("science QA en", "1", eval="multiple choice"), "42"),
        (v2("key information extraction en", "1"), "total 5"),
        (v2("table parsing en", HTML, form="html"), LINES),
        (v2("table parsing en", HTML, form="html"), "<table><tr><td colspan=many>a</td></tr></table>"),
        (v2("table parsing en", LINES, form="markdown"), "a, b\nc, d"),
        (v2("chart parsing en", '{"a": 1}'), "a is 1"),
        (v2("chart parsing en", '{"a": 1}'), "{'a': "),
        (v2_words("Exit"), "Exit (0, 0)"),
        (v2_words("Exit"), "(0, 0, 2000, 10, Exit)"),
    ],
)
def test_types_of_ocrbench_v2_that_want_a_form_fail_without_it(truth: dict[str, Any], answer: str) -> None:
    mark = named("ocrbench v2").mark(answer, item(truth))
    assert (mark.extracted, mark.got) == (None, 0.0)


def test_a_translation_without_truth_does_not_count() -> None:
    assert named("ocrbench v2").mark("x", item(v2("text translation cn", ""))).most == 0.0


def test_meteor_knows_synonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    before = transcripts.nearness("a b c d auto", "a b c d car")
    monkeypatch.setattr(transcripts, "synonyms", lambda: Nobody("auto", "car"))
    meteor = (1 - 0.5 / 5**3) - 0.8 * (1 - 0.5 / 4**3)  # five words of five, not four
    assert transcripts.nearness("a b c d auto", "a b c d car") - before == pytest.approx(meteor / 4)


def test_without_wordnet_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    corpus = pytest.importorskip("nltk.corpus")
    monkeypatch.setattr(corpus, "wordnet", Absent())
    transcripts.synonyms.cache_clear()
    with pytest.raises(ValueError, match=r"needs WordNet; python -m nltk\.downloader wordnet"):
        transcripts.synonyms()


def test_overall_figures_are_means_of_abilities() -> None:
    def mark(kind: str, got: float, most: float = 1.0) -> Mark:
        return Mark(extracted="x", got=got, most=most, notes={"type": kind})

    found = abilities([mark("text recognition en", 1.0), mark("full-page OCR en", 0.0), mark("text spotting en", 1.0),
                       mark("full-page OCR cn", 0.25), mark("text translation cn", 0.0, 0.0)])  # fmt: skip
    assert found == {"overall en": 0.75, "overall cn": 0.25, "recognition en": 0.5, "spotting en": 1.0,
                     "recognition cn": 0.25}  # fmt: skip


@pytest.mark.parametrize("rule", SCORERS)
def test_thinking_is_never_read(rule: str) -> None:
    scorer, asked, right = named(rule), item(TRUTHS[rule]), RIGHT[rule]
    plainly = scorer.mark(right, asked)
    assert scorer.mark(f"<think>\nB? 7, (1, 1), no\n</think>\n{right}", asked) == plainly
    assert scorer.mark(f"B? 7, (1, 1), no\n</think>\n{right}", asked) == plainly  # the prompt opened it
    for unclosed in (f"<think>\n{right}", f"<think>x</think><think>{right}"):
        mark = scorer.mark(unclosed, asked)
        assert mark.extracted is None
        assert mark.got == (mark.most if scorer.errors else 0.0)


@pytest.mark.parametrize(
    "answer",
    ["A or B", "red or a cat", "Option A or option B", "(A) (B)", "E", "(E)", "I see it", "A", "abc", "a bird"],
)
def test_a_doubt_is_no_choice(answer: str) -> None:
    assert extract.letter(answer, FOUR) in ((None, "A") if answer == "A" else (None,))


def test_words_are_compared_as_vqas_evaluation_does() -> None:
    assert plain("The dog's  9 bones, ok?") == "dog 's 9 bones ok"
    assert plain("dont") == "don't"
    assert plain("u.s.a.") == "usa"
    assert plain("3.5 m") == "3.5 m"
    assert plain("yes/no") == "yes no"


def test_an_utterance_without_words_counts_nothing() -> None:
    mark = named("word errors").mark("hello there", item("hmm, uh"))
    assert (mark.got, mark.most) == (0.0, 0.0)


def test_f1_of_long_documents_parts_what_can_be_answered_from_what_was() -> None:
    rule = named("long documents")
    asked = [(number("12", "Int"), "12"), (number("7", "Int"), "not answerable"),
             (number("Not answerable", "None"), "not answerable"), (number("Not answerable", "None"), "7")]  # fmt: skip
    marks = [rule.mark(answer, item(truth)) for truth, answer in asked]
    assert [mark.got for mark in marks] == [1.0, 0.0, 1.0, 0.0]
    assert f1(marks) == {"f1": pytest.approx(0.5)}  # recall 1 of 2, precision 1 of 2


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="'guess' is unknown; want one of choice"):
        named("guess")
