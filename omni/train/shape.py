"""The shape of the model in the box: the real architecture, small."""

from __future__ import annotations

from encoders.audio import AudioConfig
from encoders.vision import VisionConfig
from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.config import MediaConfig, OmniConfig
from omni.mamba import MambaConfig
from omni.moe import MoEConfig
from omni.mtp import MTPConfig
from omni.projector import ProjectorConfig
from omni.train.tokens import SIZE

WIDTH = 256
MAMBA = MambaConfig(heads=6, head_dim=64, state=32, groups=1, chunk=64)
ATTENTION = AttentionConfig(heads=8, kv_heads=2, head_dim=32)
EXPERTS = MoEConfig(experts=8, top_k=2, hidden=192, shared=256, scale=1.0)
VISION = VisionConfig(width=192, depth=6, heads=6, mlp_width=768, prefix_tokens=4, positions=32)
AUDIO = AudioConfig(width=144, depth=5, heads=4, ff_width=576, subsampling_channels=48)
LAYERS: dict[str, BlockConfig] = {"M": MAMBA, "*": ATTENTION, "E": EXPERTS}
PATTERN = "M*EM*EM*EM*E"


def tiny_config() -> OmniConfig:
    """All parts of Omni: towers, projectors, a hybrid backbone with mixtures of experts, and an MTP head."""
    return OmniConfig(
        backbone=BackboneConfig(width=WIDTH, vocabulary=SIZE, blocks=tuple(LAYERS[layer] for layer in PATTERN)),
        vision=VISION,
        vision_projector=ProjectorConfig(width=4 * VISION.width, hidden=1024),
        vision_norm=True,
        audio=AUDIO,
        audio_projector=ProjectorConfig(width=AUDIO.width, hidden=512),
        mtp=MTPConfig(blocks=(ATTENTION, EXPERTS)),
        media=MediaConfig(audio_token=27, min_patches=16, max_patches=1024, clip_patches=64, context=8192),
    )
