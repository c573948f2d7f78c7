"""Upstream's config.json ↔ OmniConfig: the released Omni and V2 VL layouts, later exports, and text-only models.

Written is dialect A, which transformers, mlx-vlm and vLLM read. See `hf_text` for the language part and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omni.config import CLIP_MEAN, CLIP_STD, MediaConfig, OmniConfig
from omni.fields import Fields
from omni.hf_text import read_ids, read_text, write_text
from omni.hf_towers import read_audio, read_vision, write_audio, write_vision
from omni.projector import ProjectorConfig


def from_hf(values: Mapping[str, Any]) -> OmniConfig:
    """Read a parsed config.json. Raises ValueError naming a key that is missing, unknown, or in conflict."""
    f = Fields(values, "config.json")
    if any(f.has(name) for name in ("llm_config", "text_config", "vision_config")):
        return _read_omni(f)
    bos, eos, pad = read_ids(f)
    backbone, mtp, keys = read_text(f)
    f.done()
    return OmniConfig(backbone=backbone, mtp=mtp, keys=keys, bos=bos, eos=eos, pad=pad)


def to_hf(config: OmniConfig) -> dict[str, Any]:
    """The config.json of dialect A: `from_hf` gives this config back, and transformers and others read it.

    Raises ValueError for a config that upstream's fields cannot hold, naming what would be lost.
    """
    values = write_text(config)
    values = values if config.vision is None and config.audio is None else _write_omni(config, values)
    again = from_hf(values)
    lost = [field.name for field in fields(config) if getattr(config, field.name) != getattr(again, field.name)]
    if lost:
        raise ValueError(
            f"to_hf: upstream's config.json has no words for all of {', '.join(lost)}, which would read back "
            "otherwise; change these settings"
        )
    return values


def _read_omni(f: Fields) -> OmniConfig:
    text = f.section("text_config", "llm_config")
    own, inner = read_ids(f), read_ids(text)
    bos = own[0] if f.has("bos_token_id") else inner[0]
    eos = own[1] if f.has("eos_token_id") else inner[1]
    pad = own[2] if f.has("pad_token_id") else inner[2]
    backbone, mtp, keys = read_text(text)
    text.done()
    vision_fields = f.section("vision_config")
    ratio = f.take("downsample_ratio", default=0.5)
    shuffle = round(1 / ratio) if ratio > 0 else 0
    if not shuffle or abs(shuffle * ratio - 1) > 1e-6:
        raise ValueError(f"{f.where}: downsample_ratio {ratio} is not one over a whole number")
    patch = _one_of(f, vision_fields, "patch_size", 16)
    vision, tubelets, limits = read_vision(vision_fields, patch)
    if vision.patch_size != patch:
        raise ValueError(f"{f.where}: patch_size is {patch}, the tower's {vision.patch_size}; make them agree")
    declared = f.take("vit_hidden_size", "vision_hidden_size", default=vision.width)
    if declared != vision.width:
        raise ValueError(f"{f.where}: vit_hidden_size is {declared}, the tower's width {vision.width}; make them agree")
    frames = f.take("video_temporal_patch_size", default=vision.tubelet_frames)
    if frames != vision.tubelet_frames:
        raise ValueError(
            f"{f.where}: video_temporal_patch_size is {frames}, in vision_config {vision.tubelet_frames}; make them "
            "agree"
        )
    audio = audio_projector = None
    if f.has("sound_config") or f.has("audio_config"):
        audio, audio_projector = read_audio(f.section("audio_config", "sound_config"))
    f.used |= {"audio_config", "sound_config"}
    f.used |= {"video_context_token_id", "video_token_id", "video_token_index"}  # outside the vocabulary, never read
    low, high = (f.take(n, default=v) for n, v in zip(("min_num_patches", "max_num_patches"), limits, strict=True))
    size = f.take("force_image_size", default=512)
    media = MediaConfig(
        image_token=f.take("img_context_token_id", "image_context_token_id", "image_token_id", default=18),
        audio_token=f.take("sound_context_token_id", "audio_token_id", default=27 if audio else None, kind=int),
        patch=patch,
        tile=0 if tubelets else size,
        max_tiles=f.take("max_num_tiles", "max_dynamic_patch", default=12),
        thumbnail=f.take("use_thumbnail", default=True),
        min_patches=low,
        max_patches=high,
        clip_patches=tubelets.get("video_target_num_patches", (size // patch) ** 2),
        clip_keeps_aspect=tubelets.get("video_maintain_aspect_ratio", bool(tubelets)),
        mean=_three(f, "norm_mean", CLIP_MEAN),
        std=_three(f, "norm_std", CLIP_STD),
        pruning=float(f.take("video_pruning_rate", default=0.0)),
        context=f.take("max_sequence_length", default=131072),
    )
    version = f.take("ps_version", default="v2")
    if version not in ("v1", "v2"):
        raise ValueError(f"{f.where}: ps_version is {version!r}; known are 'v1' and 'v2'")
    f.expect("select_layer", value=-1, why="features are the tower's last")
    projector = ProjectorConfig(width=vision.width * shuffle**2, hidden=f.take("projector_hidden_size"))
    config = OmniConfig(
        backbone=backbone,
        vision=vision,
        vision_projector=projector,
        vision_norm=mtp is not None,
        shuffle=shuffle,
        shuffle_version=version,
        audio=audio,
        audio_projector=audio_projector,
        mtp=mtp,
        media=media,
        keys=keys,
        bos=bos,
        eos=tuple(eos),
        pad=pad,
    )
    f.done(
        frozenset(
            """template dynamic_image_size min_dynamic_patch pad2square use_backbone_lora
                use_llm_lora tie_word_embeddings image_tag_type sound_context_token
                img_context_token video_context_token img_start_token img_end_token
                hidden_size vocab_size vision_select_layer vision_feature_layer
                initializer_range""".split()
        )
    )
    return config


def _three(f: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """A number for each of red, green and blue."""
    numbers = tuple(f.take(name, default=default))
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{f.where}: {name} is {numbers}, three numbers were wanted")
    return tuple(map(float, numbers))


def _one_of(f: Fields, section: Fields, name: str, default: Any) -> Any:
    """A setting that may stand in either place; both must agree."""
    outer, inner = (at.take(name, default=None, kind=type(default)) for at in (f, section))
    if None not in (outer, inner) and outer != inner:
        raise ValueError(f"{f.where}: {name} is {outer}, in {section.where} {inner}; make them agree")
    return outer or inner or default


def _write_omni(c: OmniConfig, text: dict[str, Any]) -> dict[str, Any]:
    if c.vision is None or c.vision_projector is None:
        raise ValueError("to_hf: a model with sound but without vision has no released layout; add a vision tower")
    v, m = c.vision, c.media
    vision = {"min_num_patches": m.min_patches, "max_num_patches": m.max_patches, **write_vision(v)}
    if v.tubelet_frames > 1:
        vision |= {"video_temporal_patch_size": v.tubelet_frames, "separate_video_embedder": True}
    if not m.tile:
        vision |= {"video_target_num_patches": m.clip_patches, "video_maintain_aspect_ratio": m.clip_keeps_aspect}
    values: dict[str, Any] = {
        "architectures": ["NemotronH_Nano_Omni_Reasoning_V3" if v.tubelet_frames > 1 else "NemotronH_Nano_VL_V2"],
        "model_type": "nemotron_h_omni",
        "text_config": text,
        "vision_config": vision,
        "vit_hidden_size": v.width,
        "projector_hidden_size": c.vision_projector.hidden,
        "downsample_ratio": 1 / c.shuffle,
        "ps_version": c.shuffle_version,
        "patch_size": v.patch_size,
        "force_image_size": m.tile or 512,
        "use_thumbnail": m.thumbnail,
        "max_num_tiles": m.max_tiles,
        "img_context_token_id": m.image_token,
        "sound_context_token_id": m.audio_token,
        "norm_mean": list(m.mean),
        "norm_std": list(m.std),
        "video_pruning_rate": m.pruning,
        "video_temporal_patch_size": v.tubelet_frames,
        "max_sequence_length": m.context,
        "bos_token_id": c.bos,
        "eos_token_id": list(c.eos),
        "pad_token_id": c.pad,
    }
    if c.audio and c.audio_projector:
        values["sound_config"] = write_audio(c.audio, c.audio_projector)
    return values
