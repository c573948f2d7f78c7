"""Sealed files: safetensors with a header of plain values and a checksum of every part, written whole or not at all.

Any changed byte is noticed, and which part it hit; what opens is what was written. The header is JSON, compressed, in
a part of its own. Tensors are mapped from the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file of this kind; under its name stands the old file or the whole new one, never a part.

    It is written beside its place under a hidden name ending in `.part`, forced to the disk, and moved. An error or
    Ctrl-C removes the part; only a process that is killed leaves one behind. Raises ValueError where the folder is
    missing or cannot be written to.
    """
    path = Path(path)
    plain = zlib.compress(json.dumps(header).encode(), 9)
    parts = {HEADER: torch.frombuffer(bytearray(plain), dtype=torch.uint8), **tensors}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(stored, pool.map(_digest, stored.values()), strict=True))
    text = json.dumps({"kind": kind, "sha256": digests})
    metadata = {"sealed": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        save_file(stored, part, metadata)
        _force(part)
        part.replace(path)
        _force(path.parent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{kind}: {path} cannot be written ({error}); make room, or choose another place") from None
    finally:
        part.unlink(missing_ok=True)


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors (on the CPU, mapped from the file) of a file of this kind.

    Raises ValueError for a file that is missing, of another kind, cut off or changed in any byte.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{kind}: {path} is no file; check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{kind}: {path} is cut off, damaged or no such file ({error}); {_AGAIN}") from None
    text = metadata.get("sealed", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
        raise ValueError(f"{kind}: the list of parts of {path} is damaged, or it is no such file; {_AGAIN}")
    sealed = json.loads(text)
    if sealed["kind"] != kind:
        raise ValueError(f"{kind}: {path} is of another kind ({sealed['kind']}); pass one of this kind")
    digests = sealed["sha256"]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))
    wrong = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
    if wrong:
        raise ValueError(f"{kind}: {path} is damaged ({', '.join(wrong[:4])}); {_AGAIN}")
    header = json.loads(zlib.decompress(tensors.pop(HEADER).numpy().tobytes()))
    return header, tensors


HEADER = "header"
_AGAIN = "copy it again, or make it again"


def _digest(tensor: Tensor) -> str:
    made = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    made.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return made.hexdigest()


def _force(path: Path) -> None:
    """To the disk: a file's content, or a folder's names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
