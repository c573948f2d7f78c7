"""A tour in a minute: a small model with random weights reads a picture, a page and a sound, and says what it was
given.

Its answers mean nothing (no weights are shipped yet); everything else is real: a checkpoint in the released layout is
written and loaded, files become a plan and a batch, and the model reads them at once and piece by piece with the same
result.
"""

from __future__ import annotations

import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import omni
from encoders.audio import AudioConfig
from encoders.vision import VisionConfig
from omni.anatomy import anatomy, pattern
from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig
from omni.config import MediaConfig, OmniConfig
from omni.mamba import MambaConfig
from omni.moe import MoEConfig
from omni.mtp import MTPConfig
from omni.projector import ProjectorConfig

SPECIAL = {
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    18: "<image>",
    21: "<img>",
    22: "</img>",
}
SPECIAL |= {0: "<unk>", 1: "<s>", 27: "<so_embedding>", 28: "<so_start>", 29: "<so_end>"}


def config() -> OmniConfig:
    """The architecture of the released Omni at a thousandth of its size."""
    mamba = MambaConfig(heads=8, head_dim=32, state=32, groups=2)
    attention = AttentionConfig(heads=8, kv_heads=2, head_dim=32)
    experts = MoEConfig(experts=16, top_k=4, hidden=128, shared=256, latent=64, scale=2.5)
    return OmniConfig(
        backbone=BackboneConfig(
            width=256, vocabulary=288, blocks=(mamba, experts, mamba, experts, attention, experts, mamba, experts)
        ),
        vision=VisionConfig(width=192, depth=6, heads=3, mlp_width=768, positions=128),
        vision_projector=ProjectorConfig(width=768, hidden=1024),
        vision_norm=True,
        audio=AudioConfig(width=192, depth=4, heads=4, ff_width=768, subsampling_channels=64),
        audio_projector=ProjectorConfig(width=192, hidden=512),
        mtp=MTPConfig(blocks=(attention, experts)),
        media=MediaConfig(audio_token=27),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the family's special tokens."""
    names = [SPECIAL.get(i, f"<special_{i}>") for i in range(32)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate([*names, *letters])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=names, unk_token="<unk>")
    template = Path(omni.__file__).parent / "tiny" / "chat_template.jinja"
    fast.chat_template = template.read_text()  # pyright: ignore[reportAttributeAccessIssue]  (untyped there)
    return fast


def files(folder: Path) -> list[Path]:
    """A picture, a page and a recording, drawn and sung here."""
    picture = Image.new("RGB", (640, 400), "white")
    ImageDraw.Draw(picture).ellipse((200, 80, 440, 320), fill="crimson")
    picture.save(folder / "circle.png")
    page = Image.new("RGB", (1240, 1754), "white")
    for line in range(30):
        ImageDraw.Draw(page).text(
            (120, 120 + 50 * line), f"{line + 1}. item, quantity {line % 7}, price {line * 3}.00", "black"
        )
    page.save(folder / "page.pdf", resolution=150)
    t = np.arange(5 * 16000) / 16000
    with wave.open(str(folder / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((8000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes())
    return [folder / name for name in ("circle.png", "page.pdf", "tone.wav")]


@torch.no_grad()
def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        omni.OmniModel(config()).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        model, processor = omni.load(folder / "model")
        found = anatomy(model.config)
        console.print(
            f"a small model with random weights: {pattern(model.config.backbone.blocks)}, "
            f"{found.total / 1e6:.1f}M parameters, {2 * found.kv_elements} bytes of cache a token"
        )
        content: list[object] = [{"type": "file", "path": str(path)} for path in files(folder)]
        messages = [{"role": "user", "content": [*content, "What is the total?"]}]
        plan = processor.plan(messages, context=8192)
        table = Table("file", "kind", "tokens", "details")
        for item in plan.items:
            table.add_row(item.name, item.kind, str(item.tokens), str(item.details))
        console.print(table)
        start = time.perf_counter()
        batch = processor(messages, context=8192)
        made = time.perf_counter()
        features = model.encode(batch.media)
        encoded = time.perf_counter()
        out = model(batch, features=features)
        done = time.perf_counter()
        console.print(
            f"{plan.tokens} tokens planned, {len(out.tokens)} read; "
            f"{made - start:.2f} s to decode, {encoded - made:.2f} s through the towers, {done - encoded:.2f} s "
            "through the backbone"
        )
        spliced = model.embed(batch, features)
        state, half = model.new_state(), len(out.tokens) // 2
        pieces = [
            model.backbone(part, (len(part),), state)
            for part in spliced.embeddings.split([half, len(out.tokens) - half])
        ]
        again = model.head(model.backbone.norm_f(torch.cat(pieces)))
        console.print(f"read in two pieces: the logits differ by {float((again - out.logits).abs().max()):.1e} at most")


if __name__ == "__main__":
    main()
