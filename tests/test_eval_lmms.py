"""lmms-eval, where it is installed: its metric functions agree with ours, and its command runs our plug-in."""

from __future__ import annotations

import io
import json
import tomllib
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from random import Random
from typing import Any

import conversations
import numpy as np
import pytest
from PIL import Image

from omni.eval.item import Item
from omni.eval.scorers import named

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the many packages that it imports
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed", exc_type=ImportError)
datasets = pytest.importorskip("datasets", reason="needs the eval extra's datasets")

ANSWERS = ["EXIT", "exit sign", "the Exit", "14.5", "14", "50%", "0.5", "none", "page 12", "['a', 'b']", "3 pages", "",
           "Stop!", "don't", "two", "a+b", "12,345", "Not answerable"]  # fmt: skip


def got(rule: str, answer: str, truth: Any) -> float:
    return named(rule).rule(answer, Item(name="1", truth=truth)).got


@pytest.mark.parametrize("answer", ANSWERS)
def test_documents_are_marked_as_lmms_eval_marks_them(answer: str) -> None:
    from lmms_eval.api.metrics import anls
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mmlongbench_doc.utils import _score_answer
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    for truth in ("exit", "14", "0.5", "Exit sign"):
        assert got("anls", answer, [truth]) == pytest.approx(anls([truth], [answer])["anls"])
        assert got("relaxed", answer, truth) == relaxed_correctness(answer, truth)
        people = [truth] * 2 + ["exit"] * 3 + ["stop"] * 3 + ["2", "dont"]
        doc = {"answers": list(people), "question_id": 1}
        assert got("vqa", answer, people) == pytest.approx(textvqa_process_results(doc, [answer])["exact_match"])
    for truth, form in (("3", "Int"), ("0.5", "Float"), ("page 12", "Str"), ("exit", "Str"), ("['a', 'b']", "List"),
                        ("Not answerable", "None")):  # fmt: skip
        ours = got("long documents", answer, {"answer": truth, "format": form})
        assert ours == pytest.approx(_score_answer(truth, answer, form)), (truth, form)


@pytest.mark.parametrize("answer", ANSWERS)
def test_text_in_pictures_is_marked_as_lmms_eval_marks_it(answer: str) -> None:
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
    from lmms_eval.tasks.ocrbench_v2 import vqa_metric

    for truth in ("exit", "14", "a + b", "one two three four five six"):
        for kind in ("IIIT5K", "HME100k"):
            doc = {"answer": [truth], "dataset": kind, "question_type": "x"}
            theirs = ocrbench_process_results(doc, [answer])["ocrbench_accuracy"]["score"]
            assert got("ocrbench", answer, {"answers": [truth], "dataset": kind}) == theirs
        pairs = (("reasoning VQA en", vqa_metric.vqa_evaluation), ("cognition VQA cn", vqa_metric.cn_vqa_evaluation),
                 ("formula recognition en", vqa_metric.math_expression_evaluation))  # fmt: skip
        for kind, theirs in pairs:
            assert got("ocrbench v2", answer, {"type": kind, "answers": [truth]}) == theirs(answer, [truth])
    for how in ("exact match", "regression"):
        told = {"type": "text counting en", "answers": ["14"], "eval": how}
        theirs = vqa_metric.counting_evaluation(answer, ["14"], how)
        assert got("ocrbench v2", answer, told) == pytest.approx(theirs)


LINES = ("# Bill", "## To *us*", "", "a b", "5 %", "**", "- one _two_", "<bos>")
CELLS = ("<td>a</td>", "<td colspan=2>b c</td>", "<th>d</th>", "<td><b>a</b> x</td>")
FIELDS = ({"a": "1", "b": "Foo bar"}, {"a": "2.5 $"}, {"b": "foo BAR", "c": "x"})


@pytest.mark.parametrize("seed", range(20))
def test_long_answers_are_marked_as_lmms_eval_marks_them(seed: int) -> None:
    module = "lmms_eval.tasks.ocrbench_v2.TEDS_metric"
    theirs = pytest.importorskip(module, reason="lmms-eval's own extras are not installed", exc_type=ImportError)
    pick, teds = Random(seed), theirs.TEDS()

    def v2(kind: str, answer: str, truth: str, **more: str) -> float:
        return got("ocrbench v2", answer, {"type": kind, "answers": [truth], **more})

    pages = ["\n".join(pick.choices(LINES, k=pick.randint(1, 6))) for _ in range(2)]
    assert v2("document parsing en", *pages) == pytest.approx(theirs.doc_parsing_evaluation(*pages))
    tables = ["<table>" + "".join(f"<tr>{''.join(pick.choices(CELLS, k=2))}</tr>" for _ in range(2)) for _ in range(2)]
    wanted = teds.evaluate(*map(theirs.wrap_html_table, tables))
    assert v2("table parsing en", *tables, form="html") == pytest.approx(wanted)
    rows = ["\n".join(f"|{pick.choice(LINES)}| x|" for _ in range(pick.randint(1, 4))) for _ in range(2)]
    wanted = teds.evaluate(*map(theirs.convert_markdown_table_to_html, rows))
    assert v2("table parsing en", *rows, form="markdown") == pytest.approx(wanted)
    said, truth = pick.choice(FIELDS), json.dumps(pick.choice(FIELDS))
    wanted = teds.evaluate(theirs.dict_to_html(said), theirs.dict_to_html(json.loads(truth)))
    assert v2("chart parsing en", f"x = {said}", truth) == pytest.approx(wanted)
    for text in (repr(said), json.dumps(said), "\n".join(f"{name}: {value}" for name, value in said.items())):
        wanted = theirs.compute_f1_score(theirs.convert_str_to_dict(text), json.loads(truth))
        assert v2("key information extraction en", text, truth) == pytest.approx(wanted)


def png(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


TASK = """
task: colours
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.visual
doc_to_text: !function colours.text
doc_to_messages: !function colours.messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3, temperature: 0, do_sample: false}}
process_results: !function colours.results
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
FUNCTIONS = """
import numpy as np
def visual(doc): return [doc["image"].convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def messages(doc, lmms_eval_specific_kwargs=None):
    sound = {{"array": np.zeros(8000, np.float32), "sampling_rate": 16000}}
    parts = [{{"type": "image", "url": visual(doc)[0]}}, {{"type": "audio", "url": sound}},
             {{"type": "video", "url": {film!r}}}, {{"type": "text", "text": text(doc)}}]
    return [{{"role": "user", "content": parts}}]
def results(doc, results):
    open({seen!r}, "a").write(repr(results[0]) + chr(10))
    return {{"right": float(doc["answer"] in results[0])}}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    conversations.MODEL.save_pretrained(path)
    conversations.TOKENIZER.save_pretrained(path)
    return path


def test_the_plug_in_is_found_by_its_entry_point() -> None:
    from lmms_eval.models import MODEL_REGISTRY_V2 as registry

    points = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    (manifest,) = [EntryPoint(name, value, "lmms_eval.models").load() for name, value in points.items()]
    registry.register_manifest(manifest, overwrite=True)
    assert registry.get_model_class("omni").__name__ == "OmniChat"


def test_a_task_on_local_data_runs_end_to_end(tmp_path: Path, checkpoint: Path) -> None:
    import made_clips
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2 as registry
    from lmms_eval.tasks import TaskManager

    from omni.eval.lmms_entry import MANIFEST

    registry.register_manifest(MANIFEST, overwrite=True)
    rows = [{"image": png(c), "question": f"Which colour, {c}?", "answer": c} for c in ("red", "blue", "green")]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "test.parquet")
    film = made_clips.clip(tmp_path / "clip.mp4", sound="aac")
    (tmp_path / "colours.yaml").write_text(TASK.format(data=tmp_path / "test.parquet"))
    (tmp_path / "colours.py").write_text(FUNCTIONS.format(seen=str(tmp_path / "seen.txt"), film=str(film)))
    found = simple_evaluate(
        model="omni",
        model_args=f"pretrained={checkpoint},max_num_frames=4,evs=0.5",
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found["results"]["colours"]["right,none"] in (0.0, 1 / 3, 2 / 3, 1.0)
    assert len((tmp_path / "seen.txt").read_text().splitlines()) == 3
    assert json.dumps([s["filtered_resps"] for s in found["samples"]["colours"]])


def test_a_batch_is_answered_as_each_alone(checkpoint: Path) -> None:
    from omni.eval.lmms import OmniChat

    class Request:
        def __init__(self, number: int, kwargs: dict[str, Any]) -> None:
            self.args = ("", messages, kwargs, number, "t", "test")

    def messages(number: int) -> list[dict[str, Any]]:
        frames = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        parts = [{"type": "image", "url": Image.fromarray(frames)}, {"type": "text", "text": f"What {number}?"}]
        return [{"role": "user", "content": parts}]

    asked = [Request(i, {"max_new_tokens": 3 + i % 2, "until": ["\n\n"]}) for i in range(4)]
    answers = []
    for size in (1, 3):
        model = OmniChat(str(checkpoint), batch_size=size)
        model.task_dict = {"t": {"test": [0, 1, 2, 3]}}
        answers.append([each.text for each in model.generate_until(asked)])
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="model_args colour are unknown"):
        OmniChat(str(checkpoint), colour=1)
    with pytest.raises(ValueError, match="take the task's variant"):
        model.loglikelihood([])
