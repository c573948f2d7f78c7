"""Fonts to print with: pairs of regular and bold files, found in installed packages and folders; some families are
held out and never trained on.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from omni.train.data.page import ALPHABET

HELD_OUT = ("Caladea", "Hanken Grotesk", "Inconsolata", "Comic Neue")
LEFT_OUT = (  # without letters, of one case only, or handwriting that nobody prints with
    "Dingbats", "Symbol", "Emoji", "Math", "Amatic", "Intuitive", "cmex", "cmsy", "cmmi", "cmtt", "cmss", "cmb", "cmr",
    "STIXSize", "STIXNonUni", "STIX Size", "STIXSiz", "cmti", "Keyboard",
)  # fmt: skip
PACKAGES = ("font_roboto", "font_source_sans_pro", "font_source_serif_pro", "font_manrope",
            "font_hanken_grotesk", "font_caladea", "matplotlib")  # fmt: skip
FOLDERS = (Path("/usr/share/fonts"), Path("/Library/Fonts"), Path.home() / ".fonts")


def files() -> list[Path]:
    """Font files of the known packages and the system's folders."""
    found: list[Path] = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec and spec.origin:
            found += [*Path(spec.origin).parent.rglob("*.ttf"), *Path(spec.origin).parent.rglob("*.otf")]
    for folder in FOLDERS:
        if folder.is_dir():
            found += [*folder.rglob("*.ttf"), *folder.rglob("*.otf")]
    return sorted(found, key=lambda path: (path.name, str(path)))


@lru_cache(maxsize=1)
def families() -> dict[str, tuple[str, str]]:
    """Family → (regular, bold) files; a family without bold stands in for it itself."""
    by_family: dict[str, dict[str, str]] = defaultdict(dict)
    for path in files():
        try:
            family, style = ImageFont.truetype(path, 16).getname()
        except OSError:
            print(f"fonts: {path} cannot be read and is left out", file=sys.stderr)
            continue
        if family and style and not any(word in family for word in LEFT_OUT):
            by_family[family].setdefault(style, str(path))
    pairs = {}
    for family, styles in sorted(by_family.items()):
        regular = next(
            (styles[name] for name in ("Regular", "Book", "Roman", "Medium", "Normal") if name in styles), None
        )
        if regular and _complete(regular):
            pairs[family] = (regular, styles.get("Bold", regular))
    return pairs


def _mask(font: ImageFont.FreeTypeFont, char: str) -> bytes:
    return bytes(font.getmask(char))  # pyright: ignore[reportArgumentType]  (iterable, which its stub does not know)


def _complete(path: str) -> bool:
    """Whether all characters are there, drawn each its own way."""
    font = ImageFont.truetype(path, 16)
    shapes = {_mask(font, char) for char in ALPHABET[1:]}
    return len(shapes) > 88 and _mask(font, "\uffff") not in shapes


def faces(held_out: bool = False) -> tuple[tuple[str, str], ...]:
    """(regular, bold) pairs to train with, or the held-out ones.

    Raises ValueError when none is installed.
    """
    chosen = tuple(pair for family, pair in families().items() if any(name in family for name in HELD_OUT) == held_out)
    if not chosen:
        raise ValueError("fonts: no usable font was found; install the extra: pip install 'omni[train]'")
    return chosen
