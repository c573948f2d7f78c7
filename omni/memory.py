"""Memory: ingest once, ask for ever. A model's state after a document, a clip or a recording: any number of questions
go on from it, more media make it grow, a file keeps it.

The hybrid's state is small: keys and values in its few attention layers, and a constant for all Mamba layers, so what
took minutes to read is stored in megabytes and asked in the time of the question alone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from omni import kv_format, sealed
from omni.kv_format import KVFormat
from omni.language import LanguageModel
from omni.prefill import CELL, Line, Prefix
from omni.seen import Seen
from omni.speculate import Drafter
from omni.splice import Features
from omni.state import KVState, MambaState, Snapshot, State
from processors.batch import Batch
from processors.given import Given, key_of

KIND = "omni memory"
VERSION = 2  # of the file and of the numbers in it: raise it whenever a model's state changes its meaning
LOOKS_SHARE = 0.01  # of a file that pictures may take


class Memory:
    """What a model has read of one conversation, up to where a question may follow.

    It remembers exactly: asked about, it answers as if all had been read in one prompt. kv_error: how far its keys and
    values are from those that were read (relative, root mean square), where a file stored them with fewer bits.
    """

    def __init__(self, model: LanguageModel, prefix: Prefix, kv_error: float = 0.0) -> None:
        self.model, self.kv_error, self._prefix = model, kv_error, prefix

    @classmethod
    def ingest(cls, model: LanguageModel, batches: Batch | Iterable[Batch], draft: bool = False) -> Memory:
        """Read a batch of one conversation (`processor.ingest`), or the pieces of one (`processor.stream`) one by one.

        draft: the multi-token head reads along, so that answers can be drafted well.
        """
        memory = cls(model, Prefix.new(model, draft))
        for batch in [batches] if isinstance(batches, Batch) else batches:
            memory.append(batch)
        memory.settle()
        return memory

    @torch.no_grad()
    def append(self, batch: Batch, features: Features | None = None, encoding: float = 0.0) -> None:
        """Read on: what follows in the same conversation. Interrupted, the memory is as it was before.

        features: of its media, where they are encoded already, which took `encoding` seconds. Raises ValueError unless
        the batch is one sequence that goes on from here.
        """
        if len(batch) != 1:
            raise ValueError(f"memory: a batch of {len(batch)} conversations came; ingest them one by one")
        if not (batch.given and len(batch.given[0].calls) == len(self.given.calls)):  # a piece of what is being read
            self.check(batch)
        start = time.perf_counter()
        spliced = self.model.embed(batch, features)
        encoded = time.perf_counter()
        with self._prefix.all_or_nothing(self.model) as prefix:
            prefix.append(batch, spliced)
            while prefix.advance(self.model):
                pass
            done = time.perf_counter()
            prefix.seen = prefix.seen.ingested({"encode": encoding + encoded - start, "prefill": done - encoded})

    @torch.no_grad()
    def settle(self) -> None:
        """Read the last tokens too, once for all questions: `append` leaves those behind the last line of the grid
        (`omni.prefill`) for what may follow. Interrupted, the memory is as it was before.
        """
        if not self._prefix.waiting:
            return
        start = time.perf_counter()
        with self._prefix.all_or_nothing(self.model) as prefix:
            prefix.settle(self.model)
            prefix.seen = prefix.seen.ingested({"encode": 0.0, "prefill": time.perf_counter() - start})

    def forget(self, first: int, keep: int) -> None:
        """Delete the keys and values behind the first tokens, but for the last `keep` and what is not a cell yet."""
        layer = next((layer for layer in self._prefix.state.layers if isinstance(layer, KVState)), None)
        if layer is None:
            return
        many = layer.lengths[0] - self._prefix.ahead - first - keep
        if many >= CELL:
            self._prefix.forget(self.model, first, first + many)

    def check(self, batch: Batch) -> None:
        """Raise ValueError for a batch that the processor made to follow something else."""
        if batch.given and not batch.given[0].follows(self.given):
            raise ValueError(
                "memory: what came was made to follow something else than was read; make it with after=memory.given"
            )

    def charge(self, before: Mapping[str, int | float], seconds: float) -> None:
        """What was read since `before` (`seen.memory` then) is for the next questions alone, and took so many seconds:
        an answer's receipt counts it as the answer's own, not as a memory's.
        """
        seen, spent = self.seen, self.seen.memory
        own = {stage: spent.get(stage, 0.0) - before.get(stage, 0.0) for stage in ("encode", "prefill")}
        self._prefix.spent = {**own, "all": seconds}
        self._prefix.seen = replace(seen, memory=before)

    def fork(self) -> Memory:
        """A copy: what one reads later, the other does not know."""
        return Memory(self.model, self._prefix.fork(), self.kv_error)

    def prefix(self) -> Prefix:
        """A fork of what was read, to be read on (`omni.generate`)."""
        return self._prefix.fork()

    @property
    def seen(self) -> Seen:
        """What was read: the places of media, what pruning left of them, small pictures."""
        return self._prefix.seen

    @property
    def given(self) -> Given:
        """What the processor made it of; `processor.ask(question, after=memory.given)` goes on from here."""
        return self.seen.given

    @property
    def key(self) -> str:
        """Names the memory by the content of its media, its settings and its model: the key of any cache of it.

        Raises ValueError where batches were made by hand, so that nobody knows their content.
        """
        if not self.given.calls:
            raise ValueError("memory: its batches were made by hand and have no record; use processor.ingest")
        live = [
            item.details for item in self.given.items if "window" in item.details
        ]  # the same sound, heard otherwise
        return key_of([self.given.key, self.model.identity.fingerprint, VERSION, self.kv_error, live])

    @property
    def tokens(self) -> int:
        """Their number."""
        return len(self._prefix.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the state, and of the embeddings behind the last line, of which it may have to be read again."""
        return self._prefix.state.nbytes + self._prefix.unread.nbytes

    def file_bytes(self, kv: str = "exact") -> int:
        """What its file weighs, from the model's sizes alone: right within 2 % from about a megabyte on.

        Keys and values of the tokens read, the constant state, that of the grid's last line where more is read, and the
        embeddings behind it (at most 1024).
        """
        backbone, prefix, form = self.model.config.backbone, self._prefix, kv_format.check(kv)
        each = kv_format.BYTES.get(form, prefix.unread.element_size())
        held = (layer.lengths[0] for layer in prefix.state.layers if isinstance(layer, KVState))
        read, waiting = next(held, 0), prefix.unread.numel()
        drafter = prefix.drafter.state.nbytes * each // prefix.unread.element_size() if prefix.drafter else 0
        wide = prefix.unread.element_size() if form == "exact" else 2
        constant = 4 * backbone.constant_size * (2 if prefix.ahead and self._line else 1)
        return read * backbone.kv_size * each + constant + waiting * wide + drafter

    @property
    def _line(self) -> int:
        """Tokens before the grid's last line."""
        return len(self._prefix.tokens) - len(self._prefix.unread)

    def save(self, path: str | Path, kv: str = "exact") -> None:
        """Write it to a file, whole or not at all.

        kv: "exact" keeps keys and values as they are; "bfloat16", "float8" and "int8" keep fewer bits (and the last
        embeddings in bfloat16), and `kv_error` of what is loaded says what that cost.
        """
        prefix, form = self._prefix, kv_format.check(kv)
        tensors, kv_error = _store(prefix.state, "backbone", form)
        unread = prefix.unread if form == "exact" else prefix.unread.bfloat16()
        tensors |= {"tokens": _squeezed(prefix.tokens), "unread": unread}
        if prefix.drafter is not None:
            tensors |= _store(prefix.drafter.state, "drafter", form)[0]
            if prefix.drafter.last is not None:
                tensors["drafter.last"] = prefix.drafter.last
        if prefix.ahead and self._line:
            tensors |= _store_line(prefix.line)
        seen = prefix.seen.with_looks(int(LOOKS_SHARE * sum(tensor.nbytes for tensor in tensors.values())))
        header = {
            "version": VERSION,
            "omni": self.model.identity.environment["omni"],
            "model": self.model.identity.fingerprint,
            "kv": form,
            "kv_error": max(kv_error, self.kv_error),
            "ahead": prefix.ahead,
            "seen": seen.to_dict(),
        }
        sealed.write(path, KIND, header, tensors)

    @classmethod
    def load(cls, path: str | Path, model: LanguageModel) -> Memory:
        """Read a file for the model that it was made with. Keys and values take the model's dtype and device.

        Raises ValueError for another model, another version, and for a file that is damaged in any byte.
        """
        header, tensors = sealed.read(path, KIND)
        if header["version"] != VERSION:
            raise ValueError(
                f"memory: {path} is of version {header['version']} (omni {header['omni']}), this omni reads {VERSION}; "
                "ingest the files again"
            )
        ours = model.identity.fingerprint
        if header["model"] != ours:
            raise ValueError(
                f"memory: {path} was made with another model ({header['model'][:12]}, this one is {ours[:12]}); "
                "load that model, or ingest the files again"
            )
        tokens, unread, ahead = _unsqueezed(tensors["tokens"]), _like(tensors["unread"], model), header["ahead"]
        line = len(tokens) - len(unread)
        state, at_line = _restored(model.new_state(), "backbone", tensors, line, ahead)
        drafter = drafter_at_line = None
        if any(name.startswith("drafter.") for name in tensors):
            drafter = Drafter.new(model)
            _, mark = _restored(drafter.state, "drafter", tensors, line - 1, ahead)
            drafter.last, before = (
                None if last is None else _like(last, model)
                for last in (tensors.get("drafter.last"), tensors.get("line.drafter.last"))
            )
            drafter_at_line = mark, before
        seen = Seen.from_dict(header["seen"])
        if header["kv"] != "exact":
            seen = replace(seen, stored={"kv": header["kv"], "kv_error": header["kv_error"]})
        prefix = Prefix(state, tokens, unread, drafter, seen)
        if ahead:
            prefix.line, prefix.ahead = Line(at_line, drafter_at_line), ahead
        return cls(model, prefix, header["kv_error"])


def _like(x: Tensor, model: LanguageModel) -> Tensor:
    return x.to(model.look_up(torch.zeros(0, dtype=torch.long)))


def _squeezed(tokens: Tensor) -> Tensor:
    """Ids, compressed: those of media are long runs."""
    return torch.frombuffer(bytearray(zlib.compress(tokens.int().numpy().tobytes())), dtype=torch.uint8)


def _unsqueezed(stored: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(zlib.decompress(stored.numpy().tobytes())), dtype=torch.int32).long()


def _store(state: State, name: str, kv: KVFormat) -> tuple[dict[str, Tensor], float]:
    """The tensors of a state of one sequence, its used length only, and the relative error of its keys and values."""
    tensors: dict[str, Tensor] = {}
    squares = [(0.0, 0.0)]
    for i, layer in enumerate(state.layers):
        if isinstance(layer, MambaState):
            tensors |= {f"{name}.{i}.history": layer.history, f"{name}.{i}.ssm": layer.ssm}
        if isinstance(layer, KVState):
            length = layer.lengths[0]
            for part, buffers in (("keys", layer.keys), ("values", layer.values)):
                used = buffers[0][:, :length]
                stored = kv_format.pack(used, kv)
                squares += [kv_format.error(used, stored)] if kv != "exact" else []
                tensors |= {f"{name}.{i}.{part}.{key}": value for key, value in stored.items()}
    wrong, all_squares = (sum(column) for column in zip(*squares, strict=True))
    return tensors, (wrong / all_squares) ** 0.5 if all_squares else 0.0


def _store_line(line: Line) -> dict[str, Tensor]:
    """What a state cannot be shortened to: the constants as they were at the line."""
    marks, tensors = {"line.backbone": line.state}, dict[str, Tensor]()
    if line.drafter is not None:
        marks["line.drafter"], last = line.drafter
        tensors |= {} if last is None else {"line.drafter.last": last}
    for name, mark in marks.items():
        for i, layer in enumerate(mark.layers):
            if isinstance(layer, tuple):
                tensors |= {f"{name}.{i}.history": layer[0], f"{name}.{i}.ssm": layer[1]}
    return tensors


def _restored(state: State, name: str, tensors: Mapping[str, Tensor], line: int, ahead: int) -> tuple[State, Snapshot]:
    """An empty state of one sequence filled with stored tensors, and how it was at the line, `ahead` tokens before.

    Buffers are the file's own where nothing changes.
    """
    mark = state.snapshot()
    layers: list[object] = []
    for i, (layer, fresh) in enumerate(zip(state.layers, mark.layers, strict=True)):
        at_line: object = None
        if isinstance(layer, MambaState):
            stems = [f"{name}.{i}", f"line.{name}.{i}"]
            now, then = (
                (tensors[f"{stem}.history"].to(layer.history), tensors[f"{stem}.ssm"].to(layer.ssm))
                if f"{stem}.ssm" in tensors
                else None
                for stem in stems
            )
            assert now
            layer.restore(now)
            at_line = then or fresh  # before the first token
        if isinstance(layer, KVState):
            for part, buffers in (("keys", layer.keys), ("values", layer.values)):
                stem = f"{name}.{i}.{part}."
                stored = {key.removeprefix(stem): value for key, value in tensors.items() if key.startswith(stem)}
                buffers[0] = kv_format.unpack(stored, buffers[0].dtype).to(buffers[0].device)
            layer.lengths = [layer.keys[0].shape[1]]
            at_line = [max(0, layer.lengths[0] - ahead)]
        layers.append(at_line)
    state.advance([max(0, line + ahead)])
    snapshot = Snapshot((max(0, line),), tuple(layers))
    state.adopt(snapshot)
    return state, snapshot
