"""Document: pages of a PDF, of a multi-page TIFF or of a list of pictures, each rendered at the size that is asked for.

Sizes come from headers. A PDF's page is drawn at the asked pixels, never at a fixed resolution and then resized; its
text layer gives the words and their boxes, in the page's own upright points (1/72 inch, origin top left).
PDFium (through pypdfium2) must not run in two threads: one lock holds every call, and the interpreter is free while it
draws, so a background thread may render pages while others compute.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.media import Header, is_pixels, open_picture, picture_headers
from processors.source import Source, open_source, sniff

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

# Re-entrant: the garbage collector may close a forgotten document while the same thread is within a call.
_PDFIUM = threading.RLock()

_TAIL = 1 << 16  # bytes at the end, in which a whole PDF has its end mark (7.5.5 of ISO 32000 says the last line)
_LINE_HYPHEN = 0x02  # what PDFium gives for the hyphen of a word that is broken over two lines

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word of the text layer. box: (left, top, right, bottom) of its ink, in points from the page's top left."""

    text: str
    box: Box


class Document(ABC):
    """Pages in order, counted from 0. Close it, or use it in a `with`; it may be used from several threads."""

    _closed = False

    def __init__(self, name: str, count: int, limits: Limits) -> None:
        if count > limits.max_pages:
            raise MediaError(
                f"media: {name}: {count} pages, the limit is {limits.max_pages}; send a part or raise Limits.max_pages"
            )
        self.name = name
        self._count = count
        self._limits = limits

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def size(self, page: int) -> tuple[float, float]:
        """(width, height) in points, upright, from the header alone."""

    def pixels(self, page: int) -> tuple[int, int] | None:
        """(width, height) of a page that is a picture; None where it is drawn at any size."""
        self._check(page)
        return None

    def render(
        self, page: int, width_px: int | None = None, height_px: int | None = None, *, scale: int | float | None = None
    ) -> UInt8[np.ndarray, "rows cols 3"]:
        """Draw a page over white as RGB.

        At width_px x height_px (stretched where the shapes differ), at one of them in the page's own shape, or at
        `scale` pixels a point. Raises MediaError for a page that is broken, absent or larger than the limits.
        """
        width, height = self.size(page)
        if (scale is None) == (width_px is None and height_px is None):
            raise MediaError(f"media: {self.name}: render takes width_px, height_px or both, or else scale")
        if scale is not None:
            width_px, height_px = round(width * scale), round(height * scale)
        elif height_px is None:
            assert width_px is not None
            height_px = round(height * width_px / width)
        elif width_px is None:
            width_px = round(width * height_px / height)
        # A page far longer than wide keeps a pixel of width.
        cols, rows = max(width_px or 0, 1), max(height_px, 1)
        self.check_pixels(page, cols, rows)
        return self._draw(page, cols, rows)

    def check_pixels(self, page: int, cols: int, rows: int) -> None:
        """Raise MediaError where the limits do not allow a page to be drawn at this size."""
        if cols * rows > self._limits.max_pixels:
            raise MediaError(
                f"media: {self.name}: page {page} at {cols}x{rows} pixels, the limit is {self._limits.max_pixels:,}; "
                "ask for fewer or raise Limits.max_pixels"
            )

    @abstractmethod
    def _draw(self, page: int, cols: int, rows: int) -> UInt8[np.ndarray, "rows cols 3"]: ...

    def text(self, page: int) -> str:
        """The text layer, lines parted by newlines; empty for a scan. What stands in form fields is drawn, not here."""
        self._check(page)
        return ""

    def words(self, page: int) -> tuple[Word, ...]:
        """The words of text(page), in the same order, with their places."""
        self._check(page)
        return ()

    def label(self, page: int) -> str:
        """What the document calls the page ("iv", "A-3"); its number from 1 where it says nothing."""
        self._check(page)
        return str(page + 1)

    def close(self) -> None:
        """Free the file; further calls raise. Closing twice is fine."""
        self._closed = True

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, page: int) -> None:
        if self._closed:
            raise MediaError(f"media: {self.name}: the document is closed; open it again")
        if not 0 <= page < self._count:
            raise MediaError(f"media: {self.name}: no page {page}; it has {self._count}, counted from 0")


class Pictures(Document):
    """Pictures as pages, all pages of a TIFF among them. Decoded when rendered; nothing stays open.

    Where a file states no resolution, a pixel is a point.
    """

    def __init__(self, things: list[object], limits: Limits) -> None:
        self._pages: list[tuple[object, int, Header]] = []
        for thing in things:
            source = thing if is_pixels(thing) else open_source(thing, limits)
            self._pages += [(source, index, header) for index, header in enumerate(picture_headers(source, limits))]
        if not self._pages:
            raise MediaError("media: an empty list of pictures; pass at least one")
        name = source.name if len(things) == 1 and isinstance(source, Source) else "<pictures>"
        super().__init__(name, len(self._pages), limits)

    def size(self, page: int) -> tuple[float, float]:
        self._check(page)
        header = self._pages[page][2]
        across, down = header.dpi or (72.0, 72.0)
        if not (1 < across <= 100_000 and 1 < down <= 100_000):  # also NaN
            across, down = 72.0, 72.0
        return header.width * 72 / across, header.height * 72 / down

    def pixels(self, page: int) -> tuple[int, int]:
        self._check(page)
        return self._pages[page][2].width, self._pages[page][2].height

    def _draw(self, page: int, cols: int, rows: int) -> UInt8[np.ndarray, "rows cols 3"]:
        from PIL import Image

        thing, index, _ = self._pages[page]
        pixels = open_picture(thing, self._limits, page=index)
        if pixels.shape[:2] == (rows, cols):
            return pixels
        return np.array(Image.fromarray(pixels).resize((cols, rows), Image.Resampling.BICUBIC))


class Pdf(Document):
    """A PDF. The file or its bytes stay open until `close`."""

    def __init__(self, source: Source, limits: Limits, password: str | None = None) -> None:
        self._pdf: PdfDocument | None = None
        self.name = source.name
        self._held = source.data  # PDFium reads from these bytes as long as it is open
        with source.open() as file:
            file.seek(max(source.size - _TAIL, 0))
            if b"%%EOF" not in (tail := file.read()) and b"startxref" not in tail:
                raise MediaError(f"media: {source.name}: truncated PDF (it has no end); send the whole file")
        with _PDFIUM:
            import pypdfium2
            from pypdfium2 import raw

            secret = None if password is None else password.encode() + b"\0"
            if source.path is not None:
                handle = raw.FPDF_LoadDocument(os.fsencode(source.path) + b"\0", secret)
            else:
                handle = raw.FPDF_LoadMemDocument64(self._held, source.size, secret)
            if not handle:
                raise _not_loaded(source.name, raw.FPDF_GetLastError(), password)
            self._pdf = pypdfium2.PdfDocument(handle)
            try:
                count = raw.FPDF_GetPageCount(handle)
                if not count:
                    raise MediaError(f"media: {source.name}: broken PDF (no page); send the whole file")
                super().__init__(source.name, count, limits)
                self._pdf.init_forms()
            except pypdfium2.PdfiumError as error:
                self.close()
                raise MediaError(f"media: {source.name}: broken PDF ({error}); save it anew") from error
            except MediaError:
                self.close()
                raise

    def close(self) -> None:
        with _PDFIUM:
            super().close()
            if self._pdf is not None:
                self._pdf.close()
            self._pdf = self._held = None

    def __del__(self) -> None:
        if getattr(self, "_pdf", None) is not None:
            self.close()
            message = f"media: {self.name} was never closed; use it in a `with`"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    @contextmanager
    def _page(self, page: int) -> Iterator[PdfPage]:
        """The loaded page, under the lock."""
        from pypdfium2 import PdfiumError

        with _PDFIUM:
            self._check(page)
            assert self._pdf is not None
            try:
                with closing(self._pdf[page]) as loaded:
                    yield loaded
            except PdfiumError as error:
                raise MediaError(f"media: {self.name}: page {page} is broken ({error}); send the whole file") from error

    def size(self, page: int) -> tuple[float, float]:
        from pypdfium2 import PdfiumError

        with _PDFIUM:
            self._check(page)
            assert self._pdf is not None
            try:
                width, height = self._pdf.get_page_size(page)
            except PdfiumError as error:
                raise MediaError(f"media: {self.name}: page {page} is broken ({error}); send the whole file") from error
        assert width > 0 < height, "PDFium takes Letter where a page has no area"
        return width, height

    def _draw(self, page: int, cols: int, rows: int) -> UInt8[np.ndarray, "rows cols 3"]:
        pixels = np.empty((rows, cols, 3), np.uint8)
        with self._page(page) as loaded:
            from pypdfium2 import raw

            memory = ctypes.cast(pixels.ctypes.data, ctypes.c_void_p)
            bitmap = raw.FPDFBitmap_CreateEx(cols, rows, raw.FPDFBitmap_BGR, memory, cols * 3)
            if not bitmap:
                raise MediaError(f"media: {self.name}: page {page} at {cols}x{rows} pixels is too large; ask for fewer")
            pixels.fill(255)
            where = (bitmap, loaded, 0, 0, cols, rows, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
            raw.FPDF_RenderPageBitmap(*where)
            if loaded.formenv:
                raw.FPDF_FFLDraw(loaded.formenv, *where)
            raw.FPDFBitmap_Destroy(bitmap)
        return pixels

    def text(self, page: int) -> str:
        lines = _joined(letter for letter, _ in self._letters(page)).splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def words(self, page: int) -> tuple[Word, ...]:
        words = []
        for is_space, group in groupby(self._letters(page), key=lambda letter: letter[0].isspace()):
            if not is_space:
                letters, boxes = zip(*group, strict=True)
                lefts, tops, rights, bottoms = zip(*(box for box in boxes if box is not None), strict=True)
                words.append(Word(text=_joined(letters), box=(min(lefts), min(tops), max(rights), max(bottoms))))
        return tuple(words)

    def _letters(self, page: int) -> list[tuple[str, Box | None]]:
        """What is written on the page, letter by letter, with upright boxes (None for blanks).

        Letters outside the page's crop box are not seen, and not here.
        """
        with self._page(page) as loaded:
            from pypdfium2 import raw

            text = loaded.get_textpage()
            crop, rotation = loaded.get_bbox(), loaded.get_rotation()
            sides = tuple(ctypes.c_double() for _ in range(4))
            letters: list[tuple[str, Box | None]] = []
            for index in range(text.count_chars()):
                code = raw.FPDFText_GetUnicode(text, index)
                letter = chr(code) if code else "\ufffd"  # a glyph whose font does not say what it stands for
                if letter.isspace():
                    if letter != "\r":
                        letters.append((letter, None))
                    continue
                raw.FPDFText_GetCharBox(text, index, *sides)
                left, right, bottom, top = (side.value for side in sides)
                if not (crop[0] <= (left + right) / 2 <= crop[2] and crop[1] <= (bottom + top) / 2 <= crop[3]):
                    continue
                box = _upright((left, bottom, right, top), crop, rotation)
                letters += [("-", box), ("\n", None)] if code == _LINE_HYPHEN else [(letter, box)]
            return letters

    def label(self, page: int) -> str:
        with _PDFIUM:
            number = super().label(page)
            assert self._pdf is not None
            return self._pdf.get_page_label(page) or number


def _upright(box: Box, crop: Box, rotation: int) -> Box:
    """From the page's own (left, bottom, right, top) to upright (left, top, right, bottom) with origin top left."""
    left, bottom, right, top = box
    if rotation == 0:
        return left - crop[0], crop[3] - top, right - crop[0], crop[3] - bottom
    if rotation == 90:
        return bottom - crop[1], left - crop[0], top - crop[1], right - crop[0]
    if rotation == 180:
        return crop[2] - right, bottom - crop[1], crop[2] - left, top - crop[1]
    return crop[3] - top, crop[2] - right, crop[3] - bottom, crop[2] - left


def _joined(letters: Iterable[str]) -> str:
    """Letters beyond U+FFFF may come as two halves."""
    return "".join(letters).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _not_loaded(name: str, error: int, password: str | None) -> MediaError:
    from pypdfium2 import raw

    if error == raw.FPDF_ERR_PASSWORD and password is None:
        return MediaError(f"media: {name}: encrypted PDF; pass its password")
    if error == raw.FPDF_ERR_PASSWORD:
        return MediaError(f"media: {name}: encrypted PDF and the password is wrong; pass the right one")
    if error == raw.FPDF_ERR_SECURITY:
        return MediaError(f"media: {name}: encrypted PDF of an unknown scheme; save it without encryption")
    return MediaError(f"media: {name}: broken PDF (its pages cannot be found); send the whole file")


def open_document(thing: object, limits: Limits = DEFAULT_LIMITS, password: str | None = None) -> Document:
    """Open a PDF, a picture (a TIFF has many pages) or a list of pictures, from all that open_source takes.

    Raises MediaError for what is broken, truncated, locked or beyond `limits`.
    """
    if isinstance(thing, list | tuple):
        return Pictures(list(thing), limits)
    if is_pixels(thing):
        return Pictures([thing], limits)
    source = open_source(thing, limits)
    kind = sniff(source)
    if kind == "document":
        return Pdf(source, limits, password)
    if kind == "image":
        return Pictures([source], limits)
    raise MediaError(f"media: {source.name}: holds {kind}, not a document; open it as {kind}")
