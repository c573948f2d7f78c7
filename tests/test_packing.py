"""Training sees what the processor makes: the same ids, the same numbers, and only answers are learnt."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from omni.load import OmniProcessor
from omni.splice import expand
from omni.train import mixture
from omni.train.data import documents, fonts, texts
from omni.train.data.example import Example
from omni.train.data.sounds import Mute
from omni.train.exam import parts_of
from omni.train.packing import Packed, Packer, expanded
from omni.train.shape import tiny_config
from omni.train.stand_in import StandIn, positions, shuffled
from omni.train.tokens import SIZE, tokenizer
from processors.batch import Batch


def messages(example: Example) -> list[dict[str, object]]:
    """The example as a user would send it, all turns but the last answered."""
    parts = parts_of(example.media)
    turns: list[dict[str, object]] = []
    for number, turn in enumerate(example.turns):
        text = {"type": "text", "text": turn.question}
        turns.append({"role": "user", "content": [*(parts if not number else []), text]})
        turns.append({"role": "assistant", "content": turn.answer})
    return turns[:-1]


@pytest.fixture(scope="module")
def processor() -> OmniProcessor:
    return OmniProcessor.of(tiny_config(), tokenizer())


@pytest.mark.parametrize(
    "skill", ["document", "pages", "video", "speech", "sounds", "sound and video", "look-up", "sums"]
)
def test_a_packed_example_begins_as_the_processor_writes_it(skill: str, processor: OmniProcessor) -> None:
    example = mixture.makers(Mute(), turns=3)[skill](Random(f"test {skill}"))
    thinks = bool(example.turns[-1].thinking)
    packed = Packer(drawn=True)([example])
    made = processor(messages(example), enable_thinking=thinks)
    length = len(made.tokens)
    assert packed.batch.tokens[:length].tolist() == made.tokens.tolist()
    assert [slot.position for slot in packed.batch.slots] == [slot.position for slot in made.slots]
    answer = processor.tokenizer.encode(example.turns[-1].answer, add_special_tokens=False)
    rest = packed.batch.tokens[length:].tolist()
    assert rest[-len(answer) - 2 : -2] == answer
    for name in ("patches", "grids", "tubelets", "clips", "mels", "frames"):
        torch.testing.assert_close(getattr(packed.batch.media, name), getattr(made.media, name))


def answers_of(packed: Packed) -> list[list[int]]:
    runs: list[list[int]] = []
    before = -2
    for place in packed.learnt.nonzero().flatten().tolist():
        if place != before + 1:
            runs.append([])
        runs[-1].append(int(packed.batch.tokens[place]))
        before = place
    return runs


def test_only_answers_and_thoughts_are_learnt() -> None:
    example = texts.sums(Random(1), thinking=True)
    packed = Packer(drawn=False)([example])
    text = tokenizer().decode(answers_of(packed)[0])
    assert text == f"{example.turns[0].thinking}\n</think>\n{example.turns[0].answer}<|im_end|>"


def test_each_turn_has_one_run_of_learnt_tokens_and_one_skill() -> None:
    rng = Random(2)
    made = mixture.makers(Mute(), drawn=False)
    packed = Packer(drawn=False)([made[name](rng) for name in ("document", "video", "sums", "sounds", "pages")])
    assert len(answers_of(packed)) == len(packed.skills)
    assert {"video", "time"} & set(packed.skills)


def test_what_is_known_makes_as_many_features_as_the_towers() -> None:
    rng = Random(3)
    made = mixture.makers(Mute(), drawn=False)
    packed = Packer(drawn=False)([made[name](rng) for name in ("pages", "video", "sound and video", "speech")])
    features = StandIn(16)(packed.known)
    tokens, lengths, _ = expand(packed.batch, features.counts)
    assert sum(lengths) == len(tokens) == len(expanded(packed, features.counts))
    from encoders.audio import num_tokens

    assert features.counts["audio"] == [num_tokens(int(n)) for n in packed.batch.media.frames]


def test_a_batch_of_examples_is_the_examples_packed() -> None:
    rng = Random(4)
    made = mixture.makers(Mute(), drawn=False)
    examples = [made[name](rng) for name in ("document", "video", "speech", "sums")]
    packer = Packer(drawn=False)
    together, alone = packer(examples), [packer([example]) for example in examples]
    again = Batch.pack([packed.batch for packed in alone])
    assert together.batch.tokens.equal(again.tokens)
    assert together.batch.slots == again.slots
    assert together.learnt.equal(torch.cat([packed.learnt for packed in alone]))


def test_the_same_seed_makes_the_same_batch() -> None:
    made = mixture.makers(Mute(), drawn=False)
    packer = Packer(drawn=False)
    one, two = (packer(mixture.draw(Random("a"), made, mixture.ALL, 600)) for _ in range(2))
    assert one.batch.tokens.equal(two.batch.tokens)
    assert all(np.array_equal(a, b) for a, b in zip(one.known.pictures, two.known.pictures, strict=True))


def test_fields_follow_pixel_shuffle() -> None:
    from token_reduction import pixel_shuffle

    fields = np.arange(1, 4 * 6 * 3 + 1).reshape(1, 4, 6, 3)
    flat = torch.from_numpy(fields.reshape(-1, 3)).float()
    expected = pixel_shuffle(flat, torch.tensor([[4, 6]]))
    assert shuffled(fields).flatten(0, 2).float().equal(expected)
    assert positions(2, 2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]] * 2


def test_a_text_is_its_tokens_again() -> None:
    made = tokenizer()
    for text in (
        "What is the total?\nTheatre at 12.50 €",
        "Frame 3 sampled at 1.00 seconds: ",
        "wherein is the isle",
        "ü漢\r\n  red",
    ):
        assert made.decode(made.encode(text, add_special_tokens=False)) == text
    assert len(made) <= SIZE


def test_held_out_fonts_are_never_trained_on() -> None:
    trained, held = set(fonts.faces()), set(fonts.faces(held_out=True))
    assert trained
    assert held
    assert not {path for pair in trained for path in pair} & {path for pair in held for path in pair}


def test_every_document_shows_the_answers_to_its_questions() -> None:
    rng = Random(5)
    for kind in documents.KINDS:
        for _ in range(20):
            made = kind(rng)
            for question, answer, line in made.asked:
                assert answer in line, question
                assert line in made.text, question
