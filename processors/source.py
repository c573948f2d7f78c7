"""Source: the bytes behind anything that a user hands over, and what kind of media they are.

A path, bytes, a binary file object, a data: URI (RFC 2397) or an http(s) URL becomes one `Source`, which opens as a
seekable file. Kinds are told by content (magic bytes), never by suffix. Every bad file ends as a `MediaError`.
URLs are off unless `Limits(allow_http=True)`; `web.py` says which addresses are then fetched.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from processors.limits import DEFAULT_LIMITS, Limits, MediaError, too_big
from processors.web import download, url_name

Kind = Literal["image", "document", "video", "audio"]
BinaryFile = io.BufferedReader | io.BytesIO

_HEAD = 4096  # bytes that tell the kind: a PDF may start within 1024, an Ogg page names its codec in its first


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where media comes from: `path` on disk or `data` in memory; `name` for messages, free of secrets."""

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None), "a Source has a path or data"

    @property
    def size(self) -> int:
        """Bytes."""
        return self._stat().st_size if self.data is None else len(self.data)

    def open(self) -> BinaryFile:
        """A new seekable binary file at its start; close it."""
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        try:
            return self.path.open("rb")
        except OSError as error:
            raise MediaError(f"media: {self.name}: cannot be opened ({error.strerror}); check it") from error

    def read(self, limit: int | None = None) -> bytes:
        """The first `limit` bytes; all when None."""
        with self.open() as file:
            return file.read(-1 if limit is None else limit)

    def _stat(self) -> os.stat_result:
        assert self.path is not None
        try:
            return self.path.stat()
        except (OSError, ValueError) as error:
            raise MediaError(f"media: {self.name}: no such file; check the path") from error


def open_source(thing: object, limits: Limits = DEFAULT_LIMITS) -> Source:
    """Open a path (str, Path), bytes, a binary file object, a data: URI or an http(s) URL; a Source stays itself.

    A file object is taken whole, from its start where it can seek, and stands afterwards where it stood. It and a
    download are held in memory; long files are better passed as paths.
    Raises MediaError for what is absent, empty, larger than `limits`, unreachable or not allowed.
    """
    if isinstance(thing, Source):
        source = thing
    elif isinstance(thing, bytes | bytearray | memoryview):
        source = Source(name="<bytes>", data=bytes(thing))
    elif isinstance(thing, str) and thing[:5].lower() == "data:":
        source = _from_data_uri(thing, limits)
    elif isinstance(thing, str) and (scheme := re.match(r"([a-z][a-z0-9+.-]+)://", thing, re.IGNORECASE)):
        if scheme[1].lower() not in ("http", "https"):
            raise MediaError(
                f"media: {url_name(thing)}: {scheme[1]}:// is not read; pass a path, bytes, data: or http(s) URL"
            )
        source = Source(name=url_name(thing), data=download(thing, limits))
    elif isinstance(thing, str | os.PathLike):
        source = _from_path(thing, limits)
    elif hasattr(thing, "read"):
        source = _from_file(thing, limits)
    else:
        raise MediaError(
            f"media: a {type(thing).__name__} came; pass a path, bytes, a binary file, a data: URI or a URL"
        )
    if not source.size:
        raise MediaError(f"media: {source.name}: empty file; send the whole file")
    if source.size > limits.max_bytes:
        raise too_big(source.name, limits)
    return source


def _from_path(thing: str | os.PathLike[str], limits: Limits) -> Source:
    path = Path(thing)
    name = path.name if len(path.name) <= 80 else path.name[:77] + "..."
    if not limits.allow_files:
        raise MediaError(f"media: {name}: local files are off here; send bytes or a data: URI")
    source = Source(name=name or str(path), path=path)
    mode = source._stat().st_mode
    if stat.S_ISDIR(mode):
        raise MediaError(f"media: {source.name}: a folder; pass the files in it")
    if not stat.S_ISREG(mode):
        raise MediaError(f"media: {source.name}: not a regular file; open it and pass the file object")
    return source


def _from_file(file: Any, limits: Limits) -> Source:
    name = getattr(file, "name", None)
    name = Path(name).name if isinstance(name, str) and name else "<file>"
    try:
        start = file.tell() if file.seekable() else None
        if start is not None:
            file.seek(0)
        data = _read_up_to(file, limits.max_bytes + 1)
        if start is not None:
            file.seek(start)
    except (OSError, ValueError, AttributeError) as error:
        raise MediaError(f"media: {name}: cannot be read ({error}); open it with mode 'rb'") from error
    if data is None:
        raise MediaError(f"media: {name}: opened as text; open it with mode 'rb'")
    return Source(name=name, data=data)


def _read_up_to(file: Any, limit: int) -> bytes | None:
    """At most `limit` bytes, also from a pipe that gives less than was asked; None where text comes."""
    held = io.BytesIO()
    while held.tell() < limit and (part := file.read(min(limit - held.tell(), 1 << 20))):
        if not isinstance(part, bytes | bytearray | memoryview):
            return None
        held.write(part)
    return held.getvalue()


def _from_data_uri(uri: str, limits: Limits) -> Source:
    header, comma, body = uri.partition(",")
    mime, *options = header[5:].split(";")
    name = f"<data:{mime[:40] or 'text/plain'}>"
    if not comma:
        raise MediaError(f"media: {name}: no comma; write data:image/png;base64,... with the data behind it")
    if len(body) > 4 * limits.max_bytes:  # longest form: %xx for a byte, and line breaks
        raise too_big(name, limits)
    data = unquote_to_bytes(body)
    if "base64" in (option.strip().lower() for option in options):
        data = b"".join(data.split()).rstrip(b"=")
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as error:
            raise MediaError(f"media: {name}: broken base64 ({error}); encode the file again") from error
    return Source(name=name, data=data)


def sniff(source: Source) -> Kind:
    """Tell the kind by content, whatever the suffix says.

    Animated GIF and WebP are images. MP4, Matroska, AVI, MPEG and such containers are "video" even where they hold
    sound alone (whoever opens them sees); M4A by its brand, and Ogg without pictures, are "audio".
    Raises MediaError where the content is empty or unknown.
    """
    head = source.read(_HEAD)
    kind = _kind(head)
    if kind is None:
        text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not head:
            why = "empty file; send the whole file"
        elif text.startswith((b"<!doctype html", b"<html")):
            why = "a web page, not a file of media; pass the file's own URL"
        elif text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
            why = "SVG is not read; save it as PNG or PDF"
        else:
            why = f"unknown content (starts with {head[:8].hex(' ')}); pass a picture, PDF, video or sound"
        raise MediaError(f"media: {source.name}: {why}")
    return kind


_STARTS: dict[Kind, tuple[bytes, ...]] = {
    "image": (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",  # JPEG
        b"GIF87a",
        b"GIF89a",
        b"II*\0",  # TIFF, both orders
        b"MM\0*",
        b"II+\0",  # BigTIFF
        b"MM\0+",
        b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000, in a file and bare
        b"\xff\x4f\xff\x51",
        b"\0\0\0\x0cJXL \r\n\x87\n",  # JPEG XL
        b"\xff\x0a",
        b"\0\0\x01\0",  # ICO
        b"8BPS",  # PSD
    ),
    "video": (
        b"\x1aE\xdf\xa3",  # Matroska, WebM
        b"\0\0\x01\xba",  # MPEG program stream
        b"\0\0\x01\xb3",  # MPEG video
        b"FLV\x01",
        b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
        b"\x06\x0e+4\x02\x05\x01\x01\x0d\x01\x02",  # MXF
        b"YUV4MPEG2 ",
    ),
    "audio": (b"fLaC", b"ID3", b".snd", b"#!AMR", b"caff", b"wvpk", b"OggS", b"\x0bw"),
}
_RIFF: dict[bytes, Kind] = {b"WEBP": "image", b"AVI ": "video", b"WAVE": "audio"}
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_AUDIO_BRANDS = (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


def _kind(head: bytes) -> Kind | None:
    tag = head[4:8]
    if head.startswith(b"OggS"):
        return "video" if any(codec in head for codec in (b"\x80theora", b"OVP80", b"BBCD")) else "audio"
    for kind, starts in _STARTS.items():
        if head.startswith(starts):
            return kind
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio"
    if tag == b"ftyp":
        brand = head[8:12]
        return "image" if brand in _IMAGE_BRANDS else "audio" if brand in _AUDIO_BRANDS else "video"
    if tag in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):  # QuickTime from before ftyp
        return "video"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "image"
    if re.match(rb"P[1-7Ff]\s", head):  # PBM, PGM, PPM, PAM, PFM
        return "image"
    if b"%PDF-" in head[:1024]:
        return "document"
    if any(head[first : first + 2 * step + 1 : step] == b"GGG" for first, step in ((0, 188), (4, 192))):
        return "video"  # MPEG transport stream, bare or with time codes
    return "audio" if _is_mpeg_audio(head) else None


def _is_mpeg_audio(head: bytes) -> bool:
    """Starts with a frame header of MP3 (layer III or II; ISO 11172-3, 2.4.1.3) or AAC (ADTS)."""
    if len(head) < 4 or head[0] != 0xFF:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    if head[1] & 0xF6 == 0xF0:  # ADTS: twelve bits of sync, layer 0
        return head[2] >> 2 & 15 < 13
    return head[1] >> 5 == 7 and version != 1 and layer in (1, 2) and head[2] >> 4 < 15 and head[2] >> 2 & 3 < 3
