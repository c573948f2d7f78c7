"""Make the samples: an invoice of three pages, a receipt's photo, a chart, a screen, a clip with speech, a recording.

Everything is made by the generators of the training data, from seeds, fonts and voices that training never sees, and
laid out as files of the usual kinds. `python -m demos.make_samples` writes demos/samples/ anew, with questions.
Fonts in them: Caladea (OFL) and Hanken Grotesk (OFL); voice: espeak-ng's en-us+m3.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image, ImageFilter

from demos.samples import SAMPLES
from omni.train.data import charts, clips, documents, fonts, screens
from omni.train.data.documents import Document, Style
from omni.train.data.page import CLEAR, Page
from omni.train.data.sounds import RATE
from omni.train.data.voices import Espeak

VOICE = Espeak("en-us+m3")
SHEET = (352, 448)  # pt: an invoice's page
FPS, SECONDS = 10, 7


def face(family: str) -> tuple[str, str]:
    """Regular and bold files of a held-out family."""
    return fonts.families()[family]


def plain(family: str, size: int, margin: int) -> Style:
    """Black on white, without wear."""
    regular, bold = face(family)
    return Style(
        face=regular, bold=bold, size=size, leading=1.5, ink=(20, 20, 20), paper=(255, 255, 255), margin=margin
    )


def pdf(pages: Sequence[Page], path: Path) -> None:
    """Pages as a PDF with real text, each in the middle of a sheet."""
    with PdfPages(path, metadata={"CreationDate": None, "Producer": None}) as file:
        for page in pages:
            figure = Figure(figsize=(SHEET[0] / 72, SHEET[1] / 72))
            left, top = (SHEET[0] - page.image.width) / 2, (SHEET[1] - page.image.height) / 2
            for line in page.written:
                x, y = (left + line.x) / SHEET[0], 1 - (top + line.y) / SHEET[1]
                font = FontProperties(fname=line.path, size=line.size)
                figure.text(x, y, line.text.replace("$", r"\$"), fontproperties=font, va="center")
            file.savefig(figure)


def photo(page: Page, rng: Random) -> Image.Image:
    """A page as a phone sees it: on a wooden table, a little turned, unevenly lit, with the sensor's noise."""
    width, height = (round(side * 1.24) for side in page.image.size)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, (height // 6, 1, 1)).repeat(6, 0)
    table = np.full((len(grain), width, 3), (122, 84, 52), np.float32) + 7 * grain
    scene = Image.fromarray(table.clip(0, 255).astype(np.uint8)).resize((width, height))
    angle = rng.uniform(0.8, 1.6)
    paper, mask = (
        each.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        for each in (page.image, Image.new("L", page.image.size, 255))
    )
    scene.paste(paper, ((width - paper.width) // 2, (height - paper.height) // 2), mask)
    light = np.linspace(1.04, 0.82, width)[None, :, None] * np.linspace(1.0, 0.92, height)[:, None, None]
    pixels = np.asarray(scene.filter(ImageFilter.GaussianBlur(1.2)), np.float32) * light
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def invoice(rng: Random) -> list[dict[str, object]]:
    """invoice.pdf: an invoice, a table and a letter."""
    made = [kind(rng) for kind in (documents.invoice, documents.table, documents.letter)]
    pages = [documents.render(each, plain("Caladea", 16, 8), rng, 640) for each in made]
    pdf(pages, SAMPLES / "invoice.pdf")
    return asked("invoice.pdf", rng, *made)


def receipt(rng: Random) -> list[dict[str, object]]:
    """receipt.jpg: a photo of a receipt."""
    made = next(each for each in iter(lambda: documents.receipt(rng), None) if len(each.rows) > 12)
    page = documents.render(made, plain("Hanken Grotesk", 44, 40), rng, 10_000)
    photo(page, rng).save(SAMPLES / "receipt.jpg", quality=80)
    return asked("receipt.jpg", rng, made)


def asked(file: str, rng: Random, *made: Document) -> list[dict[str, object]]:
    """Three questions about one page, or two about each of several."""
    found: list[dict[str, object]] = []
    for number, document in enumerate(made):
        distinct = list({answer: (question, answer) for question, answer, _ in document.asked}.values())
        for question, answer in rng.sample(distinct, 3 if len(made) == 1 else 2):
            told = f"On page {number + 1}: {question}" if len(made) > 1 else question
            found.append({"files": [file], "question": told, "truth": answer})
    return found


def chart(rng: Random) -> list[dict[str, object]]:
    """chart.png: a chart by matplotlib."""
    picture, questions, _ = charts.chart(rng, (face("Hanken Grotesk"),), wear=0.0, how=CLEAR)
    picture.image.save(SAMPLES / "chart.png")
    return [{"files": ["chart.png"], "question": q, "truth": a} for q, a, _ in rng.sample(questions, 3)]


def screen(rng: Random) -> list[dict[str, object]]:
    """screen.png: a window with buttons."""
    picture, questions = screens.screen(rng, (face("Hanken Grotesk"),), wear=0.0)
    picture.image.save(SAMPLES / "screen.png")
    return [{"files": ["screen.png"], "question": q, "truth": a} for q, a, _ in rng.sample(questions, 2)]


def clip(rng: Random) -> list[dict[str, object]]:
    """clip.mp4: a shape changes its colour twice, and a word is said each time."""
    size, count = (640, 384), FPS * SECONDS
    times = tuple(index / FPS for index in range(count))
    actor = clips.cast(rng, (160, 96), count, 1)[0]
    paints = ((0, "blue"), (2 * FPS, "orange"), (4 * FPS + FPS // 2, "green"))
    big = {name: 4 * getattr(actor, name) for name in ("radius", "x", "y", "dx", "dy")}
    actor = replace(actor, **big, paints=paints)
    frames = clips.film([actor], times, size, rng).frames
    sound = np.zeros(RATE * SECONDS, np.float32)
    told = ("window", "seven")
    for (frame, _), word in zip(paints[1:], told, strict=True):
        said = VOICE.say(rng, word).samples
        sound[frame * RATE // FPS :][: len(said)] += said
    encode(SAMPLES / "clip.mp4", frames, sound)
    truths = {
        f"What was said when the {actor.form} turned orange?": "window",
        f"What colour did the {actor.form} turn when seven was said?": "green",
        f"When does the {actor.form} turn orange?": "2.00 seconds",
        f"What colour is the {actor.form} at the start?": "blue",
    }
    return [{"files": ["clip.mp4"], "question": question, "truth": truth} for question, truth in truths.items()]


def encode(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """An MP4 of H.264 and AAC."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        video = file.add_stream("libx264", rate=FPS, options={"crf": "33"})
        audio = file.add_stream("aac", rate=RATE)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        piece = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        piece.sample_rate = RATE
        file.mux(audio.encode(piece))
        file.mux(audio.encode())


def recording(rng: Random) -> list[dict[str, object]]:
    """recording.wav: a sentence."""
    text = "the teacher brings a small basket"
    said = VOICE.say(rng, text).samples
    with wave.open(str(SAMPLES / "recording.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((said * 32767).astype(np.int16).tobytes())
    return [{"files": ["recording.wav"], "question": "What is said?", "truth": text}]


def main(seed: int = 3) -> None:
    """Write all samples and questions.json."""
    SAMPLES.mkdir(exist_ok=True)
    makers = (invoice, receipt, chart, screen, clip, recording)
    questions = [each for make in makers for each in make(Random(f"sample {make.__name__} {seed}"))]
    (SAMPLES / "questions.json").write_text(json.dumps(questions, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
