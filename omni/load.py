"""Loading: a checkpoint → (model, processor), the one place where files meet both.

model, processor = omni.load("tiny")    # the model in the package; or a folder, or a hub repository's id
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from omni.checkpoint import folder_of, read_config
from omni.codec import read_tokenizer
from omni.config import OmniConfig
from omni.heap import keep_freed
from omni.hf import from_hf
from omni.model import OmniModel
from omni.packed import Format, pack
from processors import audio, image, video
from processors.limits import DEFAULT_LIMITS, Limits
from processors.processor import Processor
from processors.rules import Rules
from token_reduction import num_kept

TOKENIZER = ["*.json", "*.jinja", "*.txt", "*.model"]


def rules_of(config: OmniConfig) -> Rules:
    """How a model's media become tokens, from its config."""
    m = config.media
    pixels = image.PixelRule(patch=m.patch, shuffle=config.shuffle, mean=_three(m.mean), std=_three(m.std))
    images: image.ImageRule | image.TileRule = image.ImageRule(
        pixels=pixels, min_patches=m.min_patches, max_patches=m.max_patches
    )
    if m.tile:
        images = image.TileRule(pixels=pixels, size=m.tile, max_tiles=m.max_tiles, thumbnail=m.thumbnail)
    frames = config.vision.tubelet_frames if config.vision else 1
    clips = video.VideoRule(
        pixels=pixels, target=m.clip_patches, keep_aspect=m.clip_keeps_aspect, tubelet_frames=frames
    )
    sounds = audio.AudioRule(mel=audio.MelRule(mels=config.audio.mels)) if config.audio else None
    return Rules(image=images, video=clips, audio=sounds, pruning=m.pruning)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


class OmniProcessor(Processor):
    """`Processor` with a checkpoint's tokenizer, template and rules."""

    @classmethod
    def from_pretrained(cls, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> OmniProcessor:
        """From a local checkpoint folder, or a hub repository's id.

        Raises ValueError where its tokenizer is missing.
        """
        return cls.of(from_hf(read_config(path)), _tokenizer(path), limits)

    @classmethod
    def of(
        cls,
        config: OmniConfig,
        tokenizer: Any,
        limits: Limits = DEFAULT_LIMITS,
        dtype: torch.dtype = torch.bfloat16,
    ) -> OmniProcessor:
        """For a config and a tokenizer that are at hand; dtype: of the keys and values whose memory plans foretell."""
        return cls(
            tokenizer,
            rules_of(config),
            image_token=config.media.image_token,
            audio_token=config.media.audio_token,
            cache_bytes_a_token=dtype.itemsize * config.backbone.kv_size,
            state_bytes=4 * config.backbone.constant_size,
            num_kept=num_kept,
            limits=limits,
        )


def _tokenizer(path: str | Path) -> Any:
    folder = folder_of(path, TOKENIZER)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"load: {folder} has no tokenizer.json; download the whole checkpoint")
    return tokenizer


def load(
    path: str | Path,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device: torch.device | str = "auto",
    quantize: Format | None = None,
    compile: bool = False,
) -> tuple[OmniModel, OmniProcessor]:
    """Load "tiny" (the model in the package), a local folder or a hub repository's id → (model, processor).

    For asking: on a CPU its weights are packed (`omni.packed`), so it reads and writes faster and cannot be trained;
    take `OmniModel.from_pretrained` for that. The process then keeps some memory that it frees (`omni.heap`). No remote
    code is run. See there for dtype, device, quantize and errors.
    compile: single tokens run through compiled kernels (`omni.compiled`), which needs a C++ compiler and a minute at
    first; four bits are laid out for them, in memory. A pass over prompts is compiled too, for the whole process.
    """
    model = OmniModel.from_pretrained(path, dtype, device, quantize)
    if quantize is None and model.device.type == "cpu":
        pack(model, rows=compile)
    if compile:
        from omni.compiled import compile_steps  # brings numba and torch's compiler, half a second

        compile_steps(model)
    if model.device.type == "cpu":
        keep_freed()  # only now: what loading takes in passing is given back
    tokenizer = model.codec.tokenizer if model.codec else _tokenizer(path)
    return model, OmniProcessor.of(model.config, tokenizer, dtype=model.dtype)
