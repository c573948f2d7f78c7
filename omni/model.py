"""OmniModel: media → towers → token reduction → projectors → splice → hybrid backbone → logits.

Figure 1 of Nemotron 3 Nano Omni (arXiv 2604.24954): `encode` is its left half, `forward` the right one. Text-only
models are the same without towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.audio import FastConformer
from encoders.timm_tower import TimmConfig, TimmTower
from encoders.vision import RadioVit, VisionConfig
from omni.answer import Result, Settings
from omni.backbone import Backbone
from omni.checkpoint import WHOLE, Checkpoint, folder_of, read_config, save
from omni.codec import Codec
from omni.config import OmniConfig
from omni.generate import Stream, generate
from omni.hf import from_hf, to_hf
from omni.identity import Identity
from omni.memory import Memory
from omni.mtp import MTP
from omni.ops import Lengths
from omni.packed import Format, check, check_change
from omni.packed_file import is_packed, is_quantised, load_packed, save_packed
from omni.precision import cpu_dtype
from omni.projector import Projector
from omni.sampling import Sampling
from omni.splice import Features, Spliced, splice
from omni.state import State
from processors.batch import Batch, Kind, Media
from token_reduction import evs, num_kept_per_step, pixel_shuffle


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a forward pass gives, packed: one row a token that the backbone read.

    tokens: the ids read, placeholders as long as the features that stood there. lengths: of each sequence. hidden:
    after the final norm; multi-token prediction goes on from it.
    """

    logits: Float[Tensor, "tokens vocabulary"]
    tokens: Int[Tensor, " tokens"]
    lengths: Lengths
    hidden: Float[Tensor, "tokens width"]

    def __iter__(self) -> Iterator[Tensor]:
        """Each sequence's logits."""
        return iter(self.logits.split(list(self.lengths)))


Prune = Callable[[Tensor, Tensor, Tensor], Tensor]  # features, (steps, rows, cols) and rate of each clip → kept


class OmniModel(nn.Module):
    """A model of the family, as its config says; parts without a config are absent (None).

    prune: which tokens of a clip stay: EVS scored in float32. Set another of `token_reduction` (causal, random,
    uniform, a partial of `evs` with a score_dtype) to compare; all keep the same number, so plans stay right.
    """

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.config = config
        self.codec: Codec | None = None
        self.prune: Prune = evs
        width, eps = config.backbone.width, config.backbone.eps
        self.embeddings = nn.Embedding(config.backbone.vocabulary, width)
        self.backbone = Backbone(config.backbone)
        self.head = nn.Linear(width, config.backbone.vocabulary, bias=False)
        if config.backbone.tied:
            self.head.weight = self.embeddings.weight
        self.mtp = MTP(config.mtp, width, eps) if config.mtp else None
        self.vision = _tower(config.vision) if config.vision else None
        self.vision_norm = nn.LayerNorm(config.vision.width, eps=1e-6) if config.vision and config.vision_norm else None
        self.project_vision = Projector(config.vision_projector, width) if config.vision_projector else None
        self.audio = FastConformer(config.audio) if config.audio else None
        self.project_audio = Projector(config.audio_projector, width) if config.audio_projector else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OmniModel:
        """What `to`, `half`, `cuda` and the like call. Raises ValueError for a packed model, before any change."""
        check_change(self, fn)
        super()._apply(fn, recurse)
        return self

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | Literal["auto"] = "auto",
        device: torch.device | str = "auto",
        quantize: Format | None = None,
    ) -> OmniModel:
        """Load a local checkpoint folder, or a repository of the hub by its id; in eval mode.

        dtype "auto" keeps each tensor's own (quantised ones become bfloat16), or takes float32 and says so on a CPU
        that is slow in half precision; device "auto" takes CUDA if there is one. quantize packs the weights of linears
        and experts in eight or four bits while they come, for a CPU; such a model reads and writes, and is not trained;
        saved, it is loaded again in moments, its weights mapped from the file. Where the folder has a tokenizer, the
        model can generate. Weights stream in one by one: the peak is the model and one tensor. Raises ValueError
        naming every key that is missing, unknown or of a wrong shape; nothing is loaded then.
        """
        folder = folder_of(path, WHOLE)
        config = from_hf(read_config(folder))
        with torch.device("meta"):
            model = cls(config)
        if is_packed(folder):
            check(quantize, torch.device("cpu" if device == "auto" else device))
            load_packed(model, folder, quantize, dtype)
            model.codec = Codec.from_folder(folder, config)
            return model.eval()
        checkpoint = Checkpoint(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = cpu_dtype(kind for _, kind in checkpoint.headers.values()) or "auto"
        checkpoint.fill(model, config, dtype, device, quantize)
        model.codec = Codec.from_folder(checkpoint.folder, config)
        return model.eval()

    def save_pretrained(self, path: str | Path, shard_bytes: int = 5_000_000_000) -> None:
        """Write config.json and safetensors in dialect A, which transformers, mlx-vlm and vLLM load; a quantised model
        as it is, in one file of our own that is mapped when it is loaded (`omni.packed_file`).
        """
        if is_quantised(self):
            save_packed(self, to_hf(self.config), Path(path))
        else:
            save(self, self.config, to_hf(self.config), Path(path), shard_bytes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of activations."""
        return self.embeddings.weight.dtype

    @property
    def identity(self) -> Identity:
        """Which weights it has now, and what it runs on."""
        return Identity.of(self, self.config, self.prune)

    def new_state(self, sequences: int = 1, dtype: torch.dtype | None = None) -> State:
        """An empty memory for a number of sequences, to be passed to `forward`."""
        return self.backbone.new_state(sequences, dtype)

    def encode(self, media: Media) -> Features:
        """Left half of figure 1: pixels and sound to the backbone's width, packed, with their number an item."""
        image, tubelet, seen, kept = self._see(media)
        audio, heard = self._hear(media)
        counts: dict[Kind, list[int]] = {"image": seen[0], "tubelet": seen[1], "audio": heard}
        return Features(image=image, tubelet=tubelet, audio=audio, counts=counts, kept=kept)

    def _see(self, media: Media) -> tuple[Tensor, Tensor, tuple[list[int], list[int]], tuple[Tensor, ...]]:
        """Images and tubelets in one pass of the tower; clips are thinned out by EVS."""
        steps = media.clips[:, 0]
        frame_grids = media.clips[:, 1:].repeat_interleave(steps, 0)
        grids = torch.cat((media.grids, frame_grids))
        if not len(grids):
            return self._nothing(), self._nothing(), ([], []), ()
        if self.vision is None or self.project_vision is None:
            raise ValueError(
                f"OmniModel: {len(grids)} images or tubelets came, this model has no vision; send text only"
            )
        parts = []
        if len(media.grids):
            parts.append(self.vision.embed_images(self._cast(media.patches), media.grids))
        if len(frame_grids):
            parts.append(self.vision.embed_tubelets(self._cast(media.tubelets), frame_grids))
        x = self.vision.encode(torch.cat(parts), grids)
        x = self.vision_norm(x) if self.vision_norm is not None else x
        x = self.project_vision(pixel_shuffle(x, grids, self.config.shuffle, self.config.shuffle_version))
        counts = (media.grids // self.config.shuffle).prod(-1)
        image, tubelet = x.split([int(counts.sum()), len(x) - int(counts.sum())])
        clips = torch.cat((media.clips[:, :1], media.clips[:, 1:] // self.config.shuffle), 1)
        mask = self.prune(tubelet.detach(), clips, media.rates)
        kept = tuple(part.view(*clip) for part, clip in _by_clip(mask, clips))
        return image, tubelet[mask], (counts.tolist(), num_kept_per_step(mask, clips).tolist()), kept

    def _hear(self, media: Media) -> tuple[Tensor, list[int]]:
        """Sounds through their tower; what overlapping chunks share is dropped."""
        if not len(media.frames):
            return self._nothing(), []
        if self.audio is None or self.project_audio is None:
            raise ValueError(f"OmniModel: {len(media.frames)} sounds came, this model has no hearing; leave them out")
        x, lengths = self.audio(self._cast(media.mels), media.frames)
        if bool(media.trims.any()):
            trims = media.trims.tolist()
            sounds = zip(x.split(lengths.tolist()), trims, strict=True)
            x = torch.cat([sound[start : len(sound) - end] for sound, (start, end) in sounds])
            lengths = lengths - media.trims.sum(-1)
        return self.project_audio(x), lengths.tolist()

    def embed(self, batch: Batch, features: Features | None = None) -> Spliced:
        """The backbone's input: ids embedded, features at their slots (encoded now, unless given)."""
        if features is None and batch.slots:
            features = self.encode(batch.media)
        return splice(batch, self.embeddings.weight, features)

    def forward(self, batch: Batch, state: State | None = None, features: Features | None = None) -> Output:
        """Right half of figure 1. With a state, the sequences go on from it, and it is left at their end."""
        spliced = self.embed(batch, features)
        hidden = self.read(spliced.embeddings, spliced.lengths, state)
        return Output(logits=self.head(hidden), tokens=spliced.tokens, lengths=spliced.lengths, hidden=hidden)

    def look_up(self, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """Embeddings of ids."""
        return self.embeddings(tokens.to(self.device))

    def read(
        self, embeddings: Float[Tensor, "tokens width"], lengths: Lengths, state: State | None = None
    ) -> Float[Tensor, "tokens width"]:
        """The backbone's hidden states after the final norm; a state is gone on from and left at the end."""
        return self.backbone.read(embeddings, lengths, state)

    def score(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits of what follows each hidden state, float32."""
        return self.head(hidden).float()

    def generate(
        self,
        batch: Batch,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str | int] = (),
        thinking_budget: int | None = None,
        grace: int | None = None,
        logprobs: bool = False,
        schema: Mapping[str, Any] | None = None,
        choices: Sequence[str] | None = None,
        draft: int | Literal["auto"] | None = None,
        memory: Memory | None = None,
        stream: bool = False,
    ) -> Result | list[Result] | Stream:
        """Answer a batch: a Result, or a list of them for a batch of many; with `stream` an iterator of Pieces.

        See `omni.answer.Settings` and `omni.sampling.Sampling` for what the arguments mean. draft: tokens to draft with
        the multi-token head ("auto": as many as pay off). memory: what was read before (`omni.memory`). Raises
        ValueError where the model has no tokenizer, or settings do not fit.
        """
        if choices is not None and (isinstance(choices, str) or not choices):
            raise ValueError(f"generate: choices {choices!r} came; want a list of texts, such as ['yes', 'no']")
        settings = Settings(
            max_new_tokens=max_new_tokens,
            sampling=Sampling(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
            ),
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            thinking_budget=thinking_budget,
            grace=grace,
            logprobs=logprobs,
            schema=schema,
            choices=tuple(choices or ()),
        )
        pieces = generate(self, batch, settings, memory=memory, draft=draft)
        return pieces if stream else pieces.result

    def ingest(self, batch: Batch | Iterable[Batch], draft: bool = False) -> Memory:
        """Read one conversation (`processor.ingest`), or its pieces one by one (`processor.stream`), to be asked about
        again and again. draft: the multi-token head reads along.
        """
        return Memory.ingest(self, batch, draft)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)

    def _nothing(self) -> Tensor:
        return self.embeddings.weight.new_zeros(0, self.config.backbone.width)


def _tower(config: VisionConfig | TimmConfig) -> RadioVit | TimmTower:
    return TimmTower(config.name) if isinstance(config, TimmConfig) else RadioVit(config)


def _by_clip(mask: Tensor, clips: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    return zip(mask.split(clips.prod(-1).tolist()), clips.tolist(), strict=True)
