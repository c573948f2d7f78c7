"""What layers do with one token (`omni.one_token`) as instructions of a machine (`omni.native`): any number of layers
between two attentions' caches are one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from omni.attention import AttentionConfig
from omni.loops import CODES, KEYS, Does
from omni.mamba import MambaConfig
from omni.moe import MLPConfig, MoEConfig
from omni.native import KINDS, Given, Program
from omni.one_token import Part
from omni.products import Matrix
from omni.state import KVState

CACHED = (torch.float32, torch.bfloat16, torch.float16)


class _Written:
    """A program that grows, for one caller at a time."""

    def __init__(self) -> None:
        self.program, self.lock = Program(), Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=Lock())

    def _times(
        self,
        matrix: Matrix,
        vectors: Float[Tensor, "*vectors width"] | Given,
        chosen: Tensor | None = None,
        out: Tensor | Given | None = None,
        add: bool = False,
    ) -> Any:
        """(*chosen, rows) of a new tensor, or into another, or added to what is there; chosen ones of a stack times a
        vector that they share, or theirs.
        """
        weight, scales, rows = matrix.weight, matrix.scales, matrix.rows
        words = weight.shape[-1] if weight.dtype == torch.int32 else 0
        width = weight.shape[-2:].numel() * CODES if words else weight.shape[-1]
        count = 1 if isinstance(vectors, Given) else vectors.numel() // width
        steps = sums = None
        group = words * CODES or width
        groups = width // group
        if scales is not None:
            codes, steps, sums = torch.empty(count, width, dtype=torch.int16), *torch.empty(2, count * groups)
            self.program.write(Does.INTEGERS, vectors, codes, steps, sums, count * groups, group, words)
            vectors = codes
        matrices = 1 if chosen is None else len(chosen)
        out = torch.empty(*(() if chosen is None else (matrices,)), rows) if out is None else out
        self.program.write(
            Does.TIMES, KINDS[weight.dtype], weight, scales, vectors, steps, sums, _floats(matrix.bias), out, rows,
            width, words, groups, matrices, matrices // count, chosen, int(add),
        )  # fmt: skip
        return out


class Head(_Written):
    """A row times a matrix."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.rows = matrix.rows
        self._times(matrix, Given("x"), out=Given("out"))

    def __call__(self, x: Float[Tensor, "1 width"]) -> Float[Tensor, "1 rows"]:
        """Sums are float32."""
        with self.lock:
            out = torch.empty(1, self.rows)
            self.program.run({"x": x.float().contiguous(), "out": out})
        return out.to(x.dtype)


class Native(_Written):
    """Parts, one behind the other. Sums, and the stream between layers, are float32, whatever it comes and leaves in.

    Called with the stream and what parts need, in their order, it returns the stream and what they made: each Mamba
    layer's history and memory; queries, keys and values. These three hold until the next call. An attention that is
    among them twice, before and behind its cache, is given that, which grows by a token.
    """

    def __init__(self, parts: Sequence[Part], width: int) -> None:
        super().__init__()
        self.width, self.stream = width, torch.empty(1, width)
        self.result = self.stream
        self.memories: list[tuple[str, tuple[int, ...]]] = []  # names and shapes of histories and memories
        self.windows: list[int | None] = []  # of each attention with its cache
        self.heads = self.dim = 0  # the most of an attention
        self.made: list[Tensor] = []
        self.mean: Tensor | Given = Given("mean")
        for part, behind in zip(parts, (*parts[1:], None), strict=True):
            self._write(part, behind)

    def __call__(self, x: Float[Tensor, "1 width"], *needed: Tensor, caches: Sequence[KVState] = ()) -> list[Tensor]:
        """See the class."""
        with self.lock:
            self.stream.copy_(x)
            rest = [t if t.dtype == torch.float32 and t.is_contiguous() else t.float().contiguous() for t in needed]
            given = self._room(caches)
            if len(rest) > len(self.memories):
                given["mean"], *rest = rest
            after: list[Tensor] = []
            for at, (name, shape) in enumerate(self.memories):
                given[name], made = rest[at], torch.empty(shape)
                given[f"next {name}"] = made
                after.append(made)
            self.program.run(given)
            return [self.result.to(x.dtype, copy=True), *after, *(made.to(x.dtype) for made in self.made)]

    def _room(self, caches: Sequence[KVState]) -> dict[str, Tensor | int]:
        """A token's in each cache; and where threads put what they find there."""
        given: dict[str, Tensor | int] = {}
        if not caches:
            return given
        for held in (held for cache in caches for held in (cache.keys[0], cache.values[0])):
            if held.dtype not in CACHED:
                raise ValueError(f"compile: a cache in {held.dtype} came; want float32, bfloat16 or float16")
        threads = torch.get_num_threads()
        given["found"], given["scores"] = torch.empty(threads, self.heads, self.dim + 2), torch.empty(threads, 2, KEYS)
        for number, (cache, window) in enumerate(zip(caches, self.windows, strict=True)):
            at = cache.extend(0, 1)
            keys, values = cache.keys[0], cache.values[0]
            first = 0 if window is None else max(0, at + 1 - window)
            row = keys.shape[2] * keys.element_size()
            given[f"kind {number}"], given[f"head {number}"] = KINDS[keys.dtype], keys.shape[1] * row
            given[f"at {number}"], given[f"count {number}"] = at, at + 1 - first
            for name, held in (("keys", keys), ("values", values)):
                given[f"{name} {number}"] = held
                given[f"seen {name} {number}"] = held.data_ptr() + first * row
        return given

    def _write(self, part: Part, behind: Part | None) -> None:
        match part.config:
            case MambaConfig() as config:
                self._scan(config, part)
            case MoEConfig() as config:
                self._mixture(config, part)
            case MLPConfig():
                norm, *matrices = part.weights
                self._feed_forward(self._normed(norm, part.eps[0]), *matrices)
            case None if part.needs == "mean":
                (out,) = part.weights
                self._times(out, self.mean, out=self.stream, add=True)
            case AttentionConfig(head_dim=dim) as config:
                norm, *matrices = part.weights
                row = self._normed(norm, part.eps[0])
                made = [self._times(matrix, row).view(1, -1, dim) for matrix in matrices]
                if behind is None:
                    self.made = made
                else:
                    self.mean = self._attended(config, *made)
            case None:
                (norm,) = part.weights
                self.result = self._normed(norm, part.eps[0])[None]

    def _normed(self, weight: Tensor, eps: float) -> Float[Tensor, " width"]:
        row = torch.empty(self.width)
        self.program.write(Does.NORM, self.stream, weight, row, self.width, eps)
        return row

    def _attended(self, c: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, " inner"]:
        number, mean = len(self.windows), torch.empty(c.heads * c.head_dim)
        self.windows.append(c.window)
        self.heads, self.dim = max(self.heads, c.heads), max(self.dim, c.head_dim)
        kind, head = Given(f"kind {number}"), Given(f"head {number}")
        for name, made in (("keys", k), ("values", v)):
            self.program.write(
                Does.KEEP, kind, made, Given(f"{name} {number}"), c.kv_heads, c.head_dim, Given(f"at {number}"), head
            )
        self.program.write(
            Does.ATTEND, kind, q, Given(f"seen keys {number}"), Given(f"seen values {number}"), Given("found"),
            Given("scores"), c.heads, c.heads // c.kv_heads, c.head_dim, Given(f"count {number}"), head,
            c.head_dim**-0.5,
        )  # fmt: skip
        self.program.write(Does.JOIN, Given("found"), mean, c.heads, c.head_dim)
        return mean

    def _activated(
        self, row: Tensor, up: Matrix, gate: Matrix | None, chosen: Tensor | None = None, clamp: float | None = None
    ) -> Float[Tensor, "*experts hidden"]:
        hidden = self._times(up, row, chosen)
        opened = None if gate is None else self._times(gate, row, chosen)
        self.program.write(Does.ACTIVATE, hidden, opened, hidden.numel(), int(gate is not None), clamp or 0.0)
        return hidden

    def _feed_forward(self, row: Tensor, up: Matrix, gate: Matrix | None, down: Matrix) -> None:
        self._times(down, self._activated(row, up, gate), out=self.stream, add=True)

    def _mixture(self, c: MoEConfig, part: Part) -> None:
        norm, router, bias, up, gate, down, to_latent, from_latent, shared = part.weights
        row = self._normed(norm, part.eps[0])
        logits = self._times(Matrix(router, None, None, c.experts), row)
        chosen, weights = torch.empty(c.top_k, dtype=torch.int64), torch.empty(c.top_k)
        self.program.write(
            Does.CHOOSE, logits, bias, torch.empty(c.experts), chosen, weights, c.experts, c.top_k, c.groups,
            c.top_groups, int(c.router == "softmax"), int(c.normalize), c.scale,
        )  # fmt: skip
        inner = row if to_latent is None else self._times(to_latent, row)
        parts = self._times(down, self._activated(inner, up, gate, chosen, c.clamp), chosen)
        mixed = self.stream if from_latent is None else torch.empty(down.rows)
        self.program.write(Does.MIX, parts, weights, mixed, c.top_k, down.rows, int(from_latent is None))
        if from_latent is not None:
            self._times(from_latent, mixed, out=self.stream, add=True)
        if shared is not None:
            self._feed_forward(row, *shared)

    def _scan(self, c: MambaConfig, part: Part) -> None:
        outer, into, convolution, bias, dt_bias, a, skip, norm, out = part.weights
        eps, inner_eps = part.eps
        number = len(self.memories) // 2
        self.memories.append((f"history {number}", (1, c.taps - 1, c.channels)))
        self.memories.append((f"memory {number}", (1, c.heads, c.head_dim, c.state)))
        gate, x, times = self._times(into, self._normed(outer, eps)).split([c.inner, c.channels, c.heads])
        mixed, gated = torch.empty(c.channels), torch.empty(c.inner)
        self.program.write(
            Does.CONVOLVE, Given(f"history {number}"), x, convolution, bias, mixed, Given(f"next history {number}"),
            c.taps, c.channels,
        )  # fmt: skip
        self.program.write(
            Does.SCAN, Given(f"memory {number}"), mixed, times, dt_bias, a, skip, gate, Given(f"next memory {number}"),
            gated, c.heads, c.head_dim, c.state, c.groups,
        )  # fmt: skip
        self.program.write(Does.GROUP_NORM, gated, norm, gated, c.groups, c.inner // c.groups, inner_eps)
        self._times(out, gated, out=self.stream, add=True)


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float()
