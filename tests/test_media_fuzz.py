"""Damaged files: a MediaError or a picture of the right shape each time; never another error, a crash or a hang."""

import time
from pathlib import Path

import numpy as np
import pytest
from made_pictures import form, locked, numbered_pages, pdf, saved, saved_all, scene

from processors.media import Limits, MediaError, open_picture, open_pictures, picture_count, picture_size
from processors.pdf import open_document

SECONDS = 10
LIMITS = Limits(max_pixels=4_000_000, max_pages=100, max_frames=100)

_PICTURE = scene(60, 40)
_FRAMES = [scene(60, 40, seed) for seed in range(3)]
WHOLE: dict[str, bytes] = {
    "png": saved(_PICTURE, "PNG"),
    "animated png": saved_all(_FRAMES, "PNG", duration=50),
    "jpeg": saved(_PICTURE, "JPEG", 6),
    "tiff": saved(_PICTURE, "TIFF"),
    "tiff of pages": saved_all(_FRAMES, "TIFF", compression="tiff_lzw"),
    "gif": saved_all(_FRAMES, "GIF", duration=50),
    "webp": saved(_PICTURE, "WEBP", 3),
    "bmp": saved(_PICTURE, "BMP"),
    "pdf of a picture": saved(_PICTURE, "PDF"),
    "pdf of 3 pages": pdf(numbered_pages(3)),
    "pdf of a form": form(),
    "encrypted pdf": locked(pdf(numbered_pages(2)), ""),
}
SUFFIXES = ".png", ".jpg", ".tif", ".pdf", ".gif", ".webp", ".mp4", ""


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """One of: bytes changed, a cut, bytes put in, bytes taken out, another file's start, zeros written over."""
    data = bytearray(whole)
    start = int(rng.integers(len(data)))
    stop = start + int(rng.integers(1, 64))
    match rng.integers(6):
        case 0:
            for place in rng.integers(len(data), size=int(rng.integers(1, 20))):
                data[place] = int(rng.integers(256))
        case 1:
            del data[start:]
        case 2:
            data[start:start] = rng.bytes(stop - start)
        case 3:
            del data[start:stop]
        case 4:
            other = WHOLE[str(rng.choice(list(WHOLE)))]
            data[: stop - start] = other[: stop - start]
        case _:
            data[start:stop] = bytes(len(data[start:stop]))
    return bytes(data)


def look(path: Path) -> str:
    """Open a file in every way; "right" where all of it came, the error otherwise. Anything else is raised."""
    try:
        width, height = picture_size(path, LIMITS)
        assert 0 < width * height <= LIMITS.max_pixels
        assert open_picture(path, LIMITS).shape == (height, width, 3)
        count = picture_count(path, LIMITS)
        frames = [frame.pixels.shape[2] for frame in open_pictures(path, LIMITS)]
        assert frames == [3] * count
        return "right"
    except MediaError as error:
        if "open it as document" not in str(error):
            return str(error)
    try:
        with open_document(path, LIMITS) as document:
            for page in range(len(document)):
                assert document.render(page, 80, 60).shape == (60, 80, 3)
                assert [word.text for word in document.words(page)] == document.text(page).split()
                assert document.label(page)
        return "right"
    except MediaError as error:
        return str(error)


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("block", range(5))
def test_a_damaged_file_is_an_error_or_right(kind: str, block: int, tmp_path: Path) -> None:
    """Five files a block, five blocks a kind: 300 files."""
    for seed in range(5 * block, 5 * block + 5):
        rng = np.random.default_rng([seed, *kind.encode()])
        path = tmp_path / f"{seed}{rng.choice(SUFFIXES)}"
        path.write_bytes(damaged(WHOLE[kind], rng))
        start = time.monotonic()
        outcome = look(path)
        assert outcome == "right" or outcome.startswith("media: "), (seed, outcome)
        assert time.monotonic() - start < SECONDS, (kind, seed)


def test_whole_files_come_right(tmp_path: Path) -> None:
    for index, data in enumerate(WHOLE.values()):
        path = tmp_path / f"{index}{SUFFIXES[index % len(SUFFIXES)]}"
        path.write_bytes(data)
        assert look(path) == "right"
