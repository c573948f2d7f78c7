"""Replay: the same answer again from its receipt, or what differs: files, weights, libraries, prompt, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from omni.answer import Result
from omni.long_video import read_long
from omni.memory import Memory
from omni.model import OmniModel
from omni.receipt import Receipt
from processors.batch import Batch
from processors.given import Call, Given, untold
from processors.opening import unlocked
from processors.processor import Processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """result: the new answer. same: whether its tokens are those of the receipt. differences: in words; there may be
    some that changed no token.
    """

    result: Result
    same: bool
    differences: tuple[str, ...]


def replay(
    receipt: Receipt,
    model: OmniModel,
    processor: Processor,
    files: Mapping[str, Any] | None = None,
    password: str | None = None,
) -> Replay:
    """Make the prompt again by the same calls, and answer with the same settings and seed.

    files: where items are now, by their name, if not at their old path. password: of the PDFs that are encrypted.
    Raises ValueError where an item was given in memory and is not among them, and for receipts of batches made by hand.
    """
    given = receipt.seen.given
    if not given.calls:
        raise ValueError("replay: the prompt was a batch made by hand, its receipt does not say of what")
    names = [item.name for item in given.items]
    unknown = sorted(set(files or ()) - set(names))
    if unknown:
        raise ValueError(
            f"replay: {', '.join(unknown)} is none of the receipt's files; want {', '.join(names) or 'none'}"
        )
    if any("window" in item.details for item in given.items):
        raise ValueError(
            "replay: it heard live sound, which came in its time and was not kept; save what was heard "
            "(omni listen -o talk.omni) and ask that again"
        )
    differences = _around(receipt, model, processor)
    batch, memory = _read(given, model, processor, _things(given, files or {}), password)
    (new,) = batch.given
    for before, now in zip(given.items, new.items, strict=True):
        if before.sha256 != now.sha256:
            differences.append(
                f"{before.name}: the file has changed ({before.sha256[:12]} then, {now.sha256[:12]} now)"
            )
    settings = {**receipt.settings, **receipt.settings["sampling"], "choices": receipt.settings["choices"] or None}
    del settings["sampling"]
    result = model.generate(batch, memory=memory, **settings)
    assert isinstance(result, Result)
    prompt = _first_difference(receipt.ids, result.receipt.ids)
    if prompt is not None:
        differences.append(
            f"the prompt: from its id {prompt} on ({len(receipt.ids)} then, {len(result.receipt.ids)} now)"
        )
    elif receipt.seen.tokens != result.prompt_tokens:
        differences.append(f"the prompt: {receipt.seen.tokens} tokens then, {result.prompt_tokens} now")
    then = tuple(receipt.answer["tokens"])
    token = _first_difference(then, result.tokens)
    if token is not None:
        differences.append(f"the answer: from its token {token} on ({len(then)} then, {len(result.tokens)} now)")
    return Replay(result=result, same=token is None, differences=tuple(differences))


def _around(receipt: Receipt, model: OmniModel, processor: Processor) -> list[str]:
    """What is different before anything is run."""
    before, now = receipt.identity, model.identity
    found = list[str]()
    if before.fingerprint != now.fingerprint:
        found.append(f"the model: weights {before.fingerprint[:12]} then, {now.fingerprint[:12]} now")
    if receipt.seen.given.processor != processor.identity:
        found.append("the processor: another tokenizer, template or rules")
    if stored := receipt.seen.stored:
        found.append(
            f"the memory: its keys and values were kept as {stored['kv']} ({stored['kv_error']:.2%} off), now the "
            "files are read anew"
        )
    names = sorted(before.environment.keys() | now.environment.keys())
    pairs = [(name, before.environment.get(name, "none"), now.environment.get(name, "none")) for name in names]
    return found + [f"{name}: {then} then, {today} now" for name, then, today in pairs if then != today]


def _things(given: Given, files: Mapping[str, Any]) -> list[Any]:
    things = [files.get(item.name, item.source) for item in given.items]
    lost = [item.name for item, thing in zip(given.items, things, strict=True) if thing is None]
    if lost:
        raise ValueError(f"replay: {', '.join(lost)} came from memory, not from a file; pass them by name")
    return things


def _read(
    given: Given, model: OmniModel, processor: Processor, things: list[Any], password: str | None
) -> tuple[Batch, Memory | None]:
    """The receipt's calls again: ingests into a memory, the last one as the batch to be answered."""

    def again(call: Call) -> list[dict[str, Any]]:
        told = untold(call.messages, things)
        return [{**message, "content": unlocked(message["content"], password)} for message in told]

    memory: Memory | None = None
    for call in given.calls[:-1]:
        messages, settings = again(call), dict(call.arguments)
        if "frames" in settings:
            segment, evs = settings.pop("frames"), settings.pop("evs", "exact")
            memory = read_long(model, processor, messages, evs=evs, segment=segment, memory=memory, **settings)
            continue
        batch = processor.ingest(messages, after=memory.given if memory else None, **settings)
        memory = memory or Memory.ingest(model, [])
        memory.append(batch)
    last = given.calls[-1]
    messages = again(last)
    if memory is None:
        return processor(messages, **last.arguments), None
    return processor.ask(messages, after=memory.given, **last.arguments), memory


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip_longest(one, other)) if a != b), None)
