"""Limits: what is refused before it is decoded, and the error in which every bad file ends."""

from __future__ import annotations

from dataclasses import dataclass


class MediaError(ValueError):
    """A file that cannot be read, or that the limits refuse: which one, what is wrong, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is refused before it is decoded.

    max_bytes: of one file. max_pixels: of one picture, frame or rendered page. max_pages: of a document.
    max_seconds, max_frames: of a video, sound or animation. timeout: seconds for a whole download.
    allow_http: may URLs be fetched. allow_private: also from private and local addresses, and through proxies.
    allow_files: may strings and paths name local files (a server that takes strangers' requests says no).
    """

    max_bytes: int = 4 << 30
    max_pixels: int = 178_956_970
    max_pages: int = 10_000
    max_seconds: int | float = 12 * 3600
    max_frames: int = 4_000_000
    timeout: int | float = 30
    allow_http: bool = False
    allow_private: bool = False
    allow_files: bool = True


DEFAULT_LIMITS = Limits()


def too_big(name: str, limits: Limits) -> MediaError:
    """The error for a file of too many bytes."""
    return MediaError(
        f"media: {name}: more than the limit of {limits.max_bytes:,} bytes; raise Limits.max_bytes or send a part"
    )
