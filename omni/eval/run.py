"""Run: a spec's items, asked in batches, each answer marked and written down at once.

Batches begin at fixed places among the items, and one that was interrupted is asked again whole; so a run that is
resumed has met the same batches, and writes the same records, as one that never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omni.answer import Result
from omni.eval import record
from omni.eval.item import Item, Table
from omni.eval.record import Record, Times
from omni.eval.scorers import Scorer, named
from omni.eval.spec import Preprocessing, Spec
from omni.generate import Stream
from omni.load import OmniProcessor
from omni.model import OmniModel
from processors.batch import Batch

Progress = Callable[[int, int, float], None]  # items done, of how many, the mean so far


@dataclass(slots=True)
class Run:
    """One spec on one model. receipts: a folder for each item's whole receipt, as `omni replay` takes it."""

    spec: Spec
    model: OmniModel
    processor: OmniProcessor
    path: Path
    receipts: Path | None = None
    scorer: Scorer = field(init=False)
    weights: str = field(init=False)

    def __post_init__(self) -> None:
        self.scorer, self.weights = named(self.spec.scoring.rule), self.model.identity.fingerprint
        self.processor = prepared(self.processor, self.spec.preprocessing)
        if self.receipts is not None:
            self.receipts.mkdir(parents=True, exist_ok=True)

    def go(self, items: Table, progress: Progress | None = None) -> tuple[list[Record], list[Times]]:
        """Ask what is not answered yet; all records in order. Raises ValueError where the file is another run's, or one
        is writing it.
        """
        with record.held(self.path):
            return self._go(items, progress)

    def _go(self, items: Table, progress: Progress | None) -> tuple[list[Record], list[Times]]:
        limit = len(items) if self.spec.limit is None else min(self.spec.limit, len(items))
        records, times = self._done(limit)
        while len(records) < limit:
            start = len(records)
            made = self._ask([items[i] for i in range(start, min(limit, start + self.spec.decoding.batch))], start)
            record.write(self.path, [r for r, _ in made], [t for _, t in made])
            records += [r for r, _ in made]
            times += [t for _, t in made]
            if progress:
                most = sum(r.most for r in records)
                progress(len(records), limit, sum(r.got for r in records) / most if most else 0.0)
        return records, times

    def _done(self, limit: int) -> tuple[list[Record], list[Times]]:
        """What an earlier run left, cut back to whole batches; the files then hold no more than that."""
        records = record.read(self.path) if self.path.is_file() else []
        times = record.read_times(self.path)
        for found in records[:1]:
            if (found.spec, found.model) != (self.spec.hash, self.weights):
                other = "spec" if found.spec != self.spec.hash else "model"
                raise ValueError(
                    f"eval: {self.path} was written with another {other}; choose another file, or remove this one"
                )
        if len(records) > limit:
            raise ValueError(
                f"eval: {self.path} holds {len(records)} records, the spec has {limit} items; choose another file, or "
                "remove this one"
            )
        count = min(len(records), len(times))
        count = count if count == limit else count // self.spec.decoding.batch * self.spec.decoding.batch
        record.write(self.path, records[:count], times[:count], anew=True)
        return records[:count], times[:count]

    def _ask(self, items: Sequence[Item], start: int) -> list[tuple[Record, Times]]:
        """A batch of items; `start` is the number of the first one."""
        batches, errors = list[Batch](), dict[int, str]()
        questions = [item.question(self.spec.prompt) for item in items]
        for number, (item, question) in enumerate(zip(items, questions, strict=True)):
            try:
                batches.append(self._prompt(item, question))
            except ValueError as error:  # a file that is damaged, or a prompt that does not fit
                errors[number] = str(error)
        answers = iter(self._answers(batches, start) if batches else [])
        return [
            self._unasked(item, question, errors[number])
            if number in errors
            else self._marked(item, question, next(answers))
            for number, (item, question) in enumerate(zip(items, questions, strict=True))
        ]

    def _prompt(self, item: Item, question: str) -> Batch:
        shown, thinking = self.spec.preprocessing, self.spec.thinking
        content = [*(_sampled(part, shown) for part in item.media), {"type": "text", "text": question}]
        chat: dict[str, Any] = {} if thinking.effort is None else {"effort": thinking.effort}
        return self.processor(
            [{"role": "user", "content": content}],
            context=shown.context,
            preset=shown.preset,
            video_pruning_rate=shown.evs,
            overflow=shown.overflow,
            enable_thinking=thinking.enabled,
            **chat,
        )

    def _answers(self, batches: Sequence[Batch], start: int) -> list[Result]:
        how, thinking = self.spec.decoding, self.spec.thinking
        pieces = self.model.generate(
            Batch.pack(list(batches)),
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            min_p=how.min_p,
            repetition_penalty=how.repetition_penalty,
            stop=how.stop,
            seed=self.spec.seed + start,
            thinking_budget=thinking.budget if thinking.enabled else 0,
            grace=thinking.grace,
            stream=True,
        )
        assert isinstance(pieces, Stream)
        return pieces.results

    def _marked(self, item: Item, question: str, result: Result) -> tuple[Record, Times]:
        mark, receipt = self.scorer.mark(result.text, item), result.receipt
        made = replace(
            self._plain(item, question),
            answer=result.text,
            thinking=result.thinking,
            stopped=result.stopped,
            extracted=mark.extracted,
            got=mark.got,
            most=mark.most,
            notes=dict(mark.notes),
            tokens=_tokens(result.prompt_tokens, result.thinking_tokens, len(result.tokens)),
            receipt=_short(receipt),
        )
        if self.receipts is not None:
            name = hashlib.sha256(item.name.encode()).hexdigest()[:16]
            receipt.save(self.receipts / f"{name}.json")
        return made, Times(item=item.name, seconds=dict(receipt.seconds), when=receipt.when)

    def _unasked(self, item: Item, question: str, error: str) -> tuple[Record, Times]:
        mark = self.scorer.mark("", item)
        made = replace(self._plain(item, question), got=mark.got, most=mark.most, error=error)
        return made, Times(item=item.name, seconds={"all": 0.0}, when=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}")

    def _plain(self, item: Item, question: str) -> Record:
        """A record without an answer."""
        return Record(
            spec=self.spec.hash,
            model=self.weights,
            rule=self.scorer.name,
            item=item.name,
            question=question,
            truth=item.truth,
            answer="",
            thinking="",
            stopped="",
            extracted=None,
            got=0.0,
            most=1.0,
            tokens=_tokens(0, 0, 0),
            groups=dict(item.groups),
        )


def check(spec: Spec, items: Table) -> None:
    """Raises ValueError for what is known to be wrong before a model is loaded: no item, an unknown rule, a prompt or a
    rule that does not fit the first item.
    """
    scorer = named(spec.scoring.rule)
    if not len(items):
        raise ValueError(f"eval: {spec.source.path or spec.task} has no items")
    items[0].question(spec.prompt)
    try:
        scorer.mark("A 1 2", items[0])
    except (LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"spec: scoring.rule {scorer.name!r} cannot mark {spec.task} ({why}); leave it out for the task's own"
        ) from None


def prepared(processor: OmniProcessor, shown: Preprocessing) -> OmniProcessor:
    """The processor with a spec's dpi. The one that came stays as it is."""
    if shown.dpi is None:
        return processor
    made = copy.copy(processor)
    made.rules = replace(processor.rules, page_dpi=shown.dpi)
    with suppress(AttributeError):  # its identity, where it was asked for
        del made.identity
    return made


def _sampled(part: Mapping[str, Any], shown: Preprocessing) -> dict[str, Any]:
    """A part of a message; of a video whose frames are not chosen yet, with the spec's frames or rate."""
    made = dict(part)
    if part["type"] != "video" or part.keys() & {"frames", "sampling", "times"}:
        return made
    if shown.frames is not None:
        made["sampling"] = {"frames": shown.frames}
    elif shown.fps is not None:
        made["fps"] = shown.fps
    return made


def _tokens(prompt: int, thinking: int, written: int) -> dict[str, int]:
    return {"prompt": prompt, "thinking": thinking, "written": written}


def _short(receipt: Any) -> dict[str, Any]:
    """What of a receipt is the same whenever the answer is."""
    given = receipt.seen.given
    kept = ("kind", "name", "sha256", "size", "tokens", "text_tokens", "details")
    made = {
        "items": [{name: getattr(item, name) for name in kept} for item in given.items],
        "prompt": hashlib.sha256(repr(receipt.ids).encode()).hexdigest(),
        "left_out": list(given.left_out),
        "seed": receipt.settings["seed"],
    }
    return json.loads(json.dumps(made))  # lists for tuples, as the file has them
