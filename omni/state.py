"""State: what a backbone remembers of the sequences it has read, as an explicit argument.

An attention layer keeps the keys and values of every token (growing buffers, one a sequence); a Mamba layer keeps the
last inputs of its convolution and its state-space state (constant size, float32); other layers keep nothing. The
model writes into a state given to it. Key and value buffers are only ever appended to, and Mamba tensors are
replaced, never written into, so a snapshot costs a few references, and restoring one rolls the sequence back exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor


class KVState:
    """Keys and values of one attention layer: for each sequence a buffer (kv_heads, capacity, head_dim) filled to a
    length.
    """

    __slots__ = ("keys", "lengths", "values")

    def __init__(self, sequences: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self.keys = [torch.empty(kv_heads, 0, head_dim, device=device, dtype=dtype) for _ in range(sequences)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.lengths = [0] * sequences

    def append(
        self,
        sequence: int,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
    ) -> tuple[Float[Tensor, "kv_heads all dim"], Float[Tensor, "kv_heads all dim"]]:
        """Add tokens to a sequence and return views of all its keys and values."""
        start = self.extend(sequence, keys.shape[1])
        stop = self.lengths[sequence]
        self.keys[sequence][:, start:stop] = keys
        self.values[sequence][:, start:stop] = values
        return self.keys[sequence][:, :stop], self.values[sequence][:, :stop]

    def extend(self, sequence: int, tokens: int) -> int:
        """Make a sequence longer by tokens that are written next; returns where they begin."""
        start = self.lengths[sequence]
        stop = start + tokens
        capacity = self.keys[sequence].shape[1]
        if stop > capacity:
            capacity = max(stop, capacity + capacity // 2, 64)
            self.keys[sequence] = _grown(self.keys[sequence], start, capacity)
            self.values[sequence] = _grown(self.values[sequence], start, capacity)
        self.lengths[sequence] = stop
        return start

    def snapshot(self) -> list[int]:
        """The lengths: buffers are only appended to."""
        return list(self.lengths)

    def restore(self, lengths: list[int]) -> None:
        """Forget what came after."""
        self.lengths = list(lengths)

    def rewind(self, counts: Sequence[int]) -> None:
        """Forget each sequence's last tokens."""
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]

    def forget(self, first: int, stop: int) -> None:
        """Let go of what stands from first to stop in each sequence; buffers are replaced."""
        for held in (self.keys, self.values):
            for i, length in enumerate(self.lengths):
                held[i] = torch.cat((held[i][:, :first], held[i][:, stop:length]), 1)
        self.lengths = [length - (stop - first) for length in self.lengths]

    def take(self, sequences: Sequence[int]) -> KVState:
        """Just these sequences, sharing their buffers."""
        new = object.__new__(KVState)
        new.lengths = [self.lengths[i] for i in sequences]
        new.keys = [self.keys[i] for i in sequences]
        new.values = [self.values[i] for i in sequences]
        return new

    def select(self, sequences: Sequence[int]) -> KVState:
        """A copy that holds just these sequences."""
        new = object.__new__(KVState)
        new.lengths = [self.lengths[i] for i in sequences]
        new.keys = [self.keys[i][:, : self.lengths[i]].clone() for i in sequences]
        new.values = [self.values[i][:, : self.lengths[i]].clone() for i in sequences]
        return new

    @staticmethod
    def join(parts: Sequence[KVState]) -> KVState:
        """Sequences of several states side by side, sharing their buffers."""
        new = object.__new__(KVState)
        new.lengths = [length for part in parts for length in part.lengths]
        new.keys = [keys for part in parts for keys in part.keys]
        new.values = [values for part in parts for values in part.values]
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held (buffers may have room for more)."""
        return sum(
            2 * length * keys.shape[0] * keys.shape[2] * keys.element_size()
            for keys, length in zip(self.keys, self.lengths, strict=True)
        )


def _grown(buffer: Tensor, used: int, capacity: int) -> Tensor:
    with torch.inference_mode(False):  # tensors of inference mode could not be written into outside it
        new = buffer.new_empty(buffer.shape[0], capacity, buffer.shape[2])
    new[:, :used] = buffer[:, :used]
    return new


@dataclass(frozen=True, slots=True)
class Trail:
    """What a short read leaves of its way: the convolution's inputs, its past included (ends filled up with anything),
    and the state after each token (of a sequence that had ended: its last).
    """

    inputs: Float[Tensor, "sequences past_and_steps channels"]
    states: Float[Tensor, "steps sequences heads dim state"]
    lengths: tuple[int, ...]

    def at(self, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
        """History and state of each sequence after its first `end` tokens, at least one."""
        past = self.inputs.shape[1] - len(self.states)
        if len(set(ends)) == 1:
            return self.inputs[:, ends[0] : ends[0] + past].float(), self.states[ends[0] - 1]
        history = torch.stack([rows[end : end + past] for rows, end in zip(self.inputs, ends, strict=True)])
        return history.float(), self.states[[end - 1 for end in ends], range(len(ends))]


class MambaState:
    """Convolution history and state-space state of one Mamba layer, all sequences stacked, float32.

    trail: of the last read, if it was a short one: `rewind` goes back along it.
    """

    __slots__ = ("history", "ssm", "trail")

    def __init__(
        self,
        history: Float[Tensor, "sequences past channels"],
        ssm: Float[Tensor, "sequences heads dim state"],
        trail: Trail | None = None,
    ) -> None:
        self.history, self.ssm, self.trail = history, ssm, trail

    @classmethod
    def at_end(cls, trail: Trail) -> MambaState:
        """Where a short read has led to."""
        past = trail.inputs.shape[1] - len(trail.states)
        if set(trail.lengths) == {len(trail.states)}:
            return cls(trail.inputs[:, -past:].float(), trail.states[-1], trail)
        return cls(*trail.at(trail.lengths), trail)

    def replace(self, other: MambaState) -> None:
        """Go on from there."""
        self.history, self.ssm, self.trail = other.history, other.ssm, other.trail

    def rewind(self, counts: Sequence[int]) -> None:
        """Forget each sequence's last tokens, fewer than the last read took, which was a short one."""
        if not any(counts):
            return
        trail = self.trail
        if trail is None or any(not 0 <= count < n for count, n in zip(counts, trail.lengths, strict=True)):
            raise ValueError(
                f"State.rewind: {list(counts)} tokens back, the last read took "
                f"{list(trail.lengths) if trail else 'too many to be traced'}; restore a snapshot instead"
            )
        self.history, self.ssm = trail.at([n - count for count, n in zip(counts, trail.lengths, strict=True)])
        self.trail = None

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """References: these tensors are replaced, never written into."""
        return self.history, self.ssm

    def restore(self, saved: tuple[Tensor, Tensor]) -> None:
        """Put the saved tensors back."""
        self.history, self.ssm = saved
        self.trail = None

    def take(self, sequences: Sequence[int]) -> MambaState:
        """Just these sequences."""
        return self.select(sequences)

    def select(self, sequences: Sequence[int]) -> MambaState:
        """A copy that holds just these sequences."""
        rows = list(sequences)
        return MambaState(self.history[rows], self.ssm[rows])

    @staticmethod
    def join(parts: Sequence[MambaState]) -> MambaState:
        """Sequences of several states stacked."""
        return MambaState(torch.cat([p.history for p in parts]), torch.cat([p.ssm for p in parts]))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.history.nbytes + self.ssm.nbytes


LayerState = KVState | MambaState | None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Snapshot:
    """A point to which a State (or a clone of it) can be rolled back; cheap, valid until it is rolled back further."""

    lengths: tuple[int, ...]
    layers: tuple[object, ...]


class State:
    """The memory of a batch of sequences: one entry a layer, and the tokens each sequence has read.

    Made by `Backbone.new_state` (empty) and filled by passing it to the model. `join` puts sequences of several states
    side by side, `split` and `select` take them apart, `clone` forks.
    """

    __slots__ = ("layers", "lengths", "marks")

    def __init__(self, layers: tuple[LayerState, ...], lengths: Sequence[int]) -> None:
        self.layers, self.lengths = layers, tuple(lengths)
        self.marks = WeakSet[Snapshot]()  # what can be restored

    def __len__(self) -> int:
        return len(self.lengths)

    def advance(self, lengths: Sequence[int]) -> None:
        """Count the tokens that the layers have just read."""
        self.lengths = tuple(a + b for a, b in zip(self.lengths, lengths, strict=True))

    def snapshot(self) -> Snapshot:
        """Remember this point; costs references, not copies."""
        mark = Snapshot(self.lengths, tuple(layer and layer.snapshot() for layer in self.layers))
        self.marks.add(mark)
        return mark

    def adopt(self, snapshot: Snapshot) -> None:
        """Let this state be rolled back to a snapshot that was stored with it."""
        self.marks.add(snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Roll every sequence back to the snapshot.

        Raises ValueError for another state's snapshot, and for one that this state was rolled back behind: its keys may
        have been written over since.
        """
        if snapshot not in self.marks:
            raise ValueError(
                f"State.restore: a snapshot of {list(snapshot.lengths)} tokens came that is another state's, or behind "
                "which this state was rolled back; restore the newest snapshot first, or fork with clone()"
            )
        for layer, saved in zip(self.layers, snapshot.layers, strict=True):
            if layer is not None:
                layer.restore(saved)  # pyright: ignore[reportArgumentType]  (the pair comes from the same class)
        self._shorten(snapshot.lengths)

    def rewind(self, counts: Sequence[int]) -> None:
        """Forget the last tokens of each sequence, exactly: fewer than the last read took, which was a short one
        (`omni.mamba.SHORT` tokens at most).

        This is how drafts that failed are taken back: a snapshot would forget the accepted ones with them. Raises
        ValueError for more tokens than that.
        """
        if not any(counts):
            return
        for layer in self.layers:  # those that may refuse first
            held = layer.lengths if isinstance(layer, KVState) else self.lengths
            if any(not 0 <= count <= length for count, length in zip(counts, held, strict=True)):
                raise ValueError(f"State.rewind: {list(counts)} tokens back, {list(held)} are held")
        for kind in (MambaState, KVState):
            for layer in self.layers:
                if isinstance(layer, kind):
                    layer.rewind(counts)
        self._shorten(tuple(length - count for length, count in zip(self.lengths, counts, strict=True)))

    def _shorten(self, lengths: tuple[int, ...]) -> None:
        """Stand at these lengths; what was remembered beyond them is gone."""
        self.lengths = lengths
        for mark in list(self.marks):
            if any(then > now for then, now in zip(mark.lengths, lengths, strict=True)):
                self.marks.discard(mark)

    def forget(self, first: int, stop: int) -> None:
        """Let go of the keys and values of some tokens, counted among those held; what Mamba took of them stays.

        For attention without positions, where a token left out is plain deletion. Snapshots from before cannot be
        restored. Raises ValueError for tokens that are not there.
        """
        held = min((min(layer.lengths) for layer in self.layers if isinstance(layer, KVState)), default=stop)
        if not 0 <= first <= stop <= held:
            raise ValueError(f"State.forget: tokens {first} to {stop} came, {held} are held; pass a part of them")
        for layer in self.layers:
            if isinstance(layer, KVState):
                layer.forget(first, stop)
        self.marks.clear()

    def take(self, sequences: Sequence[int]) -> State:
        """Just these sequences without copying their keys and values; the whole must not be used afterwards."""
        return State(
            tuple(layer and layer.take(sequences) for layer in self.layers), [self.lengths[i] for i in sequences]
        )

    def select(self, sequences: Sequence[int]) -> State:
        """A copy with just these sequences, in this order; later writes to either leave the other alone."""
        wrong = [i for i in sequences if not 0 <= i < len(self)]
        if wrong or not sequences:
            raise ValueError(
                f"State.select: sequences {list(sequences)} came for a state of {len(self)}; pass indices 0 to "
                f"{len(self) - 1}"
            )
        return State(
            tuple(layer and layer.select(sequences) for layer in self.layers),
            [self.lengths[i] for i in sequences],
        )

    def clone(self) -> State:
        """A fork: what one reads later, the other does not know."""
        fork = self.select(range(len(self)))
        fork.marks.update(self.marks)
        return fork

    def split(self) -> list[State]:
        """Each sequence as a state of its own."""
        return [self.select([i]) for i in range(len(self))]

    @classmethod
    def join(cls, states: Sequence[State]) -> State:
        """Put the sequences of several states side by side. The parts must not be used afterwards (clone them to keep
        them).

        Raises ValueError when the states come from different models.
        """
        if not states:
            raise ValueError("State.join: no state came; pass at least one")
        kinds = [[type(layer) for layer in state.layers] for state in states]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                f"State.join: states of {[len(kind) for kind in kinds]} layers of different kinds came; "
                "join states of one model"
            )
        layers: list[LayerState] = []
        for column in zip(*(state.layers for state in states), strict=True):
            first = column[0]
            layers.append(None if first is None else type(first).join(column))  # pyright: ignore[reportArgumentType]  (one class a column, checked above)
        return cls(tuple(layers), [length for state in states for length in state.lengths])

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        return sum(layer.nbytes for layer in self.layers if layer is not None)
