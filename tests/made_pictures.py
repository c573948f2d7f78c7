"""Pictures and documents for the tests, made in code: every format with known pixels, PDFs with known words."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def scene(width: int = 48, height: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth picture whose four corners differ, so that every turn and every loss of rows shows."""
    rng = np.random.default_rng(seed)
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    corners = np.array([[250, 20, 30], [20, 240, 40], [30, 40, 230], [240, 230, 20]]) + rng.integers(-15, 5, (4, 3))
    top, bottom = corners[0] * (1 - across) + corners[1] * across, corners[2] * (1 - across) + corners[3] * across
    return np.rint(top * (1 - down) + bottom * down).clip(0, 255).astype(np.uint8)


def saved(picture: Image.Image | np.ndarray, format: str, orientation: int = 1, **options: Any) -> bytes:
    """A file of one picture, with its EXIF orientation."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def saved_all(frames: list[np.ndarray], format: str, **options: Any) -> bytes:
    """An animation or a TIFF of several pages."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    return saved(first, format, save_all=True, append_images=others, **options)


def png(width: int, height: int, data: bytes = b"", chunks: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG of a stated size that holds `data` (by default nothing) and further chunks behind it."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", data),
        *chunks,
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A PDF page: words of Helvetica at (x, baseline from the bottom, size), and anything else it draws."""

    words: tuple[tuple[str, float, float, float], ...] = ()
    width: float = 612
    height: float = 792
    attributes: str = ""
    content: str = ""


def pdf(pages: list[Page], *, catalog: str = "", count: int | None = None, objects: tuple[str, ...] = ()) -> bytes:
    """A PDF of text pages. `count` may lie about their number; further `objects` follow from number 4 on."""
    first = 4 + len(objects)
    kids = " ".join(f"{first + 2 * index} 0 R" for index in range(len(pages)))
    bodies = [
        f"<</Type/Catalog/Pages 2 0 R{catalog}>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages) if count is None else count}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
        *objects,
    ]
    for index, page in enumerate(pages):
        lines = [f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET" for text, x, y, size in page.words]
        content = "\n".join([*lines, page.content])
        bodies += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {page.width} {page.height}]/Contents {first + 2 * index + 1} 0 R"
            f"/Resources<</Font<</F1 3 0 R>>>>{page.attributes}>>",
            f"<</Length {len(content)}>>stream\n{content}\nendstream",
        ]
    out, places = [b"%PDF-1.7\n"], []
    size = len(out[0])
    for number, body in enumerate(bodies, start=1):
        places.append(size)
        out.append(f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1"))
        size += len(out[-1])
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    out.append(
        f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}"
        f"trailer<</Size {len(bodies) + 1}/Root 1 0 R>>\nstartxref\n{size}\n%%EOF\n".encode()
    )
    return b"".join(out)


def numbered_pages(count: int) -> list[Page]:
    """Pages that say "page 1", "page 2" ... at a known place."""
    return [Page(words=((f"page {number}", 72, 700, 24),)) for number in range(1, count + 1)]


def form(stored: bool = True) -> bytes:
    """A page with a field in which "Ada" is written, 100 to 300 points from the left, 162 to 192 from the top.

    stored: whether the file also holds how that looks.
    """
    look = "BT /F1 18 Tf 2 8 Td (Ada) Tj ET"
    field = "<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(Ada)/Rect[100 600 300 630]/DA(/F1 18 Tf 0 g)/F 4/P 6 0 R"
    field += "/AP<</N 5 0 R>>>>" if stored else ">>"
    drawn = f"<</Type/XObject/Subtype/Form/BBox[0 0 200 30]/Resources<</Font<</F1 3 0 R>>>>/Length {len(look)}>>"
    catalog = "/AcroForm<</Fields[4 0 R]/DR<</Font<</F1 3 0 R>>>>/DA(/F1 12 Tf 0 g)>>"
    return pdf(
        [Page(attributes="/Annots[4 0 R]")],
        catalog=catalog,
        objects=(field, f"{drawn}stream\n{look}\nendstream"),
    )


def locked(document: bytes, password: str) -> bytes:
    """The same PDF, encrypted (RC4 of 128 bits, as PDF 1.4 has it)."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(document)))
    writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()
