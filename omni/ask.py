"""Ask: a question about files, in one call; or read them once, and ask again and again.

omni.ask("What is the total?", "invoice.pdf").text
omni.ingest("talk.mp4").save("talk.omni"); omni.ask("Who speaks?", "talk.omni").text
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

from omni.answer import Result
from omni.generate import Stream
from omni.load import OmniProcessor, load
from omni.long_video import Progress, read_long
from omni.memory import Memory
from omni.model import OmniModel
from processors.container import probe
from processors.opening import unlocked
from processors.processor import CUT
from processors.source import open_source, sniff


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
    effort: str | None = None,
    context: int | None = None,
    password: str | None = None,
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
    effort: str | None = None,
    context: int | None = None,
    password: str | None = None,
    stream: Literal[True],
    **settings: Any,
) -> Stream: ...


def ask(
    question: str,
    *files: Any,
    model: Model = "tiny",
    think: bool = True,
    budget: int | None = None,
    effort: str | None = None,
    context: int | None = None,
    password: str | None = None,
    stream: bool = False,
    **settings: Any,
) -> Result | Stream:
    """Ask about pictures, PDFs, videos and sounds: paths, bytes, or data URIs; read at bounded memory, however long.

    The first may be a memory (`ingest`), or a file of one (.omni). model: a name or folder (loaded once and kept), or
    what `omni.load` gave. think: whether to think before answering, for at most about `budget` tokens; the prompt does
    not tell the model of the budget, so that an answer is the same behind files and behind a memory of them. effort:
    low, medium or high, where the template has it. context: tokens that the prompt may take; files leave 256 to the
    question, or as many as it needs. password: of the PDFs that are encrypted. settings: as of `model.generate`.
    Raises ValueError for what cannot be read or does not fit.
    """
    if not question.strip():
        raise ValueError("ask: the question is empty; say what you want to know")
    reader, processor = model if isinstance(model, tuple) else _loaded(str(model))
    memory, new = _remembered(files, reader)
    chat: dict[str, Any] = {"enable_thinking": think and budget != 0}
    if effort is not None:
        chat["effort"] = effort
    budget = budget if chat["enable_thinking"] else 0
    text: Any = [{"type": "text", "text": question}]
    batch = processor([{"role": "user", "content": text}], context=context, **chat)
    pieces = reader.generate(batch, thinking_budget=budget, stream=True, **settings)  # refuses what does not fit
    if new:
        chat_and_reserve = {**chat, "reserve": max(256, len(batch.tokens))}
        parts = _parts(new, processor, password)
        memory = _read(reader, processor, parts, memory, context, bool(settings.get("draft")), **chat_and_reserve)
    if memory is not None:
        left = None if context is None else context - memory.tokens
        batch = processor.ask(text, after=memory.given, context=left, **chat)
        pieces = reader.generate(batch, thinking_budget=budget, memory=memory, stream=True, **settings)
    assert isinstance(pieces, Stream)
    if stream:
        return pieces
    (result,) = pieces.results
    return result


def _read(
    model: OmniModel,
    processor: OmniProcessor,
    parts: Sequence[Any],
    memory: Memory | None,
    context: int | None,
    draft: bool,
    **settings: Any,
) -> Memory:
    """Files behind what was read, for one question alone: an answer's seconds are then those of the reading too."""
    start, spent = time.perf_counter(), dict(memory.seen.memory) if memory else {}
    before: Mapping[str, Any] = memory.given.calls[-1].arguments if memory and memory.given.calls else {}
    kept = {name: value for name, value in before.items() if name not in CUT}
    left = None if context is None else context - (memory.tokens if memory else 0)
    memory = memory.fork() if memory else Memory.ingest(model, [], draft)
    wanted = {**kept, **settings, "context": left}
    read_long(model, processor, [{"role": "user", "content": parts}], memory=memory, **wanted)
    memory.charge(spent, time.perf_counter() - start)
    return memory


def ingest(
    *files: Any,
    model: Model = "tiny",
    context: int | None = None,
    video_pruning_rate: float | None = None,
    evs: str = "exact",
    fps: float | None = None,
    frames: int | None = None,
    think: bool = True,
    password: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Memory:
    """Read pictures, PDFs, videos and sounds once, to be asked about again and again; at bounded memory, however long.

    Where the first is a memory, or a file of one, the others are read behind it. context, video_pruning_rate: as of the
    processor; evs, progress: as of `omni.long_video`. fps, frames: of videos to look at, a second or in all. think:
    only for models whose template says it before the files; ask alike. password: of the PDFs that are encrypted. Raises
    ValueError for what cannot be read or does not fit.
    """
    reader, processor = model if isinstance(model, tuple) else _loaded(str(model))
    memory, new = _remembered(files, reader)
    return read_long(
        reader,
        processor,
        [{"role": "user", "content": _parts(new, processor, password, _sampling(fps, frames))}],
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
    if any(map(_is_memory, others)):
        raise ValueError("ask: a memory stands behind other files; a memory goes first, and only one")
    if _is_memory(first) and not isinstance(first, Memory):
        first = Memory.load(first, model)
    return (first, others) if isinstance(first, Memory) else (None, list(files))


def _is_memory(file: Any) -> bool:
    return isinstance(file, Memory) or (isinstance(file, str | Path) and str(file).endswith(".omni"))


def _sampling(fps: float | None, frames: int | None) -> dict[str, Any]:
    if fps is not None and frames is not None:
        raise ValueError(f"ingest: fps {fps} and frames {frames} came; want one of them")
    if frames is not None:
        return {"sampling": {"frames": frames}}
    return {} if fps is None else {"fps": fps}


def _parts(
    files: Sequence[Any],
    processor: OmniProcessor,
    password: str | None,
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """As parts of a message. What is no path is taken whole or fetched now: reading may go through it twice.

    sampling: of those that are videos.
    """
    parts: list[dict[str, Any]] = []
    for file in files:
        once = not isinstance(file, str | Path) or "://" in str(file)[:8]
        held = open_source(file, processor.limits) if once else str(file)
        parts.append({"type": "file", "path": held})
        if sampling:
            source = open_source(held, processor.limits)
            if sniff(source) == "video" and probe(source, processor.limits).has_video:
                parts[-1] = {"type": "video", "path": held, **sampling}
    return unlocked(parts, password)
