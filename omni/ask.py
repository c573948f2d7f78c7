"""Ask: a question about files, in one call.

omni.ask("What is the total?", "invoice.pdf").text
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

from omni.answer import Result
from omni.generate import Stream
from omni.load import OmniProcessor, load
from omni.model import OmniModel


@lru_cache(maxsize=2)
def _loaded(path: str) -> tuple[OmniModel, OmniProcessor]:
    return load(path)


Model = str | Path | tuple[OmniModel, OmniProcessor]


@overload
def ask(
    question: str,
    *files: Any,
    model: Model = "tiny",
    think: bool = True,
    budget: int | None = None,
    context: int | None = None,
    stream: Literal[False] = False,
    **settings: Any,
) -> Result: ...


@overload
def ask(
    question: str,
    *files: Any,
    model: Model = "tiny",
    think: bool = True,
    budget: int | None = None,
    context: int | None = None,
    stream: Literal[True],
    **settings: Any,
) -> Stream: ...


def ask(
    question: str,
    *files: Any,
    model: Model = "tiny",
    think: bool = True,
    budget: int | None = None,
    context: int | None = None,
    stream: bool = False,
    **settings: Any,
) -> Result | Stream:
    """Ask about pictures, PDFs, videos and sounds: paths, bytes, or data URIs.

    model: a name or folder (loaded once and kept), or what `omni.load` gave. think: whether to think before answering,
    for at most about `budget` tokens. context: tokens that the prompt may take. settings: as of `model.generate`.
    Raises ValueError for what cannot be read or does not fit.
    """
    reader, processor = model if isinstance(model, tuple) else _loaded(str(model))
    content = [{"type": "file", "path": str(file) if isinstance(file, Path) else file} for file in files]
    think = think and budget != 0
    batch = processor(
        [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        context=context,
        enable_thinking=think,
        reasoning_budget=budget if think else None,
    )
    pieces = reader.generate(batch, thinking_budget=budget if think else 0, stream=True, **settings)
    assert isinstance(pieces, Stream)
    if stream:
        return pieces
    (result,) = pieces.results
    return result
