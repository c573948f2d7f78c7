"""Upstream's config.json ↔ OmniConfig: the released Omni and V2 VL layouts, later exports, and text-only models.

Written is dialect A, which transformers, mlx-vlm and vLLM read. See `hf_text` for the language part and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.audio import AudioConfig
from encoders.vision import VisionConfig
from omni.config import CLIP_MEAN, CLIP_STD, MediaConfig, OmniConfig
from omni.fields import Fields
from omni.hf_text import read_ids, read_text, write_text
from omni.projector import ProjectorConfig

VIT_SIZES = {  # timm's names: width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}


def from_hf(values: Mapping[str, Any]) -> OmniConfig:
    """Read a parsed config.json. Raises ValueError naming a key that is missing, unknown, or in conflict."""
    fields = Fields(values, "config.json")
    if any(fields.has(name) for name in ("llm_config", "text_config", "vision_config")):
        return _read_omni(fields)
    bos, eos, pad = read_ids(fields)
    backbone, mtp, keys = read_text(fields)
    fields.done()
    return OmniConfig(backbone=backbone, mtp=mtp, keys=keys, bos=bos, eos=eos, pad=pad)


def to_hf(config: OmniConfig) -> dict[str, Any]:
    """The config.json of dialect A: `from_hf` gives this config back, and transformers and others read it."""
    text = write_text(config)
    return text if config.vision is None and config.audio is None else _write_omni(config, text)


def _read_omni(f: Fields) -> OmniConfig:
    text = f.section("text_config", "llm_config")
    own, inner = read_ids(f), read_ids(text)
    bos, eos, pad = own if f.has("eos_token_id") else inner
    backbone, mtp, keys = read_text(text)
    text.done()
    vision_fields = f.section("vision_config")
    ratio = f.take("downsample_ratio", default=0.5)
    shuffle = round(1 / ratio)
    if abs(shuffle * ratio - 1) > 1e-6:
        raise ValueError(f"{f.where}: downsample_ratio {ratio} is not one over a whole number")
    patch = f.take("patch_size", default=vision_fields.take("patch_size", default=16))
    vision, tubelets, limits = _read_vision(vision_fields, patch)
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
        audio, audio_projector = _read_audio(f.section("audio_config", "sound_config"))
    f.used |= {"audio_config", "sound_config"}
    f.used |= {"video_context_token_id", "video_token_id", "video_token_index"}  # outside the vocabulary, never read
    low, high = (f.take(n, default=v) for n, v in zip(("min_num_patches", "max_num_patches"), limits, strict=True))
    size = f.take("force_image_size", default=512)
    media = MediaConfig(
        image_token=f.take("img_context_token_id", "image_context_token_id", "image_token_id", default=18),
        audio_token=f.take("sound_context_token_id", "audio_token_id", default=27 if audio else None),
        patch=patch,
        tile=0 if tubelets else size,
        max_tiles=f.take("max_num_tiles", "max_dynamic_patch", default=12),
        thumbnail=f.take("use_thumbnail", default=True),
        min_patches=low,
        max_patches=high,
        clip_patches=tubelets.get("video_target_num_patches", (size // patch) ** 2),
        clip_keeps_aspect=tubelets.get("video_maintain_aspect_ratio", bool(tubelets)),
        mean=tuple(f.take("norm_mean", default=CLIP_MEAN)),
        std=tuple(f.take("norm_std", default=CLIP_STD)),
        pruning=float(f.take("video_pruning_rate", default=0.0)),
        context=f.take("max_sequence_length", default=131072),
    )
    f.expect("select_layer", value=-1, why="features are the tower's last")
    projector = ProjectorConfig(width=vision.width * shuffle**2, hidden=f.take("projector_hidden_size"))
    config = OmniConfig(
        backbone=backbone,
        vision=vision,
        vision_projector=projector,
        vision_norm=mtp is not None,
        shuffle=shuffle,
        shuffle_version=f.take("ps_version", default="v2"),
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


def _read_vision(f: Fields, patch: int) -> tuple[VisionConfig, dict[str, Any], tuple[int, int]]:
    """The tower, its video settings (empty for V2 VL) and the limits of an image's patches."""
    args = Fields(f.take("args", default={}) or {}, f"{f.where}: args")
    named = str(args.take("model", default="vit_huge_patch16_224"))
    size = next((size for key, size in VIT_SIZES.items() if f"vit_{key}" in named), None)
    if size is None:
        raise ValueError(f"{f.where}: model {named!r}; known are the ViT sizes {sorted(VIT_SIZES)}")
    width = f.take("hidden_size", "embed_dim", default=size[0])
    ratio = f.take("mlp_ratio", default=4.0)
    max_size = args.take("cpe_max_size", default=None) or f.take("max_img_size", "max_resolution", default=2048)
    f.take("max_img_size", "max_resolution", default=None)
    tubelets = {
        name: value
        for name in ("video_target_num_patches", "video_maintain_aspect_ratio")
        if (value := f.take(name, default=None)) is not None
    }
    frames = f.take("video_temporal_patch_size", default=1)
    separate = f.take("separate_video_embedder", default=frames > 1)
    if frames > 1 and not separate:
        raise ValueError(f"{f.where}: separate_video_embedder is false with tubelets; only separate ones are released")
    if frames > 1:
        tubelets.setdefault("video_target_num_patches", 1024)
    low = args.take("min_num_patches", default=None) or f.take("min_num_patches", default=1024)
    high = args.take("max_num_patches", default=None) or f.take("max_num_patches", default=13312)
    f.used |= {"min_num_patches", "max_num_patches"}
    for name, value in {"use_swiglu_ffn": False, "qkv_bias": True, "hidden_act": "gelu", "num_channels": 3}.items():
        f.expect(name, value=value, why="as released")
    f.expect("layerscale_value", "initial_scale", value=1.0, why="the released towers have no layer scale")
    vision = VisionConfig(
        width=width,
        depth=f.take("num_hidden_layers", default=size[1]),
        heads=f.take("num_attention_heads", default=size[2]),
        mlp_width=f.take("intermediate_size", default=int(width * ratio)),
        patch_size=patch,
        prefix_tokens=_read_prefix(f, args),
        positions=max_size // patch,
        tubelet_frames=frames,
        eps=float(f.take("layer_norm_eps", default=1e-6)),
    )
    # A teacher's training recipe fills the rest of `args`; the tower's shape is what was read above.
    f.done(
        frozenset(
            """image_size preferred_resolution vitdet_window_size adaptor_names
                adaptor_configs feature_normalizer inter_feature_normalizer patch_dim
                video_patch_dim summary_idxs norm_mean norm_std initializer_range
                attention_probs_dropout_prob hidden_dropout_prob drop_path_rate feature_dim
                spectral_heads""".split()
        )
    )
    return vision, tubelets, (low, high)


def _read_prefix(f: Fields, args: Fields) -> int:
    """Class and register tokens: one class token a teacher, filled up with registers to a multiple."""
    if f.has("num_cls_tokens") or f.has("num_registers"):
        return f.take("num_cls_tokens", default=3) + f.take("num_registers", default=7)
    f.used |= {"num_cls_tokens", "num_registers"}
    multiple = args.take("register_multiple", default=None)
    if multiple is None:
        return 10
    teachers = args.take("teachers", default=[])
    names = {t.get("name", i): None for i, t in enumerate(teachers) if t.get("use_summary", True)}
    classes = max(1, len(names)) if args.take("cls_token_per_teacher", default=True) else 1
    return classes + multiple - classes % multiple


def _read_audio(f: Fields) -> tuple[AudioConfig, ProjectorConfig]:
    f.expect("attention_bias", value=False, why="the released encoder has none")
    f.expect("convolution_bias", value=False, why="the released encoder has none")
    f.expect("scale_input", value=False, why="the released encoder does not scale its input")
    f.expect("hidden_act", value="silu", why="the released activation")
    f.expect("subsampling_factor", value=8, why="three convolutions of stride 2")
    f.expect("subsampling_conv_kernel_size", value=3, why="as released")
    f.expect("subsampling_conv_stride", value=2, why="as released")
    f.expect("sampling_rate", value=16000, why="as released")
    audio = AudioConfig(
        width=f.take("hidden_size"),
        depth=f.take("num_hidden_layers"),
        heads=f.take("num_attention_heads"),
        ff_width=f.take("intermediate_size"),
        mels=f.take("num_mel_bins", default=128),
        kernel=f.take("conv_kernel_size", default=9),
        subsampling_channels=f.take("subsampling_conv_channels", default=256),
    )
    projector = ProjectorConfig(
        width=audio.width,
        hidden=f.take("projection_hidden_size"),
        bias=f.take("projection_bias", default=False),
        eps=f.take("projection_eps", default=1e-5),
    )
    f.done(
        frozenset(
            [
                "dropout",
                "dropout_positions",
                "layerdrop",
                "activation_dropout",
                "attention_dropout",
                "max_position_embeddings",
                "initializer_range",
                "num_key_value_heads",
            ]
        )
    )
    return audio, projector


def _write_omni(c: OmniConfig, text: dict[str, Any]) -> dict[str, Any]:
    if c.vision is None or c.vision_projector is None:
        raise ValueError("to_hf: a model with sound but without vision has no released layout; add a vision tower")
    v, m = c.vision, c.media
    vision: dict[str, Any] = {
        "model_type": "radio",
        "hidden_size": v.width,
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.heads,
        "mlp_ratio": v.mlp_width / v.width,
        "intermediate_size": v.mlp_width,
        "patch_size": v.patch_size,
        "max_img_size": v.positions * v.patch_size,
        "num_cls_tokens": min(3, v.prefix_tokens),
        "num_registers": max(0, v.prefix_tokens - 3),
        "layer_norm_eps": v.eps,
        "min_num_patches": m.min_patches,
        "max_num_patches": m.max_patches,
    }
    if v.tubelet_frames > 1:
        vision |= {"video_temporal_patch_size": v.tubelet_frames, "separate_video_embedder": True}
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
        a = c.audio
        values["sound_config"] = {
            "model_type": "parakeet_encoder",
            "hidden_size": a.width,
            "num_hidden_layers": a.depth,
            "num_attention_heads": a.heads,
            "intermediate_size": a.ff_width,
            "num_mel_bins": a.mels,
            "conv_kernel_size": a.kernel,
            "subsampling_conv_channels": a.subsampling_channels,
            "subsampling_factor": 8,
            "attention_bias": False,
            "convolution_bias": False,
            "scale_input": False,
            "projection_hidden_size": c.audio_projector.hidden,
            "projection_bias": c.audio_projector.bias,
        }
    return values
