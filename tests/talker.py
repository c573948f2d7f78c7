"""Small random models that speak bytes, and prompts for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import small
import tokens
import torch

from omni.codec import Codec
from omni.config import OmniConfig
from omni.model import OmniModel
from omni.mtp import MTPConfig
from processors.batch import Batch

VOCABULARY = 288
PLAIN = small.text((small.MAMBA, small.MOE, small.ATTENTION, small.MLP))
DRAFTS = small.text((small.MAMBA, small.LATENT, small.ATTENTION), MTPConfig(blocks=(small.ATTENTION, small.LATENT)))
SEES = small.FAMILIES["Omni"]
THINK, ANSWER = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think></think>"
TOKENIZER: Any = tokens.tokenizer()


def talker(config: OmniConfig = PLAIN, seed: int = 0, sharp: float = 1.0) -> OmniModel:
    """A random model with a codec. sharp: factor of the head's weights; large ones leave no ties."""
    model = small.model(replace(config, backbone=replace(config.backbone, vocabulary=VOCABULARY)), seed)
    with torch.no_grad():
        model.head.weight.mul_(sharp)
    model.codec = Codec.of(TOKENIZER, model.config)
    return model


def prompt(text: str, end: str = ANSWER) -> Batch:
    """A user's text and the beginning of the answer."""
    ids = TOKENIZER.encode(f"<|im_start|>user\n{text}<|im_end|>\n{end}", add_special_tokens=False)
    return Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)]))
