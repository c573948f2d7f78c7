"""A receipt tells what was really given, survives JSON, is a page that needs nothing else, and can be replayed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import wave
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_clips
import numpy as np
import pytest
import small
import torch
from conversations import MODEL, PROCESSOR, TOKENIZER, config, film, picture, ready, user
from PIL import Image
from typer.testing import CliRunner

import omni
from omni.answer import Result
from omni.cli import app
from omni.load import OmniProcessor
from omni.long_video import read_long
from omni.receipt import Receipt
from omni.receipt_page import clock_time, outline
from omni.replay import replay
from omni.seen import LOOKS
from processors.given import Given
from token_reduction import evs


def answered(messages: list[dict[str, Any]], processor: Any = PROCESSOR, **settings: Any) -> Result:
    batch = processor(messages, enable_thinking=False)
    result = MODEL.generate(batch, 8, **settings)
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given")
    made_clips.clip(path / "clip.mp4", frames=75, fps=30)
    sheets = [Image.fromarray(picture(i)["image"]) for i in range(3)]
    sheets[0].save(path / "pages.pdf", save_all=True, append_images=sheets[1:], resolution=10.0)
    Image.fromarray(picture(5)["image"]).save(path / "photo.png")
    with wave.open(str(path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((8000 * np.sin(np.arange(16000) / 5)).astype("<i2").tobytes())
    return path


def files(folder: Path) -> list[dict[str, Any]]:
    names = ("pages.pdf", "clip.mp4", "photo.png", "tone.wav")
    parts: list[Any] = [{"type": "file", "path": str(folder / name)} for name in names]
    parts[1] = {"type": "video", "path": str(folder / "clip.mp4"), "pruning_rate": 0.5}
    return user(*parts, "What <b>now</b> & then?")


@pytest.fixture(scope="module")
def receipt(folder: Path) -> Receipt:
    return answered(files(folder)).receipt


def test_every_token_of_the_prompt_is_accounted_for(folder: Path) -> None:
    messages = files(folder)
    result, batch = answered(messages), PROCESSOR(messages, enable_thinking=False)
    receipt, out = result.receipt, MODEL.embed(batch)
    seen = receipt.seen
    assert seen.tokens == result.prompt_tokens == len(out.tokens)
    assert list(receipt.ids) == batch.tokens.tolist()
    assert [(place.start, place.start + place.tokens) for place in seen.places] == list(out.spans)
    assert sum(len(places) for places in seen.by_item()) == len(seen.places)
    text = seen.tokens - sum(place.tokens for place in seen.places)
    assert text == len(batch.tokens) - len(batch.slots)
    written = "".join(piece if isinstance(piece, str) else "·" for piece in receipt.pieces)
    shown = [TOKENIZER.decode(batch.tokens[slot.position : slot.position + 1]) for slot in batch.slots]
    assert len(shown) == written.count("·")
    assert written.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nPage 1:\n<img>·</img>\nPage 2:\n")
    assert written.endswith("What <b>now</b> & then?<|im_end|>\n<|im_start|>assistant\n<think></think>")


def test_the_files_are_those_that_were_decoded(receipt: Receipt, folder: Path) -> None:
    items = receipt.seen.given.items
    assert [item.name for item in items] == ["pages.pdf", "clip.mp4", "photo.png", "tone.wav"]
    for item in items:
        data = (folder / item.name).read_bytes()
        assert (item.sha256, item.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert [len(places) for places in receipt.seen.by_item()] == [3, 3, 1, 1]
    assert items[1].details["true_seconds"] == [0.0, 1.0, 2.0]
    assert items[1].details["told_seconds"] == [0.0, 0.99, 1.98]


def test_the_masks_are_the_models_own() -> None:
    large = replace(MODEL.config, media=replace(MODEL.config.media, clip_patches=36))
    messages, processor = user(film(), "?"), OmniProcessor.of(large, TOKENIZER)
    seen, batch = answered(messages, processor).receipt.seen, processor(messages)
    (kept,) = MODEL.encode(batch.media).kept
    masks = [seen.kept[number] for number in sorted(seen.kept)]
    assert torch.equal(torch.stack(masks), kept)
    assert [int(mask.sum()) for mask in masks] == [seen.places[number].tokens for number in sorted(seen.kept)]
    assert kept.shape[1:] == (2, 3)
    assert not torch.equal(kept, kept.flip(1, 2))


def test_the_pictures_are_made_of_what_the_model_was_given() -> None:
    array = np.zeros((48, 64, 3), np.uint8)
    array[:, 32:, 0] = 255  # black on the left, red on the right
    (look,) = answered(user({"type": "image", "image": array}, "?")).receipt.seen.looks.values()
    shown = np.asarray(Image.open(io.BytesIO(look)).convert("RGB")).astype(int)
    assert abs(shown[:, 2:12].mean((0, 1)) - [0, 0, 0]).max() < 12
    assert abs(shown[:, -12:-2].mean((0, 1)) - [255, 0, 0]).max() < 12
    frames = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(5)]
    looks = answered(user({"type": "video", "frames": frames, "fps": 1.0}, "?")).receipt.seen.looks
    grey = [np.asarray(Image.open(io.BytesIO(look))).mean() for _, look in sorted(looks.items())]
    assert grey == pytest.approx([0, 80, 160], abs=4)  # the first frame of each pair


def test_pictures_are_few_however_much_was_given() -> None:
    many = [picture(i) for i in range(LOOKS + 9)]
    seen = answered(user(*many, film(), "?")).receipt.seen
    assert len(seen.places) > LOOKS
    assert len(seen.looks) <= LOOKS
    frames = list(np.zeros((2 * LOOKS + 30, 48, 64, 3), np.uint8))
    long = {"type": "video", "frames": frames, "fps": 1.0, "pruning_rate": 0.9}
    seen = answered(user(long, long, "?")).receipt.seen
    assert LOOKS // 2 <= len(seen.looks) <= LOOKS
    assert sum(map(len, seen.with_looks(3000).looks.values())) <= 3000


def test_a_memorys_receipt_tells_of_all_that_was_read(receipt: Receipt, folder: Path) -> None:
    parts = files(folder)[0]["content"]
    memory = MODEL.ingest(PROCESSOR.ingest(user(*parts[:2])))
    memory.append(PROCESSOR.ingest(user(*parts[2:4]), after=memory.given))
    question = PROCESSOR.ask(parts[4], after=memory.given, enable_thinking=False)
    result = MODEL.generate(question, 8, memory=memory)
    assert isinstance(result, Result)
    made = result.receipt
    assert made.ids == receipt.ids
    assert made.seen.places == receipt.seen.places
    assert made.seen.looks.keys() == receipt.seen.looks.keys() or len(made.seen.looks) >= len(receipt.seen.looks)
    assert made.seen.memory["tokens"] == memory.tokens
    assert "came from a memory" in made.to_html()
    assert made.seen.memory["decode media"] == memory.given.seconds
    assert made.seconds["decode media"] == question.given[0].seconds - memory.given.seconds > 0
    again = replay(Receipt.from_dict(made.to_dict()), MODEL, PROCESSOR)
    assert again.same
    assert again.differences == ()


def test_json_gives_the_receipt_back(receipt: Receipt, tmp_path: Path) -> None:
    receipt.save(tmp_path / "a.json")
    loaded = Receipt.load(tmp_path / "a.json")
    assert json.dumps(loaded.to_dict()) == json.dumps(receipt.to_dict())
    assert loaded.to_html() == Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))).to_html()
    assert loaded.seen.given.key == receipt.seen.given.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "want 'omni receipt'"),
        ({"version": 99}, "version 99"),
        ({"seen": {}}, "is damaged"),
        ({"prompt": None}, "it has no prompt.ids, prompt.pieces; pass the file as"),
        ({"answer": {"text": "", "thinking": "", "stopped": "eos"}}, "it has no answer.tokens;"),
        ({"settings": {}}, "settings.sampling, settings.seed.*settings.draft"),
    ],
)
def test_what_is_no_receipt_is_refused(receipt: Receipt, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Receipt.from_dict({**receipt.to_dict(), **change})


def test_a_receipt_goes_only_where_its_suffix_says(receipt: Receipt, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in .txt; want .json or .html"):
        receipt.save(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="cannot be written"):
        receipt.save(tmp_path / "no" / "a.json")
    with pytest.raises(ValueError, match="pass what --receipt"):
        Receipt.load(tmp_path / "none.json")


class Page(HTMLParser):
    """Tags with what they refer to, and the text."""

    VOID = ("meta", "img", "br", "image", "path", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_everything(receipt: Receipt) -> None:
    html = receipt.to_html()
    page = Page(html)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.findall(r"url\(|@import|https?://", html)
    for item in receipt.seen.given.items:
        assert item.name in page.text
        assert item.sha256 in page.text
    for words in ("What <b>now</b> & then?", "2.00 s", "told 1.98", "page 3", "dpi", receipt.identity.fingerprint):
        assert words in page.text
    assert "<b>now</b>" not in html  # what a user typed is text
    assert html.count('class="pruned" d="M') == sum(not bool(mask.all()) for mask in receipt.seen.kept.values())
    assert len(html) < 150_000


def test_a_batch_made_by_hand_has_a_receipt_too() -> None:
    result = MODEL.generate(small.mixed(1), 4)
    assert isinstance(result, Result)
    assert result.receipt.seen.given == Given()
    assert "a batch made by hand" in Page(result.receipt.to_html()).text
    with pytest.raises(ValueError, match="made by hand"):
        replay(result.receipt, MODEL, PROCESSOR)


def test_text_alone_has_a_receipt_too() -> None:
    assert "Text alone, no files." in Page(answered(user("hi")).receipt.to_html()).text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.00 s"), (59.999, "1:00.00"), (7.25, "7.25 s"), (3636.0, "1:00:36.00"), (65.5, "1:05.50")],
)
def test_times_are_shown_as_a_clock_shows_them(seconds: float, shown: str) -> None:
    assert clock_time(seconds) == shown


def test_an_outline_covers_just_the_mask() -> None:
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    covered = torch.zeros_like(mask)
    for x, y, width, back in re.findall(r"M(\d+) (\d+)h(\d+)v1H(\d+)z", outline(mask)):
        assert x == back
        assert not bool(covered[int(y), int(x) : int(x) + int(width)].any())
        covered[int(y), int(x) : int(x) + int(width)] = True
    assert torch.equal(covered, mask)


# Replay


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.5, "top_p": 0.9}, {"temperature": 1.0, "draft": 3, "seed": 5}]
)
def test_a_replay_gives_the_same_tokens(folder: Path, settings: dict[str, Any]) -> None:
    result = answered(files(folder), **settings)
    loaded = Receipt.from_dict(json.loads(json.dumps(result.receipt.to_dict())))
    again = replay(loaded, MODEL, PROCESSOR)
    assert again.same
    assert again.differences == ()
    assert again.result.tokens == result.tokens


def test_a_replay_says_what_differs(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    receipt = answered(files(copy)).receipt
    Image.fromarray(picture(6)["image"]).save(copy / "photo.png")
    (difference,) = [text for text in replay(receipt, MODEL, PROCESSOR).differences if "photo" in text]
    assert re.fullmatch(r"photo.png: the file has changed \(\w{12} then, \w{12} now\)", difference)
    moved = replay(receipt, MODEL, PROCESSOR, {"photo.png": str(folder / "photo.png")})
    assert moved.same
    assert moved.differences == ()
    other = ready(config(), seed=1)
    again = replay(receipt, other, PROCESSOR, {"photo.png": str(folder / "photo.png")})
    assert not again.same
    assert [text.split(":")[0] for text in again.differences] == ["the model", "the answer"]
    MODEL.prune = partial(evs, score_dtype=torch.bfloat16)
    try:
        differences = replay(receipt, MODEL, PROCESSOR, {"photo.png": str(folder / "photo.png")}).differences
    finally:
        MODEL.prune = evs
    assert differences[0] == "pruning: evs then, evs(score_dtype=torch.bfloat16) now"
    older = replace(receipt.identity, environment=receipt.identity.environment | {"torch": "1.0"})
    again = replay(replace(receipt, identity=older), MODEL, PROCESSOR, {"photo.png": str(folder / "photo.png")})
    assert again.same
    assert again.differences == (f"torch: 1.0 then, {torch.__version__.split('+')[0]} now",)


def test_a_replay_reads_long_files_as_they_were_read() -> None:
    frames = list(np.random.default_rng(3).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8))
    clip = {"type": "video", "frames": frames, "fps": 1.0, "pruning_rate": 0.5}
    masks = []
    for rule in ("exact", "causal"):
        memory = read_long(MODEL, PROCESSOR, user("Look: ", clip), evs=rule, segment=4)
        result = MODEL.generate(PROCESSOR.ask("What?", after=memory.given), 8, memory=memory)
        assert isinstance(result, Result)
        receipt = Receipt.from_dict(json.loads(json.dumps(result.receipt.to_dict())))
        again = replay(receipt, MODEL, PROCESSOR, {"frames": frames})
        assert again.same
        assert again.differences == ()
        masks += [kept_by(receipt), kept_by(again.result.receipt)]
    assert masks[0] == masks[1] != masks[2] == masks[3]


def kept_by(receipt: Receipt) -> list[Any]:
    return [mask.tolist() for _, mask in sorted(receipt.seen.kept.items())]


def test_things_given_in_memory_are_asked_for_by_name() -> None:
    receipt = answered(user(picture(), "?")).receipt
    with pytest.raises(ValueError, match="<ndarray> came from memory"):
        replay(receipt, MODEL, PROCESSOR)
    assert replay(receipt, MODEL, PROCESSOR, {"<ndarray>": picture()["image"]}).same


def test_a_memory_of_fewer_bits_leaves_its_trace(folder: Path, tmp_path: Path) -> None:
    messages = user("word " * 300, {"type": "file", "path": str(folder / "photo.png")})
    MODEL.ingest(PROCESSOR.ingest(messages)).save(tmp_path / "less.omni", kv="int8")
    result = omni.ask("What?", tmp_path / "less.omni", model=(MODEL, PROCESSOR), think=False, max_new_tokens=4)
    receipt = Receipt.from_dict(json.loads(json.dumps(result.receipt.to_dict())))
    assert receipt.seen.stored["kv"] == "int8"
    assert receipt.seen.stored["kv_error"] > 0
    assert "kept as int8" in receipt.to_html()
    assert any("kept as int8" in difference for difference in replay(receipt, MODEL, PROCESSOR).differences)


def test_a_receipt_finds_its_files_from_any_folder_whatever_they_are_called(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"b\xe9d.png")  # no UTF-8
    shutil.copy(folder / "photo.png", tmp_path / name)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    result = omni.ask("What?", name, model=(MODEL, PROCESSOR), think=False, max_new_tokens=4)
    memory = omni.ingest(name, model=(MODEL, PROCESSOR))
    monkeypatch.chdir(tmp_path / "sub")
    result.receipt.save("a.json")
    result.receipt.save("a.html")
    assert "\\udce9d.png" in Path("a.html").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["a.html", "a.json"]
    assert replay(Receipt.load("a.json"), MODEL, PROCESSOR).same
    later = omni.ask("What?", memory, model=(MODEL, PROCESSOR), think=False, max_new_tokens=4)
    assert replay(later.receipt, MODEL, PROCESSOR).same
    with pytest.raises(ValueError, match=r"pic.png is none of the receipt's files; want b"):
        replay(result.receipt, MODEL, PROCESSOR, {"pic.png": name})


# The command line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    return result.exit_code, result.output


def test_ask_ingest_and_replay_at_the_shell(checkpoint: str, folder: Path, tmp_path: Path) -> None:
    talk, page, record = (str(tmp_path / name) for name in ("talk.omni", "page.html", "record.json"))
    photo, clip = str(folder / "photo.png"), str(folder / "clip.mp4")
    code, text = run("ingest", photo, "-o", talk, "--model", checkpoint)
    assert code == 0
    assert "tokens of 1 files" in text
    code, text = run("ingest", talk, clip, "-o", talk, "--model", checkpoint, "--kv", "bfloat16", "--causal")
    assert code == 0
    assert "tokens of 2 files" in text
    options = ("--model", checkpoint, "--max-new-tokens", "6", "--no-think", "--json")
    code, text = run("ask", talk, "What?", *options, "--receipt", page)
    assert code == 0
    assert "clip.mp4" in Path(page).read_text()
    from_memory = json.loads(text)["tokens"]
    code, text = run("ask", photo, clip, "What?", *options, "--receipt", record)
    assert code == 0
    assert len(from_memory) == len(json.loads(text)["tokens"])
    code, text = run("replay", record, "--model", checkpoint)
    assert code == 0
    assert "the same 6 tokens" in text
    values = json.loads(Path(record).read_text())
    values["answer"]["tokens"][3] += 1
    Path(record).write_text(json.dumps(values))
    code, text = run("replay", record, "--model", checkpoint)
    assert code == 1
    assert "differs: the answer: from its token 3 on" in text
    code, text = run("ask", str(tmp_path / "none.omni"), "What?", "--model", checkpoint)
    assert code == 2
    assert "no file" in text


def test_ask_goes_on_from_a_memory_at_hand(folder: Path) -> None:
    memory = omni.ingest(folder / "photo.png", model=(MODEL, PROCESSOR))
    told = omni.ask("What?", memory, model=(MODEL, PROCESSOR), budget=0, max_new_tokens=6)
    want = omni.ask("What?", folder / "photo.png", model=(MODEL, PROCESSOR), budget=0, max_new_tokens=6)
    assert told.tokens == want.tokens
    more = omni.ask("And?", memory, folder / "clip.mp4", model=(MODEL, PROCESSOR), budget=0, max_new_tokens=6)
    assert [item.name for item in more.receipt.seen.given.items] == ["photo.png", "clip.mp4"]


@pytest.mark.slow
def test_a_real_browser_shows_the_page(receipt: Receipt, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")  # a program of the machine, not a package; pages are parsed in other tests
    receipt.save(tmp_path / "page.html")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --hide-scrollbars"
    for width in (1100, 500):
        shot = tmp_path / f"{width}.png"
        command = [
            browser,
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            f"--screenshot={shot}",
            f"file://{tmp_path / 'page.html'}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape == (2000, width, 3)
        assert (abs(pixels - pixels[0, 0]).sum(-1) > 40).mean() > 0.05  # ink
        colourful = pixels.max(-1) - pixels.min(-1) > 60
        assert colourful.mean() > 0.002  # the pictures of noise, drawn
        assert pixels[:, -6:].std() < 40  # nothing runs out of the page
