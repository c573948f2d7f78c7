"""OmniConfig: what a model is made of, composed of the parts' own configs.

`omni.hf` reads it from an upstream config.json and writes it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders.audio import AudioConfig
from encoders.timm_tower import TimmConfig
from encoders.vision import VisionConfig
from omni.backbone import BackboneConfig
from omni.mtp import MTPConfig
from omni.projector import ProjectorConfig

Keys = Literal["nemotron_h", "llama", "gpt_oss"]  # families of checkpoint keys
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaConfig:
    """How media become tokens: what the processor must know of a checkpoint.

    Sizes in patches of `patch` px; `tile` px > 0 cuts images into at most `max_tiles` tiles and a thumbnail (V2 VL),
    else their resolution is dynamic. `clip_patches` is a video frame's target (0: one tile a frame). `pruning` is the
    EVS rate.
    """

    image_token: int = 18
    audio_token: int | None = None
    patch: int = 16
    tile: int = 0
    max_tiles: int = 12
    thumbnail: bool = True
    min_patches: int = 1024
    max_patches: int = 13312
    clip_patches: int = 1024
    clip_keeps_aspect: bool = True
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    pruning: float = 0.0
    context: int = 131072

    def __post_init__(self) -> None:
        if not 0 <= self.pruning < 1:
            raise ValueError(f"MediaConfig: pruning rate {self.pruning}; want 0 <= rate < 1")
        if not 0 < self.min_patches <= self.max_patches:
            raise ValueError(f"MediaConfig: {self.min_patches} to {self.max_patches} patches; want 0 < min <= max")


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniConfig:
    """A whole model. Parts that are None are absent; `keys` names the family of checkpoint keys."""

    backbone: BackboneConfig
    vision: VisionConfig | TimmConfig | None = None
    vision_projector: ProjectorConfig | None = None
    vision_norm: bool = False
    shuffle: int = 2
    shuffle_version: Literal["v1", "v2"] = "v2"
    audio: AudioConfig | None = None
    audio_projector: ProjectorConfig | None = None
    mtp: MTPConfig | None = None
    media: MediaConfig = MediaConfig()
    keys: Keys = "nemotron_h"
    bos: int | None = 1
    eos: tuple[int, ...] = (2, 11)
    pad: int | None = 0

    def __post_init__(self) -> None:
        if (self.vision is None) != (self.vision_projector is None) or (self.audio is None) != (
            self.audio_projector is None
        ):
            raise ValueError("OmniConfig: a tower without its projector, or the reverse; give both or neither")
        if self.vision and self.vision.patch_size != self.media.patch:
            raise ValueError(
                f"OmniConfig: media in patches of {self.media.patch} px, a tower of {self.vision.patch_size} px; "
                "they must agree"
            )
        if self.vision and self.vision_projector:
            wanted = self.vision.width * self.shuffle**2
            if self.vision_projector.width != wanted:
                raise ValueError(
                    f"OmniConfig: vision projector of width {self.vision_projector.width}; a tower of "
                    f"{self.vision.width} shuffled {self.shuffle}x{self.shuffle} gives {wanted}"
                )
        if self.audio and self.audio_projector and self.audio_projector.width != self.audio.width:
            raise ValueError(
                f"OmniConfig: audio projector of width {self.audio_projector.width} on a tower of {self.audio.width}; "
                "they must agree"
            )
