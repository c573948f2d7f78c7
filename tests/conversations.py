"""A small random model that sees, hears and writes, its processor, and things to show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import small
import tokens

from omni.codec import Codec
from omni.config import OmniConfig
from omni.load import OmniProcessor
from omni.model import OmniModel

TOKENIZER = tokens.tokenizer()


def config(name: str = "Omni with MTP", **sizes: Any) -> OmniConfig:
    made = small.FAMILIES[name]
    media = replace(made.media, min_patches=4, max_patches=64, clip_patches=16)
    return replace(made, media=media, backbone=replace(made.backbone, vocabulary=288, **sizes))


def ready(config: OmniConfig, seed: int = 0) -> OmniModel:
    model = small.model(config, seed)
    model.codec = Codec.of(TOKENIZER, config)
    return model


MODEL = ready(config())
PROCESSOR = OmniProcessor.of(MODEL.config, TOKENIZER)
NOISE = np.random.default_rng(0).standard_normal(8000).astype(np.float32)


def picture(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)}


def film(seed: int = 0) -> dict[str, Any]:
    frames = np.random.default_rng(seed).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    return {"type": "video", "frames": list(frames), "fps": 1.0, "pruning_rate": 0.5}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]
