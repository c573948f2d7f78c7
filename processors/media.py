"""Media: open any picture that a user has, as RGB.

From a file of any kind that `open_source` takes (PNG, JPEG, GIF, WebP, AVIF, TIFF, BMP, JPEG 2000, PNM, PSD), a
PIL image, a NumPy array or a torch tensor. What a viewer would show is what comes out: turned by its EXIF orientation,
transparency laid over a background, 16 bits scaled (not clipped) to 8. Colours are the file's own: ICC profiles are
not applied, as in the models' training. Sizes come from headers; limits are checked before any pixel is decoded.

Files, URLs and kinds: `source.py`. Documents: `pdf.py`.
"""

from __future__ import annotations

import importlib
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from jaxtyping import Shaped, UInt8

from processors.limits import DEFAULT_LIMITS, Limits, MediaError
from processors.pixels import Background, channels_last, pixels_of_array, pixels_of_image, turned
from processors.source import BinaryFile, Kind, Source, open_source, sniff

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Frame",
    "Header",
    "Kind",
    "Limits",
    "MediaError",
    "Source",
    "is_pixels",
    "open_picture",
    "open_pictures",
    "open_source",
    "picture_count",
    "picture_headers",
    "picture_size",
    "sniff",
]

# Content → PIL's name of the format and the plugin that reads it. PIL.Image.open would try every format it knows.
_FORMATS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"\x89PNG",), "PNG", "PngImagePlugin"),
    ((b"\xff\xd8\xff",), "JPEG", "JpegImagePlugin"),
    ((b"GIF8",), "GIF", "GifImagePlugin"),
    ((b"RIFF",), "WEBP", "WebPImagePlugin"),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF", "TiffImagePlugin"),
    ((b"BM",), "BMP", "BmpImagePlugin"),
    ((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"), "JPEG2000", "Jpeg2KImagePlugin"),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF"), "PPM", "PpmImagePlugin"),
    ((b"8BPS",), "PSD", "PsdImagePlugin"),
)
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose further images are frames in time; TIFF's are pages

# What PIL's decoders raise for bytes that are not what they claim; warnings are among them where Python makes
# them errors.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    Warning,
    struct.error,
    zlib.error,
)

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image of a file. seconds: how long it is shown; None for a page and for a picture that stands still."""

    pixels: UInt8[np.ndarray, "rows cols 3"]
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of a picture before it is decoded. Upright width and height in pixels; dpi where the file says."""

    width: int
    height: int
    dpi: tuple[float, float] | None


def open_picture(
    thing: object, limits: Limits = DEFAULT_LIMITS, background: Background = "white", page: int = 0
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Open one picture as RGB, 0..255; of an animation the first frame, of a TIFF the page asked for.

    A PIL image gives the frame it stands at. Arrays are (rows, cols), (rows, cols, channels) or (channels, rows, cols)
    with 1, 3 or 4 channels; where a shape reads both ways NumPy's channels stand last and torch's first. Their
    values: uint8 as they are, bool, uint16 over its whole range, floats from 0 to 1. The result may share memory with
    an array that was passed. `background`: a CSS colour name, "#rrggbb" or (r, g, b), seen through transparent pixels.
    Raises MediaError for what is broken, truncated, unknown or beyond `limits`.
    """
    array = _array(thing, limits)
    if array is not None:
        return pixels_of_array(array, "<array>", background)
    with _opened(thing, limits) as (picture, name):
        if page:
            with _reading(name, picture.format):
                picture.seek(page)
        return _decode(picture, name, limits, background)


def open_pictures(thing: object, limits: Limits = DEFAULT_LIMITS, background: Background = "white") -> Iterator[Frame]:
    """Yield all frames of an animation with their times, or all pages of a TIFF, one at a time.

    A frame without a stated time counts 0.1 s, as browsers show it. A JPEG's further images are previews and gain
    maps and stay out. Raises as open_picture, and MediaError for more than `limits` allow before the first is decoded.
    """
    array = _array(thing, limits)
    if array is not None:
        yield Frame(pixels=pixels_of_array(array, "<array>", background), seconds=None)
        return
    with _opened(thing, limits) as (picture, name):
        count = _count(picture, name, limits)
        start = picture.tell()
        try:
            for index in range(count):
                if count > 1:
                    with _reading(name, picture.format):
                        picture.seek(index)
                pixels = _decode(picture, name, limits, background)
                timed = count > 1 and picture.format in _ANIMATED
                yield Frame(pixels=pixels, seconds=_seconds(picture) if timed else None)
        finally:
            if picture is thing and count > 1:
                picture.seek(start)


def picture_size(thing: object, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels as open_picture gives them, from the header alone.

    Only a PIL image of a PNG may be decoded for it. Raises MediaError as open_picture does for what a header shows.
    """
    header = next(picture_headers(thing, limits))
    return header.width, header.height


def picture_headers(thing: object, limits: Limits = DEFAULT_LIMITS) -> Iterator[Header]:
    """Yield the header of each page of a TIFF, of the one picture otherwise; decodes none. Raises as picture_size."""
    array = _array(thing, limits)
    if array is not None:
        yield Header(width=array.shape[1], height=array.shape[0], dpi=None)
        return
    with _opened(thing, limits) as (picture, name):
        pages = _count(picture, name, limits) if picture.format == "TIFF" and picture is not thing else 1
        for page in range(pages):
            if page:
                with _reading(name, picture.format):
                    picture.seek(page)
                _check_size(name, *picture.size, limits)
            (width, height), dpi = picture.size, picture.info.get("dpi")
            dpi = (float(dpi[0]), float(dpi[1])) if dpi else None
            if _orientation(picture) >= 5:
                width, height, dpi = height, width, (dpi[1], dpi[0]) if dpi else None
            yield Header(width=width, height=height, dpi=dpi)


def picture_count(thing: object, limits: Limits = DEFAULT_LIMITS) -> int:
    """How many frames or pages open_pictures yields; decodes none."""
    if _array(thing, limits) is not None:
        return 1
    with _opened(thing, limits) as (picture, name):
        return _count(picture, name, limits)


@contextmanager
def _reading(name: str, format: str | None) -> Iterator[None]:
    """Turn what decoders raise into a MediaError. The body calls decoders and nothing else."""
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    what = format or "picture"
    try:
        yield
    except MediaError:
        raise
    except (DecompressionBombError, DecompressionBombWarning) as error:  # frames larger than the header said
        raise MediaError(f"media: {name}: {what} of too many pixels ({error}); make it smaller") from error
    except _DECODER_ERRORS as error:
        why = f"{type(error).__name__} {error}" if isinstance(error, KeyError) or not str(error) else str(error)
        if isinstance(error, EOFError) or "truncated" in why.lower():
            raise MediaError(f"media: {name}: truncated {what} ({why}); send the whole file") from error
        raise MediaError(f"media: {name}: broken {what} ({why}); save it anew or send another copy") from error


@contextmanager
def _opened(thing: object, limits: Limits) -> Iterator[tuple[Image, str]]:
    """A PIL image whose header is read and whose size is allowed, and its name. Closes what it opened."""
    if _is_pil(thing):
        _check_size("<PIL image>", *thing.size, limits)
        yield thing, "<PIL image>"
        return
    source = open_source(thing, limits)
    with source.open() as file, _header(file, source) as picture:
        _check_size(source.name, *picture.size, limits)
        yield picture, source.name


def _header(file: BinaryFile, source: Source) -> Image:
    from PIL import Image

    head = source.read(16)
    kind = sniff(source)
    if kind != "image":
        raise MediaError(f"media: {source.name}: holds {kind}, not a picture; open it as {kind}")
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        format, plugin = "AVIF", "AvifImagePlugin"
    else:
        found = [(format, plugin) for starts, format, plugin in _FORMATS if head.startswith(starts)]
        if not found:
            what = "HEIC" if head[4:8] == b"ftyp" else "ICO" if head.startswith(b"\0\0\x01\0") else "JPEG XL"
            raise MediaError(f"media: {source.name}: {what} is not read; save it as JPEG, PNG or WebP")
        format, plugin = found[0]
    importlib.import_module(f"PIL.{plugin}")
    # The plugin itself and not PIL.Image.open, whose bomb warning would come before, and beside, our limits.
    read_header, _ = Image.OPEN[format]
    with _reading(source.name, format):
        return read_header(file, "")


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"media: {name}: {width}x{height} pixels; a picture has at least one")
    if width * height > limits.max_pixels:
        raise MediaError(
            f"media: {name}: {width}x{height} pixels, the limit is {limits.max_pixels:,}; "
            "make it smaller or raise Limits.max_pixels"
        )


def _count(picture: Image, name: str, limits: Limits) -> int:
    animated = picture.format in _ANIMATED
    if not animated and picture.format != "TIFF":
        return 1
    with _reading(name, picture.format):
        count = getattr(picture, "n_frames", 1)
    if count > (most := limits.max_frames if animated else limits.max_pages):
        unit, limit = ("frames", "max_frames") if animated else ("pages", "max_pages")
        raise MediaError(f"media: {name}: {count} {unit}, the limit is {most}; send a part or raise Limits.{limit}")
    return count


def _seconds(picture: Image) -> float:
    return float(picture.info.get("duration") or 100) / 1000


def _decode(picture: Image, name: str, limits: Limits, background: Background) -> UInt8[np.ndarray, "rows cols 3"]:
    _check_size(name, *picture.size, limits)
    orientation = _orientation(picture)
    with _reading(name, picture.format):
        picture.load()
        pixels = pixels_of_image(picture, background)
    return turned(pixels, orientation)


def _orientation(picture: Image) -> int:
    """EXIF orientation, 1..8. Damaged EXIF leaves the picture as it is, as in browsers. PIL turns TIFF on its own."""
    from PIL import Image

    if picture.format == "TIFF":
        return 1
    try:
        file = getattr(picture, "fp", None)
        if picture.format == "PNG" and "exif" not in picture.info and file is not None:
            # PIL would decode the pixels to look behind them.
            late = _late_exif(file)
            exif = Image.Exif()
            exif.load(late) if late else exif.update(Image.Image.getexif(picture))
        else:
            exif = picture.getexif()
        value = exif.get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _late_exif(file: BinaryFile) -> bytes:
    """The eXIf chunk of a PNG wherever it stands (PNG 3rd edition, 5.6: also behind the pixels); empty if none."""
    here = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)
    finally:
        file.seek(here)
    return b""


def is_pixels(thing: object) -> bool:
    """A picture in memory (PIL image, NumPy array, torch tensor), as against something that open_source takes."""
    torch = sys.modules.get("torch")
    return _is_pil(thing) or isinstance(thing, np.ndarray) or (torch is not None and torch.is_tensor(thing))


def _is_pil(thing: object) -> TypeGuard[Image]:
    pil = sys.modules.get("PIL.Image")  # none can have been passed where it was never imported
    return pil is not None and isinstance(thing, pil.Image)


def _array(thing: object, limits: Limits) -> Shaped[np.ndarray, "rows cols channels"] | None:
    """A NumPy array or torch tensor with its channels last; None for anything else."""
    torch = sys.modules.get("torch")
    if isinstance(thing, np.ndarray):
        array = channels_last(thing, "<array>", channels_first=False)
    elif torch is not None and torch.is_tensor(thing):
        given: Any = thing
        tensor = given.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = channels_last(array, "<tensor>", channels_first=True)
    else:
        return None
    _check_size("<array>", array.shape[1], array.shape[0], limits)
    return array
