"""The towers' sections of a config.json ↔ ours: C-RADIO, any timm ViT by name, the Parakeet encoder.

A teacher's training recipe fills the rest of C-RADIO's `args`; what says the tower's shape is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.audio import AudioConfig
from encoders.timm_tower import TimmConfig
from encoders.vision import VisionConfig
from omni.fields import Fields
from omni.projector import ProjectorConfig

TIMM = "timm_wrapper"
VIT_SIZES = {  # timm's names: width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}


def _read_timm(f: Fields) -> tuple[TimmConfig, dict[str, Any], tuple[int, int]]:
    """A timm ViT by name, as transformers' wrapper has it."""
    limits = (f.take("min_num_patches", default=1024), f.take("max_num_patches", default=13312))
    tower = TimmConfig(name=f.take("architecture", kind=str))
    clips = _read_clips(f)
    f.done(
        frozenset(["num_classes", "do_pooling", "global_pool", "initializer_range", "num_features", "pretrained_cfg"])
    )
    return tower, clips, limits


def _read_clips(f: Fields) -> dict[str, Any]:
    """Video settings: empty for V2 VL, which tiles its images."""
    kinds = {"video_target_num_patches": int, "video_maintain_aspect_ratio": bool}
    given = {name: f.take(name, default=None, kind=kind) for name, kind in kinds.items()}
    return {name: value for name, value in given.items() if value is not None}


def read_vision(f: Fields, patch: int) -> tuple[VisionConfig | TimmConfig, dict[str, Any], tuple[int, int]]:
    """The tower, its video settings (empty for V2 VL) and the limits of an image's patches."""
    return _read_timm(f) if f.values.get("model_type") == TIMM else _read_radio(f, patch)


def _read_radio(f: Fields, patch: int) -> tuple[VisionConfig, dict[str, Any], tuple[int, int]]:
    args = Fields(f.take("args", default={}, kind=Mapping), f"{f.where}: args")
    named = args.take("model", default="vit_huge_patch16_224")
    size = next((size for key, size in VIT_SIZES.items() if f"vit_{key}" in named), None)
    if size is None:
        raise ValueError(f"{f.where}: model {named!r}; known are the ViT sizes {sorted(VIT_SIZES)}")
    width = f.take("hidden_size", "embed_dim", default=size[0])
    ratio = f.take("mlp_ratio", default=4.0)
    max_size = args.take("cpe_max_size", default=0) or f.take("max_img_size", "max_resolution", default=2048)
    f.used |= {"max_img_size", "max_resolution"}
    tubelets = _read_clips(f)
    frames = f.take("video_temporal_patch_size", default=1)
    separate = f.take("separate_video_embedder", default=frames > 1)
    if frames > 1 and not separate:
        raise ValueError(f"{f.where}: separate_video_embedder is false with tubelets; only separate ones are released")
    if frames > 1:
        tubelets.setdefault("video_target_num_patches", 1024)
    low = args.take("min_num_patches", default=0) or f.take("min_num_patches", default=1024)
    high = args.take("max_num_patches", default=0) or f.take("max_num_patches", default=13312)
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
    multiple = args.take("register_multiple", default=0)
    if not multiple:
        return 10
    teachers = args.take("teachers", default=[])
    sections = [Fields(teacher, f"{args.where}: teachers[{i}]").values for i, teacher in enumerate(teachers)]
    names = {str(t.get("name", i)): None for i, t in enumerate(sections) if t.get("use_summary", True)}
    classes = max(1, len(names)) if args.take("cls_token_per_teacher", default=True) else 1
    return classes + multiple - classes % multiple


def read_audio(f: Fields) -> tuple[AudioConfig, ProjectorConfig]:
    """The encoder, and its projector out of the same section."""
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


def write_vision(v: VisionConfig | TimmConfig) -> dict[str, Any]:
    """The tower alone."""
    if isinstance(v, TimmConfig):
        return {"model_type": TIMM, "architecture": v.name}
    return {
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
    }


def write_audio(a: AudioConfig, projector: ProjectorConfig) -> dict[str, Any]:
    """The encoder and its projector, as one section."""
    return {
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
        "projection_hidden_size": projector.hidden,
        "projection_bias": projector.bias,
        "projection_eps": projector.eps,
    }
