"""Laws of pictures: whatever the format, mode, turn or number type, the same scene comes out as upright uint8 RGB."""

import importlib
import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pictures import ORIENTATION, Page, pdf, png, saved, saved_all, scene
from PIL import Image, ImageCms, ImageFile, ImageOps

from processors.media import (
    Limits,
    MediaError,
    is_pixels,
    open_picture,
    open_pictures,
    picture_count,
    picture_headers,
    picture_size,
)

SCENE = scene()
LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "PPM": {}, "WEBP": {"lossless": True}, "JPEG2000": {}}


def far(got: np.ndarray, wanted: np.ndarray) -> int:
    """The largest difference of two pictures."""
    assert got.shape == wanted.shape
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    return int(np.abs(got.astype(int) - wanted).max())


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_very_pixels_from_every_door(format: str, tmp_path: Path) -> None:
    data = saved(SCENE, format, **LOSSLESS[format])
    path = tmp_path / "scene.jpg"
    path.write_bytes(data)
    for thing in (data, path, str(path), io.BytesIO(data), Image.open(io.BytesIO(data))):
        assert far(open_picture(thing), SCENE) == 0
        assert picture_size(thing) == (48, 32)
        assert picture_count(thing) == 1


def test_the_flat_view_of_a_psd_is_read() -> None:
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 48, 8, 3) + bytes(12)
    data = head + b"\0\0" + np.moveaxis(SCENE, -1, 0).tobytes()
    assert far(open_picture(data), SCENE) == 0
    assert picture_count(data) == 1


@pytest.mark.parametrize(("format", "most"), [("JPEG", 12), ("WEBP", 12), ("AVIF", 12), ("GIF", 60)])
def test_lossy_formats_come_near(format: str, most: int) -> None:
    options = {} if format == "GIF" else {"quality": 95}
    assert far(open_picture(saved(SCENE, format, **options)), SCENE) <= most


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_sizes(format: str, orientation: int) -> None:
    data = saved(SCENE, format, orientation)
    with Image.open(io.BytesIO(data)) as picture:
        wanted = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert wanted.shape[:2] == (SCENE.shape[:2] if orientation < 5 else SCENE.shape[1::-1])
    size = wanted.shape[1], wanted.shape[0]
    for thing in (data, Image.open(io.BytesIO(data))):
        assert picture_size(thing) == size
        assert far(open_picture(thing), wanted) == 0
        assert picture_size(thing) == size


def test_exif_behind_the_pixels_of_a_png_counts_too() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain = saved(SCENE, "PNG")
    start = plain.index(b"IEND") - 4
    chunk = png(1, 1, chunks=((b"eXIf", exif.tobytes()[6:]),))
    chunk = chunk[chunk.index(b"eXIf") - 4 : chunk.index(b"IEND") - 4]
    late = plain[:start] + chunk + plain[start:]
    assert picture_size(late) == (32, 48)
    assert far(open_picture(late), np.rot90(SCENE, -1)) == 0


@pytest.mark.parametrize("value", [0, 9, 77])
def test_damaged_or_senseless_exif_leaves_the_picture_as_it_is(value: int) -> None:
    assert far(open_picture(saved(SCENE, "PNG", value)), SCENE) == 0
    assert far(open_picture(saved(SCENE, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), SCENE) == 0
    assert far(open_picture(saved(SCENE, "PNG", exif=b"Exif\0\0junk")), SCENE) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes_look_as_pil_shows_them(mode: str) -> None:
    picture = Image.fromarray(SCENE).convert(mode)
    assert far(open_picture(picture), np.asarray(picture.convert("RGB"))) == 0
    if mode in ("1", "L", "P", "CMYK"):
        assert far(open_picture(saved(picture, "TIFF")), np.asarray(picture.convert("RGB"))) == 0


def test_cmyk_jpeg_is_not_inverted() -> None:
    assert far(open_picture(saved(Image.fromarray(SCENE).convert("CMYK"), "JPEG", quality=98)), SCENE) <= 40


def test_lab_comes_near_through_its_colours() -> None:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    picture = ImageCms.profileToProfile(Image.fromarray(SCENE), srgb, lab, outputMode="LAB")
    assert picture is not None
    assert far(open_picture(saved(picture, "TIFF")), SCENE) <= 20  # 8 bits of LAB are coarse


@pytest.mark.parametrize("background", ["white", "#336699", (10, 200, 30)])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "memory"])
def test_transparency_shows_the_background(format: str, background: str | tuple[int, int, int]) -> None:
    alpha = np.linspace(0, 255, 48).astype(np.uint8)[None].repeat(32, 0)
    rgba = np.dstack([SCENE, alpha])
    colour = {"white": (255, 255, 255), "#336699": (0x33, 0x66, 0x99)}.get(str(background), background)
    share = alpha[..., None] / 255
    wanted = np.rint(SCENE * share + np.array(colour) * (1 - share)).astype(np.uint8)
    thing = rgba if format == "memory" else saved(rgba, format, **LOSSLESS[format], **_exact(format))
    assert far(open_picture(thing, background=background), wanted) <= 1
    assert far(next(iter(open_pictures(thing, background=background))).pixels, wanted) <= 1


def _exact(format: str) -> dict[str, bool]:
    return {"exact": True} if format == "WEBP" else {}


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_rarer_modes_with_alpha_are_laid_over_white(mode: str) -> None:
    grey = np.full((4, 6), 100, np.uint8)
    alpha = np.array([[0, 51, 102, 153, 204, 255]] * 4, np.uint8)
    picture = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    if mode in ("PA", "RGBa"):
        picture = picture.convert("RGBA")
    picture = picture.convert(mode)
    wanted = 255 - np.rint(alpha / 255 * 155).astype(int)
    assert far(open_picture(picture), wanted[..., None].repeat(3, -1)) <= 3


def test_one_clear_colour_is_transparency_too() -> None:
    grey = np.array([[10, 20], [30, 20]], np.uint8)
    wanted = np.array([[10, 255], [30, 255]])[..., None].repeat(3, -1)
    palette = Image.fromarray(grey).convert("P")
    index = palette.getpixel((1, 0))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for data in (
        saved(Image.fromarray(grey), "PNG", transparency=20),
        saved(Image.fromarray(grey).convert("RGB"), "PNG", transparency=(20, 20, 20)),
        saved(palette, "PNG", transparency=index),
        saved(palette, "GIF", transparency=index),
    ):
        assert far(open_picture(data), wanted) == 0
    deep.info["transparency"] = 20 * 257
    assert far(open_picture(deep), wanted) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big endian", "PPM", "I;16B", "NumPy", "torch"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    deep = np.arange(0, 65536, 97, dtype=np.uint16)[:675].reshape(27, 25)
    wanted = np.rint(deep / 257)[..., None].repeat(3, -1)
    picture = Image.fromarray(deep)
    things = {
        "PNG": lambda: saved(picture, "PNG"),
        "TIFF": lambda: saved(picture, "TIFF"),
        "TIFF big endian": lambda: saved(Image.frombytes("I;16B", (25, 27), deep.astype(">u2").tobytes()), "TIFF"),
        "PPM": lambda: b"P5 25 27 65535\n" + deep.astype(">u2").tobytes(),
        "I;16B": lambda: Image.frombytes("I;16B", (25, 27), deep.astype(">u2").tobytes()),
        "NumPy": lambda: deep,
        "torch": lambda: torch.from_numpy(deep),
    }
    assert far(open_picture(things[kind]()), wanted) == 0


@given(
    rows=st.integers(5, 9),
    cols=st.integers(5, 9),
    channels=st.sampled_from([0, 1, 3, 4]),
    first=st.booleans(),
    dtype=st.sampled_from(["uint8", "uint16", "float16", "float32", "float64", "bfloat16"]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_arrays_of_every_order_and_number_type_are_one_picture(
    rows: int, cols: int, channels: int, first: bool, dtype: str, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (rows, cols, max(channels, 1))).astype(np.uint8)
    if channels == 4:
        values[..., 3] = 255
    wanted = values[..., :3] if channels >= 3 else values.repeat(3, -1)
    laid = np.moveaxis(values, -1, 0) if first and channels else values
    laid = laid[..., 0] if not channels else laid
    exact = torch.from_numpy(np.ascontiguousarray(laid)).double()
    tensor = {"uint8": exact, "uint16": exact * 257}.get(dtype, exact / 255).to(getattr(torch, dtype))
    things = [tensor] if dtype == "bfloat16" else [tensor, tensor.numpy()]
    for thing in things:
        assert far(open_picture(thing), wanted) <= (1 if dtype == "bfloat16" else 0)
        assert picture_size(thing) == (cols, rows)
        assert picture_count(thing) == len(list(open_pictures(thing))) == len(list(picture_headers(thing))) == 1


def test_a_shape_that_reads_both_ways_is_read_as_its_library_does() -> None:
    values = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert far(open_picture(values), values) == 0
    assert far(open_picture(torch.from_numpy(values)), np.moveaxis(values, 0, -1)) == 0


def test_booleans_are_black_and_white() -> None:
    mask = np.eye(4, 6, dtype=bool)
    for thing in (mask, torch.from_numpy(mask)):
        assert far(open_picture(thing), mask[..., None].repeat(3, -1) * 255) == 0


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (np.zeros((4, 5), np.int64), "int64 has no stated range"),
        (torch.zeros(4, 5, dtype=torch.int32), "int32 has no stated range"),
        (np.full((4, 5), 1.1), r"values from 1.1 to 1.1; scale or clip them to 0..1"),
        (np.full((4, 5), -0.1), "values from -0.1"),
        (np.full((4, 5), np.nan), "values from nan"),
        (np.zeros((2, 3, 4, 5)), "one by one"),
        (np.zeros((2, 5, 7)), "shape"),
        (np.zeros((0, 5, 3)), "shape"),
        (np.zeros(5), "shape"),
        (Image.new("RGB", (0, 5)), "0x5 pixels; a picture has at least one"),
        (Image.fromarray(np.zeros((4, 5), np.int32)), "int32 has no stated range"),
        (Image.fromarray(np.full((4, 5), 7, np.float32)), "values from 7 to 7"),
    ],
)
def test_numbers_without_a_stated_range_are_refused(thing: object, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        open_picture(thing)


def test_a_float_picture_in_range_is_scaled() -> None:
    grey = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    wanted = np.rint(grey * 255)[..., None].repeat(3, -1)
    assert far(open_picture(saved(Image.fromarray(grey), "TIFF")), wanted) == 0


def test_a_background_that_is_no_colour_is_named() -> None:
    with pytest.raises(MediaError, match="'whyte' is no colour"):
        open_picture(np.zeros((4, 5, 4)), background="whyte")


FRAMES = [scene(seed=seed) for seed in range(4)]


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {"disposal": 1}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {"quality": 100})],
)
def test_an_animation_gives_its_frames_and_times(format: str, options: dict[str, object]) -> None:
    data = saved_all(FRAMES, format, duration=[40, 250, 80, 1000], **options)
    assert picture_count(data) == 4
    frames = list(open_pictures(data))
    assert [frame.seconds for frame in frames] == pytest.approx([0.04, 0.25, 0.08, 1.0])
    near = {"GIF": 60, "AVIF": 25}.get(format, 0)
    for frame, wanted in zip(frames, FRAMES, strict=True):
        assert far(frame.pixels, wanted) <= near
    assert far(open_picture(data), frames[0].pixels) == 0


def test_a_frame_without_a_time_counts_a_tenth_of_a_second() -> None:
    data = saved_all(FRAMES[:2], "GIF", duration=0)
    assert [frame.seconds for frame in open_pictures(data)] == [0.1, 0.1]


def test_a_still_picture_has_no_time() -> None:
    for format in ("GIF", "PNG", "JPEG"):
        assert [frame.seconds for frame in open_pictures(saved(SCENE, format))] == [None]


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_pages_of_a_tiff_come_in_order_alone_and_all(options: dict[str, object]) -> None:
    pages = [scene(40 + index, 30 - index, index) for index in range(5)]
    data = saved_all(pages, "TIFF", dpi=(200, 100), **options)
    assert picture_count(data) == 5
    headers = list(picture_headers(data))
    assert [(header.width, header.height) for header in headers] == [(40 + i, 30 - i) for i in range(5)]
    assert headers[0].dpi == (200, 100)
    for index, (frame, wanted) in enumerate(zip(open_pictures(data), pages, strict=True)):
        assert frame.seconds is None
        assert far(frame.pixels, wanted) == 0
        assert far(open_picture(data, page=index), wanted) == 0
    with pytest.raises(MediaError, match="TIFF"):
        open_picture(data, page=5)


def test_resolution_turns_with_the_picture() -> None:
    header = next(picture_headers(saved(SCENE, "JPEG", 6, dpi=(200, 100))))
    assert (header.width, header.height, header.dpi) == (32, 48, (100, 200))


def test_previews_within_a_jpeg_stay_out() -> None:
    data = saved_all([SCENE, scene(8, 8)], "MPO")
    assert picture_count(data) == 1
    assert [frame.pixels.shape for frame in open_pictures(data)] == [SCENE.shape]


def test_a_pil_image_gives_the_frame_it_stands_at_and_is_left_as_it_was() -> None:
    picture = Image.open(io.BytesIO(saved_all(FRAMES, "WEBP", lossless=True)))
    picture.seek(2)
    assert far(open_picture(picture), FRAMES[2]) == 0
    assert len(list(open_pictures(picture))) == 4
    assert picture.tell() == 2
    steps: Any = open_pictures(picture)
    next(steps)
    steps.close()
    assert picture.tell() == 2
    assert far(np.asarray(picture.convert("RGB")), FRAMES[2]) == 0


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bmp = saved(SCENE, "BMP")
    bombs = [png(60_000, 60_000), b"P6 60000 60000 255\n", bmp[:18] + b"`\xea\0\0" * 2 + bmp[26:]]
    gif = bytearray(saved(SCENE, "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    _refuse_to_decode(monkeypatch)
    for bomb in [*bombs, bytes(gif)]:
        for look in (open_picture, picture_size, picture_count, lambda thing: list(open_pictures(thing))):
            with pytest.raises(MediaError, match=r"pixels, the limit is 178,956,970; make it smaller"):
                look(bomb)


def test_a_frame_larger_than_the_header_says_is_no_way_round_the_limit() -> None:
    data = bytearray(saved_all(FRAMES[:2], "GIF"))
    second = data.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", 48, 32))
    data[second + 5 : second + 9] = struct.pack("<HH", 3000, 3000)
    with pytest.raises(MediaError, match="3000x3000 pixels, the limit is 1,000,000"):
        list(open_pictures(bytes(data), Limits(max_pixels=1_000_000)))
    data[second + 5 : second + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(MediaError, match=r"GIF of too many pixels \(.*\); make it smaller"):
        list(open_pictures(bytes(data)))


def _refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Gif", "Png", "Tiff", "WebP", "Avif", "Jpeg2K"):
        plugin = importlib.import_module(f"PIL.{name}ImagePlugin")
        for kind in (*vars(plugin).values(), ImageFile.ImageFile):
            if isinstance(kind, type) and issubclass(kind, ImageFile.ImageFile):
                monkeypatch.setattr(kind, "load", lambda self: pytest.fail("decoded"))


def test_sizes_and_counts_are_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "JPEG2000")
    files = {format: saved(scene(48, 48), format) for format in formats}
    moving = {format: saved_all(FRAMES, format) for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF")}
    _refuse_to_decode(monkeypatch)
    assert {format: picture_size(data) for format, data in files.items()} == dict.fromkeys(formats, (48, 48))
    assert {format: picture_count(data) for format, data in moving.items()} == dict.fromkeys(moving, 4)
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        open_picture(files["PNG"])


def test_limits_of_pixels_pages_and_frames_hold() -> None:
    small = Limits(max_pixels=48 * 32 - 1)
    for thing in (SCENE, torch.from_numpy(SCENE), Image.fromarray(SCENE), saved(SCENE, "PNG")):
        with pytest.raises(MediaError, match="48x32 pixels, the limit is 1,535"):
            open_picture(thing, small)
        assert open_picture(thing, Limits(max_pixels=48 * 32)).shape == SCENE.shape
    growing = saved_all([scene(8, 8), SCENE], "TIFF")
    assert open_picture(growing, small).shape == (8, 8, 3)
    for look in (open_pictures, picture_headers):
        with pytest.raises(MediaError, match="48x32 pixels"):
            list(look(growing, small))
    with pytest.raises(MediaError, match=r"2 pages, the limit is 1; send a part or raise Limits\.max_pages"):
        picture_count(growing, Limits(max_pages=1))
    with pytest.raises(MediaError, match=r"4 frames, the limit is 3; .* Limits\.max_frames"):
        next(open_pictures(saved_all(FRAMES, "GIF"), Limits(max_frames=3)))


def test_large_pictures_within_the_limit_raise_no_alarm() -> None:
    """PIL on its own would warn from 89 million pixels on, and refuse what our limits allow."""
    wide = Image.new("1", (20_000, 10_000))
    data = saved(wide, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture_size(data, Limits(max_pixels=10**9)) == (20_000, 10_000)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_an_error_and_never_half_a_picture(format: str, share: float) -> None:
    data = saved(scene(200, 150), format)
    cut = data[: max(20, int(len(data) * share))]
    with pytest.raises(MediaError, match=r"<bytes>: (truncated|broken|unknown)"):
        open_picture(cut)


def test_a_truncated_file_is_told_from_a_broken_one() -> None:
    data = saved(scene(200, 150), "PNG")
    with pytest.raises(MediaError, match=r"media: <bytes>: truncated PNG \(.*\); send the whole file"):
        open_picture(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"media: <bytes>: broken PNG \(.*\); save it anew"):
        open_picture(data[:60] + b"junk" + data[64:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pdf([Page()]), "holds document, not a picture; open it as document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC is not read; save it as JPEG"),
        (b"\xff\x0a" + bytes(40), "JPEG XL is not read"),
        (saved(scene(32, 32), "ICO"), "ICO is not read; save it as JPEG, PNG or WebP"),
        (b"BC\xc0\xde" + bytes(40), "unknown content"),
        (png(0, 5), "broken PNG|0x5"),
    ],
)
def test_what_is_no_picture_says_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        open_picture(data)


def test_pictures_in_memory_are_told_from_files() -> None:
    in_memory = (SCENE, torch.zeros(1), Image.fromarray(SCENE))
    assert all(is_pixels(thing) for thing in in_memory)
    assert not any(is_pixels(thing) for thing in (b"", "a.png", Path("a.png"), io.BytesIO(), None))
