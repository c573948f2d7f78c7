"""Small models of each family and batches for them, made in code."""

from __future__ import annotations

from dataclasses import replace

import torch

from encoders.audio import AudioConfig
from encoders.vision import VisionConfig
from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.config import MediaConfig, OmniConfig
from omni.mamba import MambaConfig
from omni.model import OmniModel
from omni.moe import LinearConfig, MLPConfig, MoEConfig, NoOpConfig
from omni.mtp import MTPConfig
from omni.projector import ProjectorConfig
from processors.batch import Batch, Media, Slot

WIDTH = 32
MAMBA = MambaConfig(heads=4, head_dim=8, state=8, groups=2, chunk=8)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=8)
MOE = MoEConfig(experts=6, top_k=2, hidden=16, shared=24, scale=2.5)
LATENT = MoEConfig(experts=8, top_k=3, hidden=16, shared=24, latent=16, scale=5.0)
MLP = MLPConfig(hidden=48)
VISION = VisionConfig(width=16, depth=2, heads=2, mlp_width=32, positions=16, prefix_tokens=10)
AUDIO = AudioConfig(width=16, depth=2, heads=2, ff_width=24, mels=16, subsampling_channels=4, kernel=5)


def text(blocks: tuple[BlockConfig, ...], mtp: MTPConfig | None = None) -> OmniConfig:
    return OmniConfig(backbone=BackboneConfig(width=WIDTH, vocabulary=64, blocks=blocks), mtp=mtp)


def towers(blocks: tuple[BlockConfig, ...], mtp: MTPConfig | None = None, sound: bool = True) -> OmniConfig:
    return OmniConfig(
        backbone=BackboneConfig(width=WIDTH, vocabulary=64, blocks=blocks),
        vision=VISION
        if sound
        else VisionConfig(width=16, depth=2, heads=2, mlp_width=32, positions=16, tubelet_frames=1),
        vision_projector=ProjectorConfig(width=64, hidden=40),
        vision_norm=mtp is not None,
        audio=AUDIO if sound else None,
        audio_projector=ProjectorConfig(width=16, hidden=40) if sound else None,
        mtp=mtp,
        media=MediaConfig(audio_token=27) if sound else MediaConfig(tile=512, clip_keeps_aspect=False),
    )


ROPE = AttentionConfig(heads=4, kv_heads=2, head_dim=8, rope=RopeConfig(theta=100.0))
GATED = MLPConfig(hidden=48, gated=True)
CHILD = (  # of a hybrid: each layer its own, and layers that are one linear or nothing
    MambaConfig(heads=2, head_dim=8, state=4, groups=1, chunk=8),
    MoEConfig(experts=4, top_k=2, hidden=8, shared=16, router="softmax", gated=True),
    NoOpConfig(),
    AttentionConfig(heads=4, kv_heads=1, head_dim=8, window=6, rope=RopeConfig(theta=100.0)),
    LinearConfig(),
    MLPConfig(hidden=20),
    MAMBA,
)
OSS = (
    AttentionConfig(heads=4, kv_heads=2, head_dim=8, rope=RopeConfig(theta=100.0), bias=True, sinks=True),
    MoEConfig(
        experts=4,
        top_k=2,
        hidden=16,
        router="softmax",
        gated=True,
        selection_bias=False,
        router_bias=True,
        expert_bias=True,
        clamp=7.0,
    ),
)
FAMILIES = {
    "hybrid child": text(CHILD),
    "gpt-oss": OmniConfig(
        backbone=BackboneConfig(
            width=WIDTH, vocabulary=64, blocks=(*OSS, replace(OSS[0], window=5), replace(OSS[1], experts=6))
        ),
        keys="gpt_oss",
    ),
    "tied": OmniConfig(backbone=BackboneConfig(width=WIDTH, vocabulary=64, blocks=(MAMBA, MLP), tied=True)),
    "Omni": towers((MAMBA, MOE, ATTENTION, MOE)),
    "Omni with MTP": towers((MAMBA, LATENT, ATTENTION), MTPConfig(blocks=(ATTENTION, LATENT))),
    "V2 VL": towers((MAMBA, MLP, ATTENTION, MLP), sound=False),
    "Nano 3": text((MAMBA, MOE, MAMBA, ATTENTION, MOE)),
    "Super": text((MAMBA, LATENT, ATTENTION, LATENT), MTPConfig(blocks=(ATTENTION, LATENT), depth=1)),
    "Nano 2": text((MAMBA, MLP, ATTENTION, MLP)),
    "Llama": OmniConfig(
        backbone=BackboneConfig(width=WIDTH, vocabulary=64, blocks=(ROPE, GATED) * 2), keys="llama", eos=(2,)
    ),
    "Llama-Nemotron": OmniConfig(
        backbone=BackboneConfig(
            width=WIDTH,
            vocabulary=64,
            blocks=(ROPE, GATED, NoOpConfig(), GATED, LinearConfig(), NoOpConfig(), ROPE, LinearConfig()),
        ),
        keys="llama",
    ),
}


def model(config: OmniConfig, seed: int = 0) -> OmniModel:
    """Random weights, norms and statistics included."""
    torch.manual_seed(seed)
    made = OmniModel(config)
    with torch.no_grad():
        for name, value in [*made.named_parameters(), *made.named_buffers()]:
            if value.is_floating_point() and value.ndim == 1 and "A_log" not in name and "dt_bias" not in name:
                value.add_(0.2 * torch.rand_like(value))
    return made.eval()


def sentence(length: int, seed: int = 0) -> Batch:
    """Text alone."""
    tokens = torch.randint(28, 64, (length,), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens=tokens, lengths=torch.tensor([length]))


def mixed(seed: int, tubelet_frames: int = 2, sound: bool = True) -> Batch:
    """One request with text, two pictures, two clips of different sizes and rates, and two sounds."""
    g = torch.Generator().manual_seed(seed)
    grids = torch.tensor([[4, 2 + 2 * (seed % 3)], [2, 2]])
    clips = torch.tensor([[3, 2, 4], [1 + seed % 4, 4, 4]])
    frames = torch.tensor([23 + seed, 9]) if sound else torch.zeros(0, dtype=torch.long)
    media = Media(
        patches=torch.randn(int(grids.prod(-1).sum()), 768, generator=g),
        grids=grids,
        tubelets=torch.randn(int(clips.prod(-1).sum()), 768 * tubelet_frames, generator=g),
        clips=clips,
        rates=torch.tensor([0.5, 0.3], dtype=torch.float64),
        mels=torch.randn(int(frames.sum()), 16, generator=g),
        frames=frames,
        trims=torch.tensor([[0, 1], [1, 0]]) if sound else torch.zeros(0, 2, dtype=torch.long),
    )
    ids, slots = [5, 6], []
    kinds = [("image", 18)] * 2 + [("tubelet", 18)] * int(clips[:, 0].sum()) + [("audio", 27)] * len(frames)
    count = {"image": 0, "tubelet": 0, "audio": 0}
    for kind, token in kinds:
        ids += [30 + len(ids) % 20, token]
        slots.append(Slot(position=len(ids) - 1, kind=kind, first=count[kind]))  # pyright: ignore[reportArgumentType]  (one of the kinds)
        count[kind] += 1
    ids += [7, 18, 8]  # a placeholder's id that is no slot stays text
    return Batch(tokens=torch.tensor(ids), lengths=torch.tensor([len(ids)]), slots=tuple(slots), media=media)
