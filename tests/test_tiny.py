"""The model in the box: small, readable by others, right about its samples, and as good as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import relative_error
from PIL import Image
from test_parity import loaded_there
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3

import omni
from demos.samples import SAMPLES
from omni.eval.tasks.own import voice
from omni.model import OmniModel
from omni.train.exam import PAPERS, Score, differences, marks_of, score, table
from omni.train.tokens import tokenizer
from processors.batch import Batch

TINY = Path(omni.__file__).parent / "tiny"
AT_LEAST = {
    "document questions": 0.75, "questions on pages": 0.65, "chart questions": 0.6, "video questions": 0.8,
    "time of an event, within one tubelet": 0.75, "sound and video questions": 0.7,
    "half the clips' tokens pruned, against all kept": -0.02,
}  # fmt: skip
AT_MOST = {"page transcription, character errors": 0.1, "speech, word errors": 0.25}
BETTER = ("EVS against random dropping, three quarters", "sums with thinking on, against off")  # beyond the interval


def told() -> dict[str, list[Score]]:
    """The exam's result as it lies beside the weights."""
    found = json.loads((TINY / "exam.json").read_text())
    return {name: [Score(**each) for each in found[name]] for name in ("scores", "differences")}


def passed(scores: list[Score]) -> None:
    """What the model in the box must know."""
    found = {each.skill: each for each in scores}
    for skill, least in AT_LEAST.items():
        assert found[skill].value >= least, found[skill]
    for skill, most in AT_MOST.items():
        assert found[skill].value <= most, found[skill]
    for skill in BETTER:
        assert found[skill].low > 0, found[skill]


def test_the_card_tells_the_exam_and_the_exam_was_passed() -> None:
    found, card = told(), (TINY / "README.md").read_text()
    assert table(found["scores"]) in card
    assert table(found["differences"], signed=True) in card
    passed([*found["scores"], *found["differences"]])


@pytest.mark.slow  # a quarter of an hour
@torch.no_grad()
def test_the_exam_sat_again_is_passed_again_and_agrees_with_the_card() -> None:
    """Rounding differs between processors, so each result lies in the told interval."""
    model, processor = omni.load("tiny")
    marks = {paper.name: marks_of(model, processor, voice(), paper) for paper in PAPERS}
    scores, before = [score(name, each) for name, each in marks.items()], told()
    for made, known in zip(scores, before["scores"], strict=True):
        assert made.skill == known.skill
        assert known.low <= made.value <= known.high, (made, known)
    passed([*scores, *differences(marks)])


def test_its_tokenizer_is_the_one_that_training_makes() -> None:
    """However strings are hashed: names of one length stand in one order."""
    assert json.loads(tokenizer().backend_tokenizer.to_str()) == json.loads((TINY / "tokenizer.json").read_text())


def test_it_stays_small() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 40e6
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_plan_foretells_the_memory_in_the_dtype_that_was_loaded(dtype: torch.dtype) -> None:
    model, processor = omni.load("tiny", dtype=dtype)
    messages = [{"role": "user", "content": "What is the total? " * 9}]
    state = model.new_state()
    model(processor(messages), state)
    assert processor.plan(messages).cache_bytes == sum(layer.nbytes for layer in state.layers if layer)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@torch.no_grad()
def test_transformers_loads_it_and_gives_the_same_logits() -> None:
    """For a text, a picture and a sound as the processor makes them."""
    _, processor = omni.load("tiny")
    reference = loaded_there(TINY, NemotronH_Omni_Reasoning_V3)
    model = OmniModel.from_pretrained(TINY, torch.float32)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is the total?"}]
    heard = [{"type": "audio", "audio": rng.normal(0, 0.1, 24000).astype(np.float32), "rate": 16000}, parts[1]]
    for content in (parts[1:], parts, heard):
        batch = processor([{"role": "user", "content": content}], enable_thinking=False)
        assert isinstance(batch, Batch)
        out, media = model(batch), batch.media
        theirs = {"input_ids": out.tokens[None]}
        if len(media.grids):
            theirs |= {"pixel_values": media.patches, "image_grid_hw": media.grids}
        if len(media.frames):
            mask = torch.ones(1, len(media.mels), dtype=torch.bool)
            theirs |= {"input_features": media.mels[None], "input_features_mask": mask}
        assert relative_error(out.logits, reference(**theirs).logits[0]) < 1e-4


def test_it_answers_its_samples() -> None:
    """At least half of what `make demo` asks; the card says which kinds it gets wrong."""
    asked = json.loads((SAMPLES / "questions.json").read_text())
    model = omni.load("tiny")
    right = 0
    for each in asked:
        files = [str(SAMPLES / name) for name in each["files"]]
        right += omni.ask(each["question"], *files, model=model, think=False, max_new_tokens=64).text == each["truth"]
    assert right >= 0.5 * len(asked)
