"""lm-eval, where it is installed: likelihoods are the model's own, and its evaluator runs local tasks on it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import conversations
import pytest
import torch

from omni.eval.harness import flag, settings, together
from processors.batch import Batch

TEXTS = ("The cat sat on the mat.", "Two and two make four", "a", "It rained, and rained, and rained.")


def test_settings_of_a_harness_are_greedy_unless_it_samples() -> None:
    warm = {"temperature": 0.7, "top_p": 0.9, "until": ["\n", "Q:"]}
    assert settings(warm, 9) == {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9, "stop": ("\n", "Q:")}
    assert settings({**warm, "do_sample": False}, 9) == {"max_new_tokens": 9, "stop": ("\n", "Q:")}
    assert settings({"do_sample": True}, 9)["temperature"] == 1.0
    assert settings({"max_gen_toks": 3, "until": "x"}, 9) == {"max_new_tokens": 3, "stop": ("x",)}
    assert settings({"until": None}, 9)["stop"] == ()


def test_a_switch_is_a_word_that_says_so() -> None:
    assert flag("think", "True")
    assert not flag("think", "no")
    with pytest.raises(ValueError, match="think 'on' came; want true or false"):
        flag("think", "on")


def test_requests_with_the_same_settings_go_together() -> None:
    kinds = [{"a": 1}, {"a": 2}, {"a": 1}, {"a": 1}]
    assert sorted(together(kinds, 2)) == [[0, 2], [1], [3]]


class Asked:
    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def plugin() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        pytest.importorskip("lm_eval.evaluator", reason="lm-eval is not installed", exc_type=ImportError)
        from omni.eval import lm_eval
    return lm_eval


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    conversations.MODEL.save_pretrained(path)
    conversations.TOKENIZER.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(plugin: Any, checkpoint: Path) -> Any:
    return plugin.OmniText(str(checkpoint), batch_size=3, max_length=8)


def chances(model: Any, before: list[int], ids: list[int]) -> tuple[float, bool]:
    """By the model's own forward, all of it at once."""
    whole = torch.tensor(before + ids)
    with torch.no_grad():
        out = model.model(Batch(tokens=whole, lengths=torch.tensor([len(whole)])))
    rows = out.logits.float().log_softmax(-1)[len(before) - 1 : -1]
    total = sum(float(row[token]) for row, token in zip(rows, ids, strict=True))
    return total, all(int(row.argmax()) == token for row, token in zip(rows, ids, strict=True))


def test_likelihoods_are_those_of_the_whole_forward_side_by_side_or_alone(model: Any) -> None:
    pairs = [(TEXTS[0], " It purred."), (TEXTS[1], ", and"), (TEXTS[3], " No."), ("", "Hello there"), ("So ", "it is")]
    found = model.loglikelihood([Asked(*pair) for pair in pairs])
    for (context, text), made in zip(pairs, found, strict=True):
        alone = model.loglikelihood([Asked(context, text)])[0]
        whole = model.tok_encode(context + text)
        cut = len(model.tok_encode(context.rstrip()))
        before = whole[:cut] if context else [model.prefix_token_id]
        assert made[0] == pytest.approx(alone[0], rel=1e-5)
        assert made == (pytest.approx(chances(model, before, whole[cut:])[0], rel=1e-5), alone[1])


def test_what_is_greedily_written_is_known_as_greedy(model: Any) -> None:
    ids = model.tok_encode(TEXTS[0])
    with torch.no_grad():
        out = model.model(Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)])))
    best = int(out.logits[-1].argmax())
    other = int(out.logits[-1].argmin())
    made = model._loglikelihood_tokens([(None, ids, [best]), (None, ids, [other])])
    assert [greedy for _, greedy in made] == [True, False]
    assert made[0][0] > made[1][0]


def test_a_rolling_likelihood_takes_every_token_once(model: Any, plugin: Any, checkpoint: Path) -> None:
    ids = model.tok_encode(TEXTS[3])
    assert len(ids) > model.max_length
    (found,) = model.loglikelihood_rolling([Asked(TEXTS[3])])
    wanted, done = chances(model, [model.prefix_token_id], ids[:8])[0], 8
    while done < len(ids):
        end = min(done + 8, len(ids))
        wanted += chances(model, ids[end - 9 : done], ids[done:end])[0]  # a window of 8 behind one more
        done = end
    assert found == pytest.approx(wanted, rel=1e-5)
    wide = plugin.OmniText(str(checkpoint), max_length=100)
    assert wide.loglikelihood_rolling([Asked(TEXTS[3])])[0] == pytest.approx(
        chances(model, [model.prefix_token_id], ids)[0], rel=1e-5
    )


def test_answers_are_those_of_each_alone(model: Any, plugin: Any, checkpoint: Path) -> None:
    asked = [Asked(text, {"max_gen_toks": 3 + i % 2, "until": ["\n\n"]}) for i, text in enumerate(TEXTS)]
    single = plugin.OmniText(str(checkpoint))
    assert model.generate_until(asked) == [single.generate_until([each])[0] for each in asked]
    with pytest.raises(ValueError, match="model_args colour are unknown"):
        plugin.OmniText(str(checkpoint), colour=1)
    with pytest.raises(ValueError, match="batch_size 'auto' came"):
        plugin.OmniText(str(checkpoint), batch_size="auto")


TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['red', 'blue']\n"
    "doc_to_target: '{{answer}}'\nmetric_list: [{metric: acc}]",
    "write": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {max_gen_toks: 3, until: ['.'], do_sample: false}\nmetric_list: [{metric: exact_match}]",
    "read": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity}]",
}


@pytest.mark.filterwarnings("ignore")
def test_local_tasks_run_end_to_end(tmp_path: Path, plugin: Any, checkpoint: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"Which colour has number {i}?", "answer": ("red", "blue")[i % 2]} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'test.jsonl'}}}}}\ntest_split: test\n"
    )
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}\n")
    found = simple_evaluate(
        model="omni",
        model_args={"pretrained": str(checkpoint)},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )
    assert found is not None
    results = found["results"]
    assert 0.0 <= results["choose"]["acc,none"] <= 1.0
    assert 0.0 <= results["write"]["exact_match,none"] <= 1.0
    assert results["read"]["word_perplexity,none"] > 1.0


@pytest.mark.filterwarnings("ignore")
def test_its_own_command_knows_the_model(plugin: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("omni").__name__ == "OmniText"
    monkeypatch.setattr("sys.argv", ["lm_eval", "run", "--help"])
    with pytest.raises(SystemExit) as stopped:
        plugin.main()
    assert stopped.value.code == 0
    assert "--model" in capsys.readouterr().out
