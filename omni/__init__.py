"""omni: ask any document, long video or sound a question, on any machine."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni.answer import Piece, Result
    from omni.ask import ask, ingest
    from omni.config import OmniConfig
    from omni.load import OmniProcessor, load
    from omni.model import OmniModel

__all__ = ["OmniConfig", "OmniModel", "OmniProcessor", "Piece", "Result", "ask", "ingest", "load"]

_HOMES = {
    "OmniConfig": "config",
    "OmniModel": "model",
    "OmniProcessor": "load",
    "Piece": "answer",
    "Result": "answer",
    "ask": "ask",
    "ingest": "ask",
    "load": "load",
}


class _Package(ModuleType):
    """Names are imported when they are first used, so that a command starts, and stops, without waiting for torch.

    `omni.ask` and `omni.load` are the functions, whoever imported the modules of these names.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{self.__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """The import system sets a module on its package once it is loaded."""
        taken = isinstance(value, ModuleType) and name in _HOMES
        super().__setattr__(name, getattr(value, name) if taken else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then puts large tensors on huge pages: read 6 to 15 % faster
