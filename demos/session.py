"""Session: what one visitor of the demo has open. Each has their own; only the model is shared."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from demos.samples import SAMPLES
from demos.talk import Talk, Told
from processors.limits import Limits, MediaError
from processors.source import Source, open_source

# Strings never name files here: what is read was uploaded first, and comes as an open Source.
LIMITS = Limits(max_bytes=2 << 30, max_pages=500, max_seconds=3 * 3600, allow_files=False)
TRUSTED = Limits(max_bytes=LIMITS.max_bytes)


@dataclass(slots=True)
class Session:
    """chat, shown: the Ask tab's talk, and what its window shows. document, film, hearing: what the other tabs have
    open. last: the newest answer of any tab, for Under the hood.
    """

    chat: Talk = field(default_factory=Talk)
    shown: list[gr.ChatMessage] = field(default_factory=list)
    document: Any = None
    film: Any = None
    hearing: Any = None
    last: Told | None = None


def uploads() -> Path:
    """The folder into which the server writes what visitors upload."""
    return Path(get_upload_folder()).resolve()


def uploaded(path: str | Path) -> Source:
    """An uploaded file, or a sample. Raises MediaError for any other path, whatever it names."""
    if not is_upload(path):
        raise MediaError("media: this file was not uploaded here; choose it with the upload button")
    return open_source(Path(path).resolve(), TRUSTED)


def is_upload(path: str | Path) -> bool:
    """Whether a path names an uploaded file or a sample, links followed. Nothing is opened."""
    try:
        real = Path(path).resolve()
        inside = any(real.is_relative_to(folder) for folder in (uploads(), SAMPLES.resolve()))
        return inside and stat.S_ISREG(os.lstat(real).st_mode)
    except (OSError, ValueError):
        return False
