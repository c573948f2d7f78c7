"""Ask: a question about files, in one call; or read them once, and ask again and again.

omni.ask("What is the total?", "invoice.pdf").text
omni.ingest("talk.mp4").save("talk.omni"); omni.ask("Who speaks?", "talk.omni").text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

from omni.answer import Result
from omni.generate import Stream
from omni.load import OmniProcessor, load
from omni.long_video import Progress, read_long
from omni.memory import Memory
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

    The first may be a memory (`ingest`), or a file of one (.omni). model: a name or folder (loaded once and kept), or
    what `omni.load` gave. think: whether to think before answering, for at most about `budget` tokens. context: tokens
    that the prompt may take. settings: as of `model.generate`. Raises ValueError for what cannot be read or does not
    fit.
    """
    reader, processor = model if isinstance(model, tuple) else _loaded(str(model))
    think = think and budget != 0
    memory, new = _remembered(files, reader)
    content = [*_parts(new), {"type": "text", "text": question}]
    if memory is not None:
        left = None if context is None else context - memory.tokens
        batch = processor.ask(content, after=memory.given, enable_thinking=think, context=left)
    else:
        batch = processor(
            [{"role": "user", "content": content}],
            context=context,
            enable_thinking=think,
            reasoning_budget=budget if think else None,
        )
    pieces = reader.generate(batch, thinking_budget=budget if think else 0, memory=memory, stream=True, **settings)
    assert isinstance(pieces, Stream)
    if stream:
        return pieces
    (result,) = pieces.results
    return result


def ingest(
    *files: Any,
    model: Model = "tiny",
    context: int | None = None,
    video_pruning_rate: float | None = None,
    evs: str = "exact",
    think: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Memory:
    """Read pictures, PDFs, videos and sounds once, to be asked about again and again; at bounded memory, however long.

    Where the first is a memory, or a file of one, the others are read behind it. context, video_pruning_rate: as of the
    processor; evs, progress: as of `omni.long_video`. think: only for models whose template says it before the files.
    Raises ValueError for what cannot be read or does not fit.
    """
    reader, processor = model if isinstance(model, tuple) else _loaded(str(model))
    memory, new = _remembered(files, reader)
    return read_long(
        reader,
        processor,
        [{"role": "user", "content": _parts(new)}],
        evs=evs,
        memory=memory and memory.fork(),
        progress=progress,
        context=context,
        video_pruning_rate=video_pruning_rate,
        enable_thinking=think,
    )


def _remembered(files: Sequence[Any], model: OmniModel) -> tuple[Memory | None, list[Any]]:
    """The memory that the files begin with, and the others."""
    first, *others = files or [None]
    if isinstance(first, str | Path) and str(first).endswith(".omni"):
        first = Memory.load(first, model)
    return (first, others) if isinstance(first, Memory) else (None, list(files))


def _parts(files: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": str(file) if isinstance(file, Path) else file} for file in files]
