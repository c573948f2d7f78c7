"""Configs: released layouts are read, aliases agree, nothing is dropped in silence, and sizes come out as published."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import released

from encoders.vision import VisionConfig
from omni.anatomy import anatomy, groups
from omni.attention import AttentionConfig, RopeConfig
from omni.backbone import BackboneConfig
from omni.config import MediaConfig, OmniConfig
from omni.hf import from_hf, to_hf
from omni.mamba import MambaConfig
from omni.moe import LinearConfig, MLPConfig, MoEConfig, NoOpConfig
from omni.mtp import MTPConfig
from omni.projector import ProjectorConfig


@pytest.mark.parametrize(
    ("values", "language", "active", "with_embedding"),
    [
        (released.nano_3(), 31.58, 3.23, 3.58),
        (released.nemotron_super(), 120.67, 12.23, 12.77),
        (released.nano_2(), 8.89, 8.30, 8.89),
    ],
    ids=["Nano 3", "Super", "Nano 2 9B"],
)
def test_parameters_come_out_as_published(
    values: dict[str, Any], language: float, active: float, with_embedding: float
) -> None:
    found = anatomy(from_hf(values))
    assert round(found.language / 1e9, 2) == language
    assert round(found.active / 1e9, 2) == active
    assert round((found.active + found.embedding) / 1e9, 2) == with_embedding


def test_the_omni_weighs_what_its_checkpoint_does() -> None:
    found = anatomy(from_hf(released.omni()))
    assert round(found.bytes_at(16) / 2**30, 1) == 61.5
    assert found.kv_elements == 3072
    assert found.cache_bytes(1) - found.cache_bytes(0) == 6 * 1024
    ssm = sum(
        b.heads * b.head_dim * b.state for b in from_hf(released.omni()).backbone.blocks if isinstance(b, MambaConfig)
    )
    assert round(ssm / 1e6, 2) == 12.06


TIMM = {"model_type": "timm_wrapper", "architecture": "vit_large_patch16_224"}


def test_the_released_layouts_say_what_they_are() -> None:
    omni, v2 = from_hf(released.omni()), from_hf(released.v2_vl())
    assert isinstance(omni.vision, VisionConfig)
    assert (omni.vision.prefix_tokens, omni.vision.positions, omni.vision.tubelet_frames) == (10, 128, 2)
    assert omni.audio is not None
    assert omni.media == MediaConfig(audio_token=27, pruning=0.7)
    assert v2.vision is not None
    assert v2.vision.tubelet_frames == 1
    assert v2.audio is None
    assert (v2.media.tile, v2.media.max_tiles, v2.media.clip_patches, v2.media.clip_keeps_aspect) == (
        512,
        12,
        1024,
        False,
    )


@pytest.mark.parametrize(
    "values",
    [
        released.omni(vision_config=TIMM, vit_hidden_size=1024, video_temporal_patch_size=1),
        released.omni(vision_config=TIMM | {"video_target_num_patches": 256}, vit_hidden_size=1024),
        released.v2_vl(vision_config=TIMM, vit_hidden_size=1024),
        released.nano_3(),
        released.nemotron_super(),
        released.nano_2(),
        released.omni(),
        released.v2_vl(),
        released.omni(llm_config=released.nemotron_super()),
    ],
)
def test_what_is_written_reads_back_the_same(values: dict[str, Any]) -> None:
    config = from_hf(values)
    assert from_hf(to_hf(config)) == config


TEXT_ALIASES = [
    ("n_groups", "mamba_n_groups"),
    ("n_groups", "mamba_num_groups"),
    ("ssm_state_size", "mamba_state_dim"),
    ("ssm_state_size", "mamba_d_state"),
    ("conv_kernel", "mamba_d_conv"),
    ("chunk_size", "mamba_chunk_size"),
    ("mamba_num_heads", "mamba_n_heads"),
    ("n_routed_experts", "num_local_experts"),
    ("time_step_limit", "mamba_dt_limit"),
    ("use_conv_bias", "mamba_conv_bias"),
    ("layer_norm_epsilon", "rms_norm_eps"),
    ("layer_norm_epsilon", "norm_eps"),
    ("mlp_hidden_act", "hidden_act"),
    ("head_dim", "attention_head_dim"),
]
OMNI_ALIASES = [
    ("llm_config", "text_config"),
    ("sound_config", "audio_config"),
    ("vit_hidden_size", "vision_hidden_size"),
    ("img_context_token_id", "image_context_token_id"),
    ("img_context_token_id", "image_token_id"),
    ("video_context_token_id", "video_token_id"),
    ("sound_context_token_id", "audio_token_id"),
    ("video_context_token_id", "video_token_index"),
]


def renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}


@pytest.mark.parametrize(("old", "new"), TEXT_ALIASES)
def test_each_alias_of_the_language_config_means_the_same(old: str, new: str) -> None:
    values = released.nano_3(conv_kernel=3, chunk_size=64, layer_norm_epsilon=1e-4, norm_eps=1e-4, use_conv_bias=False)
    assert from_hf(renamed(values, old, new)) == from_hf(values)
    if old != "time_step_limit":
        with pytest.raises(ValueError, match=f"{old}.*disagree"):
            from_hf(values | {new: 999})


@pytest.mark.parametrize(("old", "new"), OMNI_ALIASES)
def test_each_alias_of_the_omni_config_means_the_same(old: str, new: str) -> None:
    assert from_hf(renamed(released.omni(), old, new)) == from_hf(released.omni())


def test_layers_may_be_a_pattern_or_lists_of_either_vocabulary() -> None:
    want = from_hf(released.nano_3())
    for words in (
        {"M": "mamba", "*": "attention", "E": "moe"},
        {"M": "linear_attention", "*": "full_attention", "E": "moe"},
    ):
        values = released.nano_3(layers_block_type=[words[letter] for letter in released.NANO_3])
        assert from_hf(values) == want
        values.pop("hybrid_override_pattern")
        assert from_hf(values) == want


@pytest.mark.parametrize("infinity", [float("inf"), "Infinity", {"__float__": "Infinity"}])
def test_infinity_may_be_written_in_each_way(infinity: object) -> None:
    assert from_hf(released.nano_3(time_step_limit=[0.0, infinity])) == from_hf(released.nano_3())


def test_patch_limits_may_sit_at_the_top_or_in_the_vision_config() -> None:
    values = released.omni(min_num_patches=256, max_num_patches=2048)
    assert (from_hf(values).media.min_patches, from_hf(values).media.max_patches) == (256, 2048)
    values = released.omni()
    values["vision_config"]["args"].pop("max_num_patches")
    values["vision_config"]["max_num_patches"] = 4096
    assert from_hf(values).media.max_patches == 4096


def puzzle(**changes: Any) -> dict[str, Any]:
    """A searched child of Super, as its repository writes it: each layer's experts its own."""
    values = released.nemotron_super(hybrid_override_pattern=None, num_hidden_layers=None)
    for name in ("moe_intermediate_size", "num_experts_per_tok", "mtp_hybrid_override_pattern"):
        values.pop(name)
    return values | {
        "model_type": "nemotron_h_puzzle",
        "architectures": ["NemotronHPuzzleForCausalLM"],
        "hidden_act": "relu2",
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "block_configs": [
            {"block_type": "mamba"},
            {"block_type": "moe", "moe_intermediate_size": 1280, "num_experts_per_tok": 4},
            {"block_type": "attention"},
            {"block_type": "moe", "moe_intermediate_size": 2048, "num_experts_per_tok": 12, "n_routed_experts": 256},
        ],
        "mtp_block_configs": [
            {"block_type": "attention"},
            {"block_type": "moe", "moe_intermediate_size": 2688, "num_experts_per_tok": 22},
        ],
        **changes,
    }


def test_a_puzzle_hybrid_has_experts_of_its_own_in_each_layer() -> None:
    config = from_hf(puzzle())
    mamba, first, attention, second = config.backbone.blocks
    assert isinstance(mamba, MambaConfig)
    assert isinstance(attention, AttentionConfig)
    assert first == MoEConfig(experts=512, top_k=4, hidden=1280, shared=5376, latent=1024, scale=5.0)
    assert second == MoEConfig(experts=256, top_k=12, hidden=2048, shared=5376, latent=1024, scale=5.0)
    assert config.mtp is not None
    assert config.mtp.blocks == (
        attention,
        MoEConfig(experts=512, top_k=22, hidden=2688, shared=5376, latent=1024, scale=5.0),
    )
    assert to_hf(config)["model_type"] == "nemotron_h_puzzle"
    assert from_hf(to_hf(config)) == config


def llama(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "vocab_size": 96,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "block_configs": [
            {
                "attention": {
                    "n_heads_in_group": 4,
                    "no_op": False,
                    "replace_with_linear": False,
                    "window_length": None,
                },
                "ffn": {"ffn_mult": 1.3, "no_op": False, "replace_with_linear": False},
            },
            {
                "attention": {"n_heads_in_group": None, "no_op": True},
                "ffn": {"ffn_mult": None, "replace_with_linear": True},
            },
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
        ],
        **changes,
    }


def gpt_oss(**changes: Any) -> dict[str, Any]:
    """gpt-oss-120b's published fields."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {"quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": 201088,
        **changes,
    }


def gpt_oss_child(**changes: Any) -> dict[str, Any]:
    windows = [128, 8192, None, 128] * 9
    return (
        gpt_oss(
            model_type="gpt_oss_puzzle",
            num_local_experts=None,
            layer_types=["full_attention" if window is None else "sliding_attention" for window in windows],
            block_configs=[
                {"num_local_experts": 128 if layer < 15 else 64, "sliding_window": window}
                for layer, window in enumerate(windows)
            ],
        )
        | changes
    )


def test_gpt_oss_comes_out_as_published_and_its_children_layer_by_layer() -> None:
    found = anatomy(from_hf(gpt_oss()))
    assert round(found.total / 1e9, 1) == 116.8
    assert round((found.active + found.embedding) / 1e9, 1) == 5.7  # 5.1 without the input embedding
    assert round(found.active / 1e9, 1) == 5.1
    small = anatomy(from_hf(gpt_oss(num_hidden_layers=24, num_local_experts=32, layer_types=None)))
    assert (round(small.total / 1e9, 1), round(small.active / 1e9, 1)) == (20.9, 3.6)
    for values in (gpt_oss(), gpt_oss_child(), gpt_oss(rope_scaling={"rope_type": "default"})):
        config = from_hf(values)
        assert config.keys == "gpt_oss"
        assert from_hf(to_hf(config)) == config
    blocks = from_hf(gpt_oss_child()).backbone.blocks
    assert [x.window for x in blocks if isinstance(x, AttentionConfig)] == [128, 8192, None, 128] * 9
    assert [x.experts for x in blocks if isinstance(x, MoEConfig)] == [128] * 15 + [64] * 21


def test_a_llama_nemotron_child_has_a_block_of_its_own_in_each_layer() -> None:
    config = from_hf(llama())
    rope = RopeConfig(theta=500000.0, factor=8.0, low=1.0, high=4.0, original=8192)
    assert config.backbone.blocks == (
        AttentionConfig(heads=8, kv_heads=2, head_dim=8, rope=rope),
        MLPConfig(hidden=256, gated=True),  # 2 * 1.3 * 64 / 3 = 55, up to a multiple of 256
        NoOpConfig(),
        LinearConfig(),
        LinearConfig(),
        NoOpConfig(),
    )
    assert config.keys == "llama"
    assert from_hf(to_hf(config)) == config
    assert [count for _, count in groups(config.backbone.blocks)] == [1, 1, 2, 2]


def test_a_hybrid_child_whose_layers_differ_reads_back_the_same() -> None:
    blocks = (
        MambaConfig(heads=4, head_dim=8, groups=2),
        MoEConfig(experts=4, top_k=2, hidden=8, router="softmax", gated=True),
        MoEConfig(experts=3, top_k=1, hidden=8),
        AttentionConfig(heads=4, kv_heads=2, head_dim=8, window=64, rope=RopeConfig(theta=99.0)),
        NoOpConfig(),
        LinearConfig(),
        MLPConfig(hidden=12),
    )
    mtp = MTPConfig(blocks=(AttentionConfig(heads=4, kv_heads=2, head_dim=8),), depth=2)
    config = OmniConfig(backbone=BackboneConfig(width=32, vocabulary=64, blocks=blocks), mtp=mtp)
    assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (released.nano_3(surprise=1, another=2), "unknown another, surprise"),
        (released.omni(surprise=1), "config.json: unknown surprise"),
        (released.omni(vision_config={"args": {}, "surprise": 1}), "vision_config: unknown surprise"),
        (released.omni(sound_config=released.SOUND | {"surprise": 1}), "sound_config: unknown surprise"),
        (released.omni(sound_config=released.SOUND | {"scale_input": True}), "scale_input is True"),
        (released.omni(llm_config=released.nano_3(surprise=1)), "llm_config: unknown surprise"),
        (released.omni(llm_config=3), "llm_config: int came"),
        ({k: v for k, v in released.nano_3().items() if k != "hidden_size"}, "hidden_size is missing"),
        (
            {k: v for k, v in released.nano_3().items() if k != "hybrid_override_pattern"},
            "hybrid_override_pattern / block_configs is missing",
        ),
        (released.nano_3(hybrid_override_pattern="MEQ"), "holds .'Q'."),
        (released.nano_3(layers_block_type=["mamba", "what"]), "holds .'what'."),
        (released.nano_3(layers_block_type=["mamba"]), "disagree"),
        (released.nano_3(num_hidden_layers=3), "num_hidden_layers is 3"),
        (released.nano_3(time_step_limit=[0.0, 0.1]), "time_step_limit"),
        (released.nano_3(mlp_hidden_act="gelu"), "mlp_hidden_act / hidden_act is 'gelu'"),
        (released.nano_3(model_type="mamba3"), "model_type 'mamba3'; known are nemotron_h"),
        (puzzle(layers_block_type=["mamba"] * 4), "layers_block_type and block_configs disagree"),
        (puzzle(block_configs=[{"block_type": "what"}]), "block_configs holds .'what'."),
        (puzzle(block_configs=[{}]), r"block_configs\[0\]: block_type is missing"),
        (
            puzzle(block_configs=[{"block_type": "moe", "surprise": 1}], layers_block_type=None),
            r"block_configs\[0\]: num_experts_per_tok is missing",
        ),
        (
            puzzle(block_configs=[{"block_type": "mamba", "surprise": 1}], layers_block_type=None),
            r"block_configs\[0\]: unknown surprise",
        ),
        (released.nano_3(residual_in_fp32=True), "residual_in_fp32"),
        (released.nano_3(omni_blocks=[{"kind": "What"}]), "kind 'What'"),
        (released.nano_3(omni_blocks=[{"kind": "MLPConfig", "size": 3}]), "MLPConfig"),
        (released.nano_3(hidden_size="wide"), "hidden_size is 'wide', a whole number from 1 on was wanted"),
        (released.omni(norm_mean=0.5), "config.json: norm_mean is 0.5, a list was wanted"),
        (released.omni(norm_mean=[0.5]), r"norm_mean is \(0.5,\), three numbers were wanted"),
        (released.omni(downsample_ratio=0), "downsample_ratio 0 is not one over"),
        (released.nano_3(eos_token_id="</s>"), "eos_token_id '</s>', pad_token_id 0; ids were"),
        (released.omni(vit_hidden_size=640), "vit_hidden_size is 640"),
        (released.omni(downsample_ratio=0.3), "downsample_ratio 0.3"),
        (released.omni(video_temporal_patch_size=4), "video_temporal_patch_size is 4"),
        (released.omni(vision_config={"args": {"model": "resnet50"}}), "resnet50"),
        (released.omni(vision_config=TIMM | {"architecture": "resnet50"}), "resnet50 is a ResNet"),
        (released.omni(vision_config={"patch_size": 14}), "patch_size is 16, in .*vision_config 14"),
        (llama(num_hidden_layers=4), "block_configs has 3"),
        (llama(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope type 'dynamic'"),
        (llama(rope_scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9}), "truncate"),
        (gpt_oss(rope_scaling=None), "rope_scaling is missing"),
        (gpt_oss(rope_scaling=gpt_oss()["rope_scaling"] | {"attention_factor": 2.0}), "attention_factor"),
        (gpt_oss(rope_scaling=gpt_oss()["rope_scaling"] | {"mscale": 2.0}), "unknown mscale"),
        (gpt_oss(attention_bias=False), "attention_bias is False"),
        (gpt_oss(num_local_experts=None), "num_local_experts is missing"),
        (gpt_oss(num_hidden_layers=35), "make them agree"),
        (gpt_oss_child(layer_types=["full_attention"] * 36), "make them agree"),
        (
            gpt_oss_child(block_configs=[{"num_local_experts": 1, "surprise": 1}]),
            r"block_configs\[0\]: unknown surprise",
        ),
        (llama(block_configs=None), "intermediate_size is missing"),
        (llama(block_configs=[{"attention": {}, "ffn": {"no_op": True}}] * 3), "n_heads_in_group is missing"),
        (llama(block_configs=[{"attention": {"no_op": True}, "ffn": {}}] * 3), "ffn_mult is missing"),
        (llama(block_configs=[{"attention": {"num_sink_tokens": 4}, "ffn": {}}] * 3), "num_sink_tokens is set"),
        (llama(block_configs=[{"attention": {"no_op": True}, "ffn": {"sparsify": [1]}}] * 3), "sparsify is set"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_hf(values)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a config, those of a list's first alone."""
    for key in values if isinstance(values, dict) else range(min(1, len(values))) if isinstance(values, list) else ():
        yield (*path, key)
        yield from places(values[key], (*path, key))


WRONG = ("text", -3, 0, 1.5, [None], {"surprise": 1})


@pytest.mark.parametrize(
    "values",
    [released.omni(), released.v2_vl(), released.nano_2(), puzzle(), llama(), gpt_oss(), gpt_oss_child()],
    ids=["Omni", "V2 VL", "Nano 2", "hybrid child", "Llama child", "gpt-oss", "gpt-oss child"],
)
def test_whatever_stands_in_a_config_it_is_read_or_refused_by_name(values: dict[str, Any]) -> None:
    refused = 0
    for *path, key in places(values):
        for wrong in WRONG:
            changed = at = deepcopy(values)
            for step in path:
                at = at[step]
            at[key] = wrong
            try:
                from_hf(changed)
            except ValueError:
                refused += 1
    assert refused > 2 * len(list(places(values)))


def test_configs_that_do_not_fit_together_are_refused() -> None:
    config = from_hf(released.omni())
    parts = {"backbone": config.backbone, "vision": config.vision, "audio": config.audio}
    with pytest.raises(ValueError, match="without its projector"):
        OmniConfig(**parts)
    with pytest.raises(ValueError, match="shuffled 2x2 gives 5120"):
        OmniConfig(backbone=config.backbone, vision=config.vision, vision_projector=ProjectorConfig(width=8, hidden=8))
    with pytest.raises(ValueError, match="audio projector of width 8"):
        OmniConfig(backbone=config.backbone, audio=config.audio, audio_projector=ProjectorConfig(width=8, hidden=8))
    with pytest.raises(ValueError, match="patches of 14 px, a tower of 16 px"):
        replace(config, media=MediaConfig(patch=14))
    assert config.vision is not None
    with pytest.raises(ValueError, match="no words for all of media"):
        to_hf(replace(config, media=replace(config.media, tile=512)))
    with pytest.raises(ValueError, match="no words for all of vision_norm"):
        to_hf(replace(config, vision_norm=True))
    with pytest.raises(ValueError, match="both must be positive"):
        ProjectorConfig(width=0, hidden=8)
    with pytest.raises(ValueError, match="pruning rate 1"):
        MediaConfig(pruning=1.0)
    with pytest.raises(ValueError, match="min <= max"):
        MediaConfig(min_patches=9, max_patches=8)
    with pytest.raises(ValueError, match="at least one of each"):
        MTPConfig(blocks=())
    with pytest.raises(ValueError, match="no released layout"):
        to_hf(OmniConfig(backbone=config.backbone, audio=config.audio, audio_projector=config.audio_projector))
    plain = BackboneConfig(width=8, vocabulary=8, blocks=(NoOpConfig(),) * 2)
    with pytest.raises(ValueError, match="clamped experts"):
        to_hf(OmniConfig(backbone=plain, keys="gpt_oss"))
    parent = from_hf(gpt_oss()).backbone
    other = replace(parent, blocks=(*parent.blocks[:-1], replace(parent.blocks[-1], top_k=2)))  # pyright: ignore[reportCallIssue]  (an expert layer)
    with pytest.raises(ValueError, match="no words for that"):
        to_hf(OmniConfig(backbone=other, keys="gpt_oss"))
    with pytest.raises(ValueError, match="rotary"):
        to_hf(OmniConfig(backbone=BackboneConfig(width=8, vocabulary=8, blocks=(NoOpConfig(),) * 2), keys="llama"))
