"""Live sound: FastConformer chunk by chunk, with explicit state, equal to the whole sound under the same `Window`.

Mel frames may arrive in pieces of any size; features come as soon as the window allows, and are the same for every
way of cutting. The state is small and constant: a few mel frames, at each layer the keys and values of `left` tokens,
what the convolution still hears, and the tokens that wait for its look-ahead. Its tensors are replaced, never written
into, so a copy of the state costs nothing and lives on by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.audio import STRIDE, ConformerBlock, FastConformer, sinusoids
from encoders.window import Span, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """What a layer remembers: keys and values of the last tokens; gated rows that the convolution still hears, the last
    ones those of the tokens that wait for what comes after them; and these tokens themselves.
    """

    keys: Float[Tensor, "left width"]
    values: Float[Tensor, "left width"]
    gated: Float[Tensor, "heard width"]
    waiting: Float[Tensor, "waiting width"]


@dataclass(slots=True, kw_only=True)
class AudioState:
    """A sound that goes on. given: features so far; feature i tells of the 80 ms from i * 80 ms on."""

    mels: Float[Tensor, "frames mels"]
    tokens: Float[Tensor, "tokens width"]
    layers: tuple[LayerMemory, ...]
    subsampled: int = 0
    given: int = 0
    ended: bool = False

    def clone(self) -> AudioState:
        """A fork: what one hears later, the other does not know."""
        return replace(self)

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        kept = [self.mels, self.tokens]
        kept += [part for m in self.layers for part in (m.keys, m.values, m.gated, m.waiting)]
        return sum(part.nbytes for part in kept)


class AudioStream:
    """An encoder and a window; sounds are told apart by their states."""

    @torch.no_grad()
    def __init__(self, encoder: FastConformer, window: Window) -> None:
        encoder.check(window)
        self.encoder, self.window = encoder, window
        self.blocks = [block for block in encoder.layers if isinstance(block, ConformerBlock)]
        like = self.blocks[0].norm_out.weight if self.blocks else torch.zeros(0)
        distances = sinusoids(window.reach(encoder.config.depth), encoder.width, like)
        self.relative = [block.self_attn.relative_k_proj(distances) for block in self.blocks]

    @property
    def latency(self) -> int:
        """Tokens of 80 ms that a feature is given after its own sound, at most."""
        return self.window.chunk + self.window.ahead * len(self.blocks)

    def new_state(self) -> AudioState:
        """Of a sound of which nothing is heard yet."""
        weight = next(self.encoder.parameters())
        nothing = weight.new_zeros(0, self.encoder.width)
        memory = LayerMemory(keys=nothing, values=nothing, gated=nothing, waiting=nothing)
        mels = weight.new_zeros(0, self.encoder.config.mels)
        return AudioState(mels=mels, tokens=nothing, layers=(memory,) * len(self.blocks))

    @torch.no_grad()
    def __call__(
        self, mels: Float[Tensor, "frames mels"], state: AudioState, *, last: bool = False
    ) -> Float[Tensor, "tokens width"]:
        """Hear more frames, or none; returns the features that are complete now, with `last` all that are left.

        Raises ValueError for another number of mels, and after the last frame.
        """
        if state.ended or mels.shape[1] != self.encoder.config.mels:
            raise ValueError(
                f"AudioStream: {len(mels)} frames of {mels.shape[1]} mels came "
                f"{'after the last' if state.ended else 'to an encoder of ' + str(self.encoder.config.mels)}; "
                "begin another sound with new_state()"
            )
        waiting = torch.cat((state.tokens, self._subsampled(mels, state, last)))
        chunk, features = self.window.chunk, list[Tensor]()
        while len(waiting) >= chunk:
            features.append(self._chunk(waiting[:chunk], state, last=False))
            waiting = waiting[chunk:]
        if last:
            features.append(self._chunk(waiting, state, last=True))
            waiting = waiting[:0]
        state.tokens, state.ended = waiting, last
        made = torch.cat(features) if features else waiting[:0]
        state.given += len(made)
        return made

    def _subsampled(self, mels: Tensor, state: AudioState, last: bool) -> Tensor:
        """Tokens whose eight frames are there; the frames of the token before are heard with them."""
        heard = torch.cat((state.mels, mels))
        before = min(state.subsampled, 1)
        count = (-(-len(heard) // STRIDE) if last else len(heard) // STRIDE) - before
        if count < 1:
            state.mels = heard
            return state.tokens[:0]
        subsampling = self.encoder.subsampling
        tokens = subsampling.linear(subsampling.convolve(heard[None, : (before + count) * STRIDE], before)[0])
        state.mels = heard[(before + count - 1) * STRIDE :]
        state.subsampled += count
        return tokens

    def _chunk(self, x: Tensor, state: AudioState, last: bool) -> Tensor:
        """One chunk, or the sound's end, through all layers."""
        layers = []
        for block, memory, relative in zip(self.blocks, state.layers, self.relative, strict=True):
            x, memory = self._step(block, x, memory, relative, last)
            layers.append(memory)
        state.layers = tuple(layers)
        return x

    def _step(
        self, block: ConformerBlock, x: Tensor, memory: LayerMemory, relative: Tensor, last: bool
    ) -> tuple[Tensor, LayerMemory]:
        """`ConformerBlock.forward` for the rows of one chunk; gives those that need not wait."""
        window, reach = self.window, self.encoder.config.kernel // 2
        x = x + 0.5 * block.feed_forward1(block.norm_feed_forward1(x))

        normed, attention = block.norm_self_att(x), block.self_attn
        keys = torch.cat((memory.keys, attention.k_proj(normed)))
        values = torch.cat((memory.values, attention.v_proj(normed)))
        if len(x):
            span = Span(len(memory.keys), len(keys), 0, len(keys))
            x = x + attention.attend(normed, keys, values, relative, [span])

        gated = torch.cat((memory.gated, block.conv.gate(block.norm_conv(x))))
        x = torch.cat((memory.waiting, x))
        ready = len(x) if last else max(len(x) - window.ahead, 0)
        start = len(gated) - len(x)
        x, waiting = x[:ready], x[ready:]
        if ready:
            span = Span(start, start + ready, max(start - reach, 0), len(gated))
            x = x + block.conv.convolve(gated, [span])
        x = x + 0.5 * block.feed_forward2(block.norm_feed_forward2(x))
        return block.norm_out(x), LayerMemory(
            keys=keys[max(len(keys) - window.left, 0) :],
            values=values[max(len(values) - window.left, 0) :],
            gated=gated[max(start + ready - reach, 0) :],
            waiting=waiting,
        )
