"""What generation asks of a model: to embed a batch, to read on from a state, and to score what comes next."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.codec import Codec
from omni.config import OmniConfig
from omni.identity import Identity
from omni.mtp import MTP
from omni.ops import Lengths
from omni.splice import Features, Spliced
from omni.state import State
from processors.batch import Batch


@runtime_checkable
class LanguageModel(Protocol):
    """The part of OmniModel that generation uses."""

    config: OmniConfig
    mtp: MTP | None
    codec: Codec | None

    @property
    def identity(self) -> Identity:
        """Which weights it has, and what it runs on."""
        ...

    def embed(self, batch: Batch, features: Features | None = None) -> Spliced:
        """The backbone's input: ids embedded, media encoded and put at their slots."""
        ...

    def look_up(self, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """Embeddings of ids."""
        ...

    def read(
        self, embeddings: Float[Tensor, "tokens width"], lengths: Lengths, state: State | None = None
    ) -> Float[Tensor, "tokens width"]:
        """The backbone's hidden states after the final norm, going on from a state and leaving the new one in it."""
        ...

    def score(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits, float32."""
        ...

    def new_state(self, sequences: int = 1, dtype: torch.dtype | None = None) -> State:
        """An empty memory."""
        ...


def codec_of(model: LanguageModel) -> Codec:
    """The model's codec. Raises ValueError where it has none."""
    if model.codec is None:
        raise ValueError(
            "generate: this model has no tokenizer; load it from a folder that has tokenizer.json, or set "
            "model.codec = Codec.of(tokenizer, model.config)"
        )
    return model.codec
