"""What a prompt was made of: the same bytes, the same record; ingested and asked, the ids are those of one prompt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import made_clips
import numpy as np
import pytest
import released
import tokens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omni.hf import from_hf
from omni.load import OmniProcessor
from processors.batch import Batch
from processors.given import Given, untold
from processors.video import Rate

TOKENIZER = tokens.tokenizer()
PROCESSOR = OmniProcessor.of(from_hf(released.omni()), TOKENIZER)
SLASH = "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}{# /no_think #}"


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def png(path: Path, seed: int = 0) -> str:
    Image.fromarray(picture(seed)).save(path)
    return str(path)


def shown(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": picture(seed)}


def ids(*batches: Batch) -> list[int]:
    return [token for batch in batches for token in batch.tokens.tolist()]


QUESTIONS = st.text("ab c<|im_end|>\n<image>ü", max_size=20)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(QUESTIONS, min_size=1, max_size=3), st.booleans())
def test_the_ids_of_ingest_and_ask_are_those_of_one_prompt(seeds: list[int], texts: list[str], think: bool) -> None:
    content: list[Any] = [part for seed, text in zip(seeds, texts * 4, strict=False) for part in (text, shown(seed))]
    start = [{"role": "system", "content": "Be brief."}]
    memory = PROCESSOR.ingest([*start, *user(*content)])
    for text in texts:
        question = PROCESSOR.ask(text, after=memory.given[0], enable_thinking=think)
        whole = PROCESSOR([*start, *user(*content, text)], enable_thinking=think)
        assert ids(memory, question) == ids(whole)
        assert not question.slots
    assert torch.equal(memory.media.patches, whole.media.patches)


def test_ingested_piece_by_piece_the_ids_are_those_of_one_prompt() -> None:
    parts = ["Look: ", shown(0), shown(1), "and ", shown(2)]
    first = PROCESSOR.ingest(user(*parts[:2]))
    second = PROCESSOR.ingest(user(parts[2]), after=first.given[0])
    third = PROCESSOR.ingest(user(*parts[3:]), after=second.given[0])
    end = PROCESSOR.ask(["What of ", shown(3), "?"], after=third.given[0])
    assert ids(first, second, third, end) == ids(PROCESSOR(user(*parts, "What of ", shown(3), "?")))
    assert [len(batch.given[0].items) for batch in (first, second, third, end)] == [1, 2, 3, 4]
    assert [slot.first for slot in end.slots] == [0]
    told = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}]
    again = PROCESSOR.ask(told, after=third.given[0])
    assert ids(first, second, third, again) == ids(PROCESSOR([*user(*parts), *told]))


def test_pages_share_the_same_budget_when_the_question_is_reserved(tmp_path: Path) -> None:
    sheets = [Image.fromarray(picture(i)).resize((850, 1100)) for i in range(4)]
    sheets[0].save(tmp_path / "a.pdf", save_all=True, append_images=sheets[1:], resolution=100.0)
    document = {"type": "document", "path": str(tmp_path / "a.pdf")}
    whole = PROCESSOR(user(document, "What?"), context=3000)
    probe = PROCESSOR.ingest(user(document), context=3000)
    rest = PROCESSOR.ask("What?", after=probe.given[0])
    memory = PROCESSOR.ingest(user(document), context=3000, reserve=len(rest.tokens))
    assert torch.equal(memory.media.grids, whole.media.grids)
    with pytest.raises(ValueError, match="a context of 3000"):
        PROCESSOR.ingest(user(document), context=3000, reserve=2900)


def test_a_streamed_ingest_ends_where_an_ingest_does(tmp_path: Path) -> None:
    clip = {"type": "video", "path": str(made_clips.clip(tmp_path / "a.mp4", frames=50, fps=10))}
    pieces = list(PROCESSOR.stream(user(clip), frames=2, ingest=True, video_pruning_rate=0.0))
    whole = PROCESSOR.ingest(user(clip), video_pruning_rate=0.0)
    assert len(pieces) > 2
    assert ids(*pieces) == ids(whole)
    assert {piece.given[0].key for piece in pieces} == {pieces[0].given[0].key}
    (call,) = pieces[0].given[0].calls
    again = PROCESSOR.stream(untold(call.messages, [clip["path"]]), ingest=True, **call.arguments)
    assert ids(*again) == ids(*pieces)
    assert ids(*pieces, PROCESSOR.ask("?", after=pieces[-1].given[0])) == ids(PROCESSOR(user(clip, "?")))


def test_a_question_that_would_change_what_was_read_is_refused() -> None:
    processor = OmniProcessor.of(from_hf(released.omni()), tokens.tokenizer(SLASH))
    memory = processor.ingest(user(shown()), enable_thinking=True)
    assert ids(processor.ask("a", after=memory.given[0]))
    with pytest.raises(ValueError, match="begin otherwise than what was read"):
        processor.ask("a", after=memory.given[0], enable_thinking=False)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    memory = PROCESSOR.ingest(user(shown()), tools=tools)
    assert ids(PROCESSOR.ask("a", after=memory.given[0]))  # the tools are those of the ingest
    with pytest.raises(ValueError, match="begin otherwise than what was read"):
        PROCESSOR.ask("a", after=memory.given[0], tools=None)
    with pytest.raises(ValueError, match="end with a user's message"):
        PROCESSOR.ingest([{"role": "system", "content": "a"}])
    other = OmniProcessor.of(from_hf(released.v2_vl()), TOKENIZER)
    with pytest.raises(ValueError, match="another tokenizer, template or rules"):
        other.ask("a", after=memory.given[0])


def test_the_key_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    path = Path(png(tmp_path / "a.png", 0))
    messages = user({"type": "image", "path": str(path)}, "?")
    first = PROCESSOR(messages).given[0]
    assert first.items[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (first.items[0].size, first.items[0].source) == (path.stat().st_size, str(path))
    copied = tmp_path / "b.png"
    copied.write_bytes(path.read_bytes())
    assert PROCESSOR(user({"type": "image", "path": str(copied)}, "?")).given[0].key == first.key
    png(path, 1)  # the same name, another picture
    assert PROCESSOR(messages).given[0].key != first.key
    arrays = [PROCESSOR(user(shown(seed), "?")).given[0].key for seed in (0, 0, 1)]
    assert arrays[0] == arrays[1] != arrays[2]
    keys = {PROCESSOR(messages, preset=preset).given[0].key for preset in ("reference", "vllm")}
    assert len(keys) == 2


def test_a_file_that_is_read_once_is_read_once() -> None:
    class Pipe:
        name = "pipe"
        reads = 0

        def seekable(self) -> bool:
            return False

        def read(self, size: int) -> bytes:
            self.reads += 1
            return PNG if self.reads == 1 else b""

    given = PROCESSOR(user({"type": "image", "image": Pipe()})).given[0]
    assert given.items[0].sha256 == hashlib.sha256(PNG).hexdigest()


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "789c63f8cfc000000301010018dd8db00000000049454e44ae426082"
)


def test_the_record_survives_json_and_makes_the_same_batch_again(tmp_path: Path) -> None:
    clip = made_clips.clip(tmp_path / "a.mp4", frames=50, fps=10)
    frames = [made_clips.numbered(i) for i in range(3)]
    things = [str(clip), png(tmp_path / "a.png"), frames]
    messages = user(
        {"type": "video", "path": things[0], "sampling": Rate(fps=2.0), "pruning_rate": 0.5},
        {"type": "file", "path": things[1]},
        {"type": "video", "frames": frames, "times": [0.0, 1.5, 4.25]},
        "and <image>?",
    )
    batch = PROCESSOR(messages, enable_thinking=False)
    record = Given.from_dict(json.loads(json.dumps(batch.given[0].to_dict())))
    assert record.key == batch.given[0].key
    (call,) = record.calls
    again = PROCESSOR(untold(call.messages, things), **call.arguments)
    assert ids(again) == ids(batch)
    assert torch.equal(again.media.tubelets, batch.media.tubelets)
    assert again.given[0].key == record.key
    assert [item.slots for item in record.items] == [6, 1, 2]


def test_a_password_is_not_told(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.pdf")
    given = PROCESSOR(user({"type": "document", "path": str(tmp_path / "a.pdf"), "password": "secret"})).given[0]
    assert "secret" not in json.dumps(given.to_dict())


def test_batches_keep_each_sequences_record() -> None:
    one, two = user("one", shown()), user("two")
    batch = PROCESSOR([one, two])
    assert [part.given[0].key for part in batch] == [PROCESSOR(one).given[0].key, PROCESSOR(two).given[0].key]
    bare = Batch(tokens=torch.tensor([40]), lengths=torch.tensor([1]))
    assert [given.items for given in Batch.pack([bare, PROCESSOR(two)]).given] == [(), ()]
    assert Batch.pack([bare, bare]).given == ()
    with pytest.raises(ValueError, match="2 records came for 1 sequences"):
        Batch(tokens=torch.tensor([40]), lengths=torch.tensor([1]), given=batch.given)
