"""Laws of sources: every door gives the same bytes, kinds are told by content, limits hold before decoding."""

import asyncio
import base64
import io
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from made_pictures import Page, pdf, saved, saved_all, scene

from processors import web
from processors.media import Limits, MediaError, Source, open_source, sniff

PNG = saved(scene(), "PNG")


def test_every_door_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(PNG)
    halfway = io.BytesIO(PNG)
    halfway.seek(17)
    encoded = base64.b64encode(PNG).decode()
    lines = "\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, PNG), os.close(write))).start()
    with path.open("rb") as file, os.fdopen(read, "rb", buffering=0) as pipe:
        doors = [
            *(path, str(path), PNG, bytearray(PNG), memoryview(PNG), halfway, file, pipe),
            *(f"data:image/png;base64,{encoded}", f"data:image/png;charset=x;BASE64,{lines}"),
            *(f"data:;base64,{encoded.rstrip('=')}", f"DATA:image/png,{quote_from_bytes(PNG)}"),
        ]
        for door in doors:
            source = open_source(door)
            assert source.read() == PNG
            assert source.size == len(PNG)
            assert source.read(8) == PNG[:8]
            with source.open() as opened:
                assert opened.seek(-4, 2)
                assert opened.read() == PNG[-4:]
            assert open_source(source) is source
        assert file.tell() == 0
    assert halfway.tell() == 17


def test_a_name_says_which_file_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(PNG)
    long = tmp_path / ("x" * 120 + ".png")
    long.write_bytes(PNG)
    with (tmp_path / "scene.png").open("rb") as file:
        names = [open_source(thing).name for thing in (tmp_path / "scene.png", file, PNG, io.BytesIO(PNG), long)]
    assert names == ["scene.png", "scene.png", "<bytes>", "<file>", "x" * 77 + "..."]
    assert open_source("data:image/png,abc").name == "<data:image/png>"
    assert open_source("data:,abc").name == "<data:text/plain>"
    assert web.url_name("https://ada:secret@example.org:8080/a/b.png?signature=secret") == "example.org/a/b.png"
    assert web.url_name("http://[broken") == "<URL>"
    assert "scene" in repr(open_source(tmp_path / "scene.png"))
    assert repr(PNG[:4]) not in repr(open_source(PNG))


def test_what_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    gone = tmp_path / "gone.png"
    gone.write_bytes(PNG)
    source = open_source(gone)
    gone.unlink()
    closed = io.BytesIO(PNG)
    closed.close()
    for thing, words in [
        (tmp_path / "absent.png", "absent.png: no such file"),
        ("a\0b.png", "no such file"),
        ("iVBORw0KGgo" * 1000, "no such file"),
        (tmp_path, "a folder; pass the files in it"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "empty.png", "empty file"),
        (b"", "empty file"),
        (io.StringIO("text"), "opened as text"),
        (closed, "cannot be read"),
        (source, "gone.png: no such file"),
        (7, "a int came; pass a path"),
        (None, "a NoneType came"),
        ("file:///etc/hostname", "file:// is not read"),
        ("ftp://example.org/a.png", "ftp:// is not read"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!!!", "broken base64"),
        ("data:image/png;base64,A", "broken base64"),
        ("https://example.org/a.png?key=1", "example.org/a.png: URLs are off; pass Limits"),
    ]:
        with pytest.raises(MediaError, match="media: ") as error:
            open_source(thing)
        assert words in str(error.value)
        assert len(str(error.value)) < 250
    with pytest.raises(MediaError, match=r"gone\.png: cannot be opened"):
        source.open()
    with pytest.raises(MediaError, match="local files are off"):
        open_source(tmp_path / "empty.png", Limits(allow_files=False))


def test_more_bytes_than_the_limit_are_refused_at_every_door(tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(PNG)
    encoded = "data:image/png;base64," + base64.b64encode(PNG).decode()
    endless = io.BufferedReader(_Zeros())
    for thing in (tmp_path / "scene.png", PNG, io.BytesIO(PNG), encoded, "data:," + "%20" * 1000, endless):
        with pytest.raises(MediaError, match="more than the limit of 99 bytes; raise Limits"):
            open_source(thing, Limits(max_bytes=99))
    assert open_source(PNG, Limits(max_bytes=len(PNG))).size == len(PNG)
    with pytest.raises(MediaError, match="more than the limit"):
        open_source(open_source(PNG), Limits(max_bytes=len(PNG) - 1))


class _Zeros(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def _sound_or_video(container: str, codec: str) -> bytes:
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        if codec in ("mpeg4", "libx264", "libvpx-vp9", "libtheora", "flv", "mpeg2video"):
            stream: Any = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            frames = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, np.uint8)) for i in range(5)]
        else:
            stream = out.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame(format=stream.format.name, layout="mono", samples=stream.frame_size or 1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate = 48000
            frames = [frame]
        for index, frame in enumerate(frames):
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def test_the_kind_is_told_by_content_whatever_the_suffix(tmp_path: Path) -> None:
    picture = scene(32, 32)
    made: dict[str, list[bytes]] = {
        "image": [
            *(saved(picture, name) for name in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "AVIF", "ICO", "PPM")),
            *(saved(picture, name) for name in ("JPEG2000", "DIB")[:1]),
            *(saved_all([picture, picture[::-1]], name) for name in ("GIF", "WEBP", "PNG", "TIFF", "AVIF")),
            saved(picture, "TIFF", big_tiff=True),
        ],
        "document": [pdf([Page()]), b"\n\n junk before " + pdf([Page()]), saved(picture, "PDF")],
        "video": [
            _sound_or_video(container, codec)
            for container, codec in [
                *(("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")),
                *(("mpegts", "mpeg2video"), ("vob", "mpeg2video"), ("flv", "flv"), ("asf", "mpeg4")),
                *(("mp4", "aac"), ("matroska", "flac")),  # whoever opens them sees that they hold sound alone
            ]
        ],
        "audio": [
            _sound_or_video(container, codec)
            for container, codec in [
                *(("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("adts", "aac")),
                *(("ipod", "aac"), ("aiff", "pcm_s16be"), ("ac3", "ac3"), ("mp2", "mp2")),
            ]
        ],
    }
    for kind, files in made.items():
        for index, data in enumerate(files):
            path = tmp_path / f"{kind}{index}.{('pdf', 'png', 'mp4', 'wav', 'txt', '')[index % 6]}"
            path.write_bytes(data)
            assert sniff(open_source(path)) == kind, (kind, index, data[:16])


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image"),
        (b"\0\0\0\x18ftypM4B \0\0\0\0", "audio"),
        (b"\0\0\0\x18ftyp3gp4\0\0\0\0", "video"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video"),
        (b"OggS" + bytes(24) + b"\x80theora", "video"),
        (b"\xff\xfb\x90\x44", "audio"),
        (b"\xff\xf1\x50\x80", "audio"),
        ((b"\0\0\0\0G" + bytes(187)) * 3, "video"),
        (b"RF64\xff\xff\xff\xffWAVE", "audio"),
        (b"8BPS\0\1", "image"),
    ],
)
def test_rarer_heads_are_known(head: bytes, kind: str) -> None:
    assert sniff(Source(name="head", data=head)) == kind


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "empty file"),
        (b"\xef\xbb\xbf <!DOCTYPE html><html>", "a web page"),
        (b"<?xml version='1.0'?><svg/>", "SVG is not read; save it as PNG or PDF"),
        (b"hello there", "unknown content .starts with 68 65 6c 6c 6f 20 74 68.; pass a picture, PDF, video or sound"),
        (b"\xff\xfeh\0e\0l\0", "unknown content"),  # UTF-16 text, whose mark looks like MPEG audio of layer I
        (b"\xff\xff\xff\xff\xff", "unknown content"),
        (b"\xff", "unknown content"),
        (b"RIFF\0\0\0\0ABCD", "unknown content"),
        (b"BMW is a car maker of Munich", "unknown content"),
        (b"P2P networks", "unknown content"),
        (b"\0" * 600, "unknown content"),
    ],
)
def test_what_is_no_media_is_named(head: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        sniff(Source(name="head", data=head))


def test_nothing_is_imported_before_it_is_needed() -> None:
    late = "PIL", "pypdfium2", "httpx", "torch", "av", "decord"
    code = f"import sys, processors.media, processors.pdf; print([name for name in {late} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class _Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/scene.png":
                self._answer(200, PNG)
            case "/here":
                self._answer(302, location="scene.png")
            case "/moved":
                self._answer(301, location="/here")
            case "/loop":
                self._answer(302, location="/loop")
            case "/disk":
                self._answer(302, location="file:///etc/hostname")
            case "/huge":
                self._answer(200, b"", length=10**12)
            case "/host":
                self._answer(200, self.headers["Host"].encode())
            case "/endless":
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):  # the client hangs up
                    while True:
                        self.wfile.write(bytes(1 << 16))
            case "/drip":  # one byte of the head at a time: no single read is slow
                with suppress(OSError):
                    for letter in b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000:
                        self.wfile.write(bytes([letter]))
                        time.sleep(0.02)
            case _:
                self._answer(404, b"no")
        self.close_connection = True

    def _answer(self, status: int, body: bytes = b"", location: str = "", length: int | None = None) -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _served():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def served():
    with _served() as address:
        yield address


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


OPEN = Limits(allow_http=True, allow_private=True, timeout=5, max_bytes=1 << 20)


def test_a_url_is_fetched_also_behind_redirects_and_within_an_event_loop(served: str) -> None:
    for place in ("/scene.png?key=1", "/here", "/moved"):
        source = open_source(served + place, OPEN)
        assert source.read() == PNG
        assert sniff(source) == "image"

    async def within() -> bytes:
        return open_source(served + "/scene.png", OPEN).read()

    assert asyncio.run(within()) == PNG


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/absent", "the server answered 404"),
        ("/loop", "more than 5 redirects"),
        ("/disk", "leads to file://; only http and https"),
        ("/huge", "more than the limit"),
        ("/endless", "more than the limit"),
    ],
)
def test_what_a_server_should_not_send_is_refused(served: str, place: str, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        open_source(served + place, OPEN)


def test_the_time_limit_holds_for_the_whole_download(served: str) -> None:
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"not here within 0\.3 s"):
        open_source(served + "/drip", Limits(allow_http=True, allow_private=True, timeout=0.3))
    assert time.monotonic() - start < 2


def test_private_addresses_are_refused_by_name_and_by_number(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    public = Limits(allow_http=True, timeout=5)
    for host in ("127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:192.168.0.1]", "0.0.0.0"):
        with pytest.raises(MediaError, match="is a private or local address; pass Limits"):
            open_source(f"http://{host}/scene.png", public)
    found = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: found("127.0.0.1", *rest, **named))
    with pytest.raises(MediaError, match=r"example\.org is a private or local address"):
        open_source(served.replace("127.0.0.1", "example.org") + "/scene.png", public)


def test_only_addresses_of_the_internet_are_public() -> None:
    assert all(web._is_public(address) for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"))
    private = "127.0.0.1", "10.0.0.1", "100.64.0.1", "224.0.0.1", "fe80::1%eth0", "fd00::1", "2002:7f00:1::", "ff02::1"
    assert not any(web._is_public(address) for address in private)


def test_the_connection_goes_to_the_address_that_was_checked(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is asked for once, keeps its place in the request, and its next address is tried where one is dead."""
    asked, port = [], int(served.rpartition(":")[2])

    def found(host: str, *rest: object, **named: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.99", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(web, "_is_public", lambda address: address.startswith("127.0.0."))
    url = f"http://media.example.org:{port}/host"
    assert open_source(url, Limits(allow_http=True)).read() == f"media.example.org:{port}".encode()
    assert [host for host in asked if host == "media.example.org"] == ["media.example.org"]
    dead, port = "http://media.example.org:1/host", 1
    with pytest.raises(MediaError, match="cannot be fetched"):
        open_source(dead, Limits(allow_http=True))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(MediaError, match="has no address"):
        open_source(url, Limits(allow_http=True))


@pytest.mark.parametrize("url", ["http://", "http://[broken/a.png", "http://a..b/\u2026", "http://127.0.0.1:1/a.png"])
def test_a_url_that_leads_nowhere_says_so(url: str) -> None:
    with pytest.raises(MediaError, match=r"cannot be fetched|only http and https|has no address"):
        open_source(url, OPEN)
