"""Pixels: a picture in memory, of any mode, channel order and number type, as uint8 RGB.

Transparency is laid over a background; 16 bits and floats are scaled, not clipped; numbers without a stated range are
refused instead of guessed. CMYK is converted plainly, as PIL and the models' training do, without an ICC profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped, UInt8

from processors.limits import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

Background = str | tuple[int, int, int]


def pixels_of_image(picture: Image, background: Background) -> UInt8[np.ndarray, "rows cols 3"]:
    """A decoded PIL image as RGB. Raises what PIL raises, and MediaError as pixels_of_array does."""
    mode, clear = picture.mode, picture.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        values = np.asarray(picture).astype(np.uint16)
        grey = _eight_bits(values)[..., None].repeat(3, axis=-1)
        return grey if clear is None else _over(grey, np.where(values == clear, 0, 255), background)
    if mode in ("I", "F"):
        return pixels_of_array(np.asarray(picture)[..., None], "<PIL image>", background)
    if mode in ("La", "RGBa"):
        picture = picture.convert(mode.upper())
    if clear is not None or mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = np.asarray(picture.convert("RGBA"))
        return _over(rgba[..., :3], rgba[..., 3], background)
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    return np.array(picture.convert("RGB"))


def pixels_of_array(
    array: Shaped[np.ndarray, "rows cols channels"], name: str, background: Background
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Channels-last values as RGB: uint8, bool, uint16 over its range, floats 0..1; 1, 3 or 4 channels.

    May share memory with `array`. Raises MediaError for other dtypes and for floats outside 0..1.
    """
    values = _levels(array, name)
    if values.shape[-1] == 4:
        return _over(values[..., :3], values[..., 3], background)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def channels_last(
    array: Shaped[np.ndarray, "..."], name: str, *, channels_first: bool
) -> Shaped[np.ndarray, "rows cols channels"]:
    """(rows, cols), (rows, cols, channels) or (channels, rows, cols) as a view with the channels last.

    `channels_first` decides where a shape reads both ways. Raises MediaError for any other shape.
    """
    if array.ndim == 2 and array.size:
        return array[..., None]
    if array.ndim == 3 and array.size:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first and (channels_first or not last):
            return np.moveaxis(array, 0, -1)
        if last:
            return array
    raise MediaError(
        f"media: {name} of shape {array.shape}; one picture is (rows, cols), (rows, cols, channels) or "
        "(channels, rows, cols) with 1, 3 or 4 channels; pass the pictures of a batch one by one"
    )


def turned(
    pixels: UInt8[np.ndarray, "rows cols 3"], orientation: int
) -> UInt8[np.ndarray, "turned_rows turned_cols 3"]:
    """Upright. Orientation 1..8 says which sides of the scene the first row and column show (Exif 2.32, 0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """uint16 over its whole range to uint8: the nearest of v / 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over(
    rgb: UInt8[np.ndarray, "rows cols 3"], alpha: Shaped[np.ndarray, "rows cols"], background: Background
) -> UInt8[np.ndarray, "rows cols 3"]:
    """Lay over a background: the nearest of (alpha * rgb + (255 - alpha) * background) / 255."""
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    below = np.array(_colour(background), np.uint16)
    seen = alpha.astype(np.uint16)[..., None]
    return ((rgb * seen + below * (255 - seen) + 127) // 255).astype(np.uint8)


def _colour(background: Background) -> tuple[int, ...]:
    if not isinstance(background, str):
        return background
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError as error:
        raise MediaError(
            f"media: background {background!r} is no colour; write a CSS name, '#rrggbb' or (r, g, b)"
        ) from error


def _levels(array: np.ndarray, name: str) -> np.ndarray:
    """Any dtype with a stated range to uint8."""
    dtype: Any = array.dtype
    if dtype == np.uint8:
        return array
    if dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if dtype == np.uint16:
        return _eight_bits(array)
    if not np.issubdtype(dtype, np.floating):
        raise MediaError(f"media: {name} of {dtype} has no stated range; pass uint8, uint16, or floats from 0 to 1")
    levels = np.rint(array.astype(np.float32) * 255)
    if not (levels.min() >= 0 and levels.max() <= 255):  # also false for NaN
        raise MediaError(
            f"media: {name} of {dtype} holds values from {array.min():g} to {array.max():g}; "
            "scale or clip them to 0..1, or pass uint8"
        )
    return levels.astype(np.uint8)
