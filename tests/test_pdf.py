"""Laws of documents: pages at the asked size, words where their ink is, everything closed, one lock for all threads."""

import gc
import io
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import Page, form, locked, numbered_pages, pdf, saved, saved_all, scene
from PIL import Image

from processors.media import Limits, MediaError
from processors.pdf import Document, open_document

PNG = saved(scene(), "PNG")
TEXT = Page(
    words=(("Invoice", 72, 700, 24), ("Total: 42.50", 72, 100, 12), ("EUR", 300, 100, 12)),
    content="1 0 0 rg 0 782 10 10 re f 0 0 1 rg 602 0 10 10 re f",  # red at the top left, blue at the bottom right
)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def ink(pixels: np.ndarray, box: tuple[float, float, float, float], scale: float) -> tuple[float, float, float, float]:
    """Where the dark pixels within a box and a margin of 3 pixels lie, in points."""
    left, top, right, bottom = (round(side * scale) for side in box)
    left, top = max(left - 3, 0), max(top - 3, 0)
    down, across = np.nonzero(pixels[top : bottom + 3, left : right + 3].max(-1) < 128)
    sides = across.min() + left, down.min() + top, across.max() + left + 1, down.max() + top + 1
    return sides[0] / scale, sides[1] / scale, sides[2] / scale, sides[3] / scale


def test_a_pdf_opens_from_every_door_with_its_text_and_words(tmp_path: Path) -> None:
    data = pdf([TEXT, *numbered_pages(2)])
    path = tmp_path / "~ Rechnung für Ärzte.png"
    path.write_bytes(data)
    for thing in (data, path, str(path), io.BytesIO(data)):
        with open_document(thing) as document:
            assert len(document) == 3
            assert document.size(0) == (612, 792)
            assert document.text(0) == "Invoice\nTotal: 42.50 EUR"
            assert [word.text for word in document.words(0)] == ["Invoice", "Total:", "42.50", "EUR"]
            assert [document.text(page) for page in (1, 2)] == ["page 1", "page 2"]
            assert [document.label(page) for page in range(3)] == ["1", "2", "3"]


@given(width=st.integers(1, 700), height=st.integers(1, 700))
@settings(deadline=None, max_examples=15)
def test_a_page_is_drawn_at_the_very_size_that_is_asked_for(width: int, height: int) -> None:
    with open_document(pdf([TEXT])) as document:
        both = document.render(0, width, height)
        assert (both.shape, both.dtype) == ((height, width, 3), np.uint8)
        assert document.render(0, width).shape == (max(1, round(792 * width / 612)), width, 3)
        assert document.render(0, height_px=height).shape == (height, max(1, round(612 * height / 792)), 3)
        assert document.render(0, scale=width / 612).shape == document.render(0, width).shape


def test_detail_grows_with_the_asked_size() -> None:
    """Drawn, and not resized: small letters have sharp edges at every size."""
    with open_document(pdf([Page(words=(("fine print", 10, 10, 4),), width=60, height=30)])) as document:
        for scale in (4, 16):
            pixels = document.render(0, scale=scale)
            assert pixels.min() < 10
            grey = ((pixels > 30) & (pixels < 225)).mean()
            assert grey < 0.35 / scale


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_a_turned_page_is_upright_with_its_words_where_their_ink_is(rotate: int) -> None:
    crop = "/CropBox[20 30 592 752]"
    corners = "1 0 0 rg 20 742 10 10 re f 0 0 1 rg 582 30 10 10 re f"
    page = Page(words=TEXT.words, content=corners, attributes=f"/Rotate {rotate}{crop}")
    with open_document(pdf([page])) as document:
        assert document.size(0) == ((572, 722) if rotate % 180 == 0 else (722, 572))
        pixels = document.render(0, scale=2)
        assert pixels.shape == ((1444, 1144, 3) if rotate % 180 == 0 else (1144, 1444, 3))
        red = {0: (5, 5), 90: (5, -5), 180: (-5, -5), 270: (-5, 5)}[rotate]
        assert tuple(pixels[red]) == RED
        assert tuple(pixels[-red[0], -red[1]]) == BLUE
        words = document.words(0)
        assert sorted(word.text for word in words) == ["42.50", "EUR", "Invoice", "Total:"]
        for word in words:
            assert ink(pixels, word.box, 2) == pytest.approx(word.box, abs=0.75)


def test_text_that_reads_upright_on_a_turned_page_stays_in_order() -> None:
    content = "BT /F1 20 Tf 0 1 -1 0 100 72 Tm (first line) Tj ET BT /F1 20 Tf 0 1 -1 0 140 72 Tm (second one) Tj ET"
    with open_document(pdf([Page(content=content, attributes="/Rotate 90")])) as document:
        assert document.size(0) == (792, 612)
        assert document.text(0) == "first line\nsecond one"
        first, _, second, _ = document.words(0)
        assert first.box[0] == pytest.approx(second.box[0], abs=2)
        assert first.box[3] < second.box[1]
        assert first.box[2] - first.box[0] > first.box[3] - first.box[1]


def test_words_beyond_the_crop_box_and_broken_words_are_told_as_seen() -> None:
    words = (("exam-", 72, 700, 20), ("ple", 72, 670, 20), ("unseen", 10, 10, 20))
    with open_document(pdf([Page(words=words, attributes="/CropBox[50 50 612 792]")])) as document:
        assert document.text(0) == "exam-\nple"
        assert [word.text for word in document.words(0)] == ["exam-", "ple"]


@given(
    st.lists(
        st.tuples(st.text("abcXYZ.,:-0123456789 ", min_size=1), st.integers(40, 400), st.integers(40, 700)), max_size=6
    )
)
@settings(deadline=None, max_examples=25)
def test_the_words_are_those_of_the_text(lines: list[tuple[str, int, int]]) -> None:
    page = Page(words=tuple((text, x, y, 10) for text, x, y in lines))
    with open_document(pdf([page])) as document:
        words = document.words(0)
        assert [word.text for word in words] == document.text(0).split()
        for word in words:
            left, top, right, bottom = word.box
            assert left <= right
            assert top <= bottom


def test_page_labels_are_the_documents_own() -> None:
    labels = "/PageLabels<</Nums[0<</S/r>>2<</S/D/P(A-)>>]>>"
    with open_document(pdf(numbered_pages(4), catalog=labels)) as document:
        assert [document.label(page) for page in range(4)] == ["i", "ii", "A-1", "A-2"]


@pytest.mark.parametrize("stored", [True, False])
def test_what_is_written_in_a_form_is_drawn(stored: bool) -> None:
    with open_document(form(stored)) as document:
        dark = document.render(0, scale=1).max(-1) < 128
        assert dark[162:192, 100:300].sum() > 50
        assert dark.sum() == dark[162:192, 100:300].sum()


def test_pictures_saved_as_pdf_come_back(tmp_path: Path) -> None:
    picture = scene(120, 80)
    with open_document(saved(picture, "PDF", resolution=72)) as document:
        assert document.size(0) == (120, 80)
        assert document.text(0) == ""
        assert document.words(0) == ()
        near = np.abs(document.render(0, scale=1).astype(int) - picture)
        assert near.mean() < 3


def test_an_encrypted_pdf_wants_its_password(tmp_path: Path) -> None:
    data = locked(pdf(numbered_pages(3)), "geheim-ä")
    path = tmp_path / "locked.pdf"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"media: locked\.pdf: encrypted PDF; pass its password"):
        open_document(path)
    with pytest.raises(MediaError, match="the password is wrong"):
        open_document(data, password="offen")
    for thing in (path, data):
        with open_document(thing, password="geheim-ä") as document:
            assert document.text(2) == "page 3"
    with open_document(pdf([TEXT]), password="not needed") as document:
        assert len(document) == 1


def test_an_unknown_encryption_is_named() -> None:
    data = locked(pdf(numbered_pages(1)), "x").replace(b"/Standard", b"/Standarx")
    with pytest.raises(MediaError, match=r"unknown scheme; save it without|broken PDF"):
        open_document(data)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_a_truncated_pdf_is_an_error(share: float) -> None:
    for data in (pdf(numbered_pages(3)), saved(scene(300, 200), "PDF")):
        with pytest.raises(MediaError, match=r"truncated PDF \(it has no end\); send the whole file"):
            open_document(data[: int(len(data) * share)])


def test_a_broken_pdf_is_an_error() -> None:
    for data in (b"%PDF-1.7\n%%EOF\n", b"%PDF-1.7\n" + b"junk " * 100 + b"%%EOF"):
        with pytest.raises(MediaError, match="broken PDF"):
            open_document(data)
    with pytest.raises(MediaError, match=r"broken PDF \(no page\)"):
        open_document(pdf([]))
    with open_document(pdf(numbered_pages(3), count=5)) as document:
        for look in (document.size, document.text, document.words, lambda page: document.render(page, 100)):
            assert document.size(2) == (612, 792)
            with pytest.raises(MediaError, match="page 4 is broken"):
                look(4)


def test_forms_that_cannot_be_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdfium2

    monkeypatch.setattr(pypdfium2.raw, "FPDFDOC_InitFormFillEnvironment", lambda *_: None)
    with pytest.raises(MediaError, match=r"broken PDF \(Initializing form env failed"):
        open_document(pdf([Page()], catalog="/AcroForm<</Fields[4 0 R]>>", objects=("<</FT/Tx/T(a)>>",)))


def test_too_many_pages_are_refused_from_the_header() -> None:
    many = pdf([Page()] * 100_000)
    start = time.monotonic()
    for data in (many, pdf(numbered_pages(3), count=100_000)):
        with pytest.raises(MediaError, match="100000 pages, the limit is 10000; send a part or raise Limits"):
            open_document(data)
    assert time.monotonic() - start < 2
    with open_document(pdf(numbered_pages(3)), Limits(max_pages=3)) as document:
        assert len(document) == 3


def test_pages_of_a_monstrous_size_are_refused_before_memory_is_taken() -> None:
    with open_document(pdf([Page(width=1e6, height=1e6), Page(width=1, height=1e6)])) as document:
        for look in (
            lambda: document.render(0, scale=1),
            lambda: document.render(0, 20_000),
            lambda: document.render(1, 20),
            lambda: document.render(0, 1, 200_000_000),
        ):
            with pytest.raises(MediaError, match=r"pixels, the limit is 178,956,970; ask for fewer"):
                look()
        assert document.render(0, 50).shape == (50, 50, 3)
        assert document.render(1, height_px=50).shape == (50, 1, 3)
    with (
        open_document(pdf([TEXT]), Limits(max_pixels=2**40)) as document,
        pytest.raises(MediaError, match="800000000x1 pixels is too large; ask for fewer"),
    ):
        document.render(0, 800_000_000, 1)


def test_wrong_asks_say_what_is_right() -> None:
    with open_document(pdf([TEXT])) as document:
        for page in (-1, 1):
            with pytest.raises(MediaError, match=f"no page {page}; it has 1, counted from 0"):
                document.render(page, 100)
        with pytest.raises(MediaError, match="width_px, height_px or both, or else scale"):
            document.render(0)
        with pytest.raises(MediaError, match="or else scale"):
            document.render(0, 100, scale=1)
    for look in (document.size, document.text, document.words, document.label, lambda page: document.render(page, 9)):
        with pytest.raises(MediaError, match="the document is closed; open it again"):
            look(0)
    document.close()
    with pytest.raises(MediaError, match="holds audio, not a document"):
        open_document(b"fLaC" + bytes(100))


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_everything_is_closed(tmp_path: Path) -> None:
    from pypdfium2.internal import ObjectTracker

    good, bad = tmp_path / "good.pdf", tmp_path / "bad.pdf"
    good.write_bytes(pdf(numbered_pages(3)))
    bad.write_bytes(pdf([]))
    before = _open_files()
    for _ in range(20):
        with open_document(good) as document:
            document.render(1, 50)
            document.words(1)
            document.text(2)
        for failing in (lambda: open_document(bad), lambda: open_document(good, Limits(max_pages=2))):
            with pytest.raises(MediaError):
                failing()
    assert _open_files() == before
    assert not any(ObjectTracker.values())
    good.unlink()


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_a_forgotten_document_is_closed_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "text.pdf"
    path.write_bytes(pdf([TEXT]))
    before = _open_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        document = open_document(path)
        assert _open_files() > before
        del document
        gc.collect()
    assert _open_files() == before
    assert [str(warning.message) for warning in caught] == ["media: text.pdf was never closed; use it in a `with`"]


def test_threads_draw_what_one_thread_draws() -> None:
    data = pdf(numbered_pages(40))
    with open_document(data) as document:
        alone = [document.render(page, 100) for page in range(40)]
        found: dict[tuple[int, int], np.ndarray] = {}
        failed = []

        def draw(worker: int) -> None:
            try:
                for page in range(40):
                    found[worker, page] = document.render(page, 100)
                    assert document.text(page) == f"page {page + 1}"
                    with open_document(data) as other:
                        other.size(page)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=draw, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert all((found[worker, page] == alone[page]).all() for worker in range(4) for page in range(40))


def test_the_interpreter_is_free_while_a_page_is_drawn() -> None:
    """A background thread that renders leaves most of the time to others."""
    heavy = Page(content="\n".join(f"{i % 600} {i % 700} m {i * 7 % 600} {i * 3 % 700} l S" for i in range(3000)))
    with open_document(pdf([heavy])) as document:
        drawn = threading.Thread(target=lambda: document.render(0, 4000))
        drawn.start()
        longest, last = 0.0, time.perf_counter()
        start = last
        while drawn.is_alive():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert longest < 0.5 * (last - start)


@pytest.mark.parametrize("door", ["file", "list"])
def test_pages_of_a_tiff_and_a_list_of_pictures_are_a_document(door: str, tmp_path: Path) -> None:
    pages = [scene(60 + 10 * index, 40, index) for index in range(3)]
    path = tmp_path / "scan.tif"
    path.write_bytes(saved_all(pages, "TIFF", dpi=(144, 72)))
    thing = path if door == "file" else [path, PNG, Image.fromarray(pages[0]), pages[1], io.BytesIO(PNG)]
    with open_document(thing) as document:
        assert isinstance(document, Document)
        assert len(document) == (3 if door == "file" else 7)
        assert document.size(1) == (35, 40)
        assert document.text(0) == ""
        assert document.words(0) == ()
        assert document.label(2) == "3"
        for page in range(3):
            assert (document.render(page, 60 + 10 * page, 40) == pages[page]).all()
        half = np.array(Image.fromarray(pages[2]).resize((40, 20), Image.Resampling.BICUBIC))
        assert (document.render(2, 40, 20) == half).all()
        if door == "list":
            assert document.name == "<pictures>"
            assert document.size(3) == (48, 32)
            assert (document.render(5, scale=1) == pages[1]).all()
        with pytest.raises(MediaError, match="no page"):
            document.size(len(document))
    with pytest.raises(MediaError, match="closed"):
        document.size(0)


def test_one_picture_in_memory_is_a_document_of_a_page() -> None:
    with open_document(scene()) as document:
        assert len(document) == 1
        assert document.size(0) == (48, 32)


def test_a_senseless_resolution_counts_as_none() -> None:
    with open_document(saved(scene(), "TIFF", dpi=(0.001, 0.001))) as document:
        assert document.size(0) == (48, 32)
    with open_document(saved(scene(), "TIFF")) as document:  # which PIL reads as one pixel an inch
        assert document.size(0) == (48, 32)
        assert document.pixels(0) == (48, 32)
    with open_document(pdf([TEXT])) as document:
        assert document.pixels(0) is None


def test_a_list_that_is_no_list_of_pictures_is_refused() -> None:
    with pytest.raises(MediaError, match="an empty list"):
        open_document([])
    with pytest.raises(MediaError, match="holds document, not a picture"):
        open_document([pdf([TEXT])])
    with pytest.raises(MediaError, match="7 pages, the limit is 6"):
        open_document([scene()] * 7, Limits(max_pages=6))
