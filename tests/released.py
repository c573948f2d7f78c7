"""The released models' config.json, rebuilt from their published fields; sizes may be replaced by tiny ones."""

from __future__ import annotations

import copy
from typing import Any

NANO_3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SUPER = "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
NANO_2_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
NANO_2_12B = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-"

COMMON: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
    "bos_token_id": 1,
    "chunk_size": 128,
    "conv_kernel": 4,
    "eos_token_id": 2,
    "expand": 2,
    "head_dim": 128,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "model_type": "nemotron_h",
    "n_groups": 8,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "partial_rotary_factor": 1.0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "rope_theta": 10000,
    "sliding_window": None,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_limit": [0.0, {"__float__": "Infinity"}],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.4",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "use_mamba_kernels": True,
    "vocab_size": 131072,
}


def nano_3(**changes: Any) -> dict[str, Any]:
    return COMMON | {
        "hidden_size": 2688,
        "hybrid_override_pattern": NANO_3,
        "num_hidden_layers": 52,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "intermediate_size": 1856,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "norm_eps": 1e-05,
        "routed_scaling_factor": 2.5,
        **changes,
    }


def nemotron_super(**changes: Any) -> dict[str, Any]:
    return nano_3() | {
        "hidden_size": 4096,
        "hybrid_override_pattern": SUPER,
        "num_hidden_layers": 88,
        "mamba_num_heads": 128,
        "intermediate_size": 2688,
        "moe_intermediate_size": 2688,
        "moe_shared_expert_intermediate_size": 5376,
        "moe_latent_size": 1024,
        "moe_shared_expert_overlap": False,
        "n_routed_experts": 512,
        "num_experts_per_tok": 22,
        "routed_scaling_factor": 5.0,
        "num_nextn_predict_layers": 1,
        "mtp_hybrid_override_pattern": "*E",
        **changes,
    }


def nano_2(twelve: bool = False, **changes: Any) -> dict[str, Any]:
    return COMMON | {
        "hidden_size": 5120 if twelve else 4480,
        "hybrid_override_pattern": NANO_2_12B if twelve else NANO_2_9B,
        "num_hidden_layers": 62 if twelve else 56,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "mamba_num_heads": 128,
        "mamba_head_dim": 80,
        "intermediate_size": 20480 if twelve else 15680,
        "eos_token_id": [2, 11],
        **changes,
    }


VISION_ARGS: dict[str, Any] = {
    "model": "vit_huge_patch16_224",
    "cpe_max_size": 2048,
    "register_multiple": 10,
    "cls_token_per_teacher": True,
    "teachers": [{"name": name} for name in ("siglip2-g", "dinov3_vit7b16", "sam3")],
    "min_num_patches": 1024,
    "max_num_patches": 13312,
}
SOUND: dict[str, Any] = {
    "model_type": "parakeet",
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "conv_kernel_size": 9,
    "convolution_bias": False,
    "subsampling_factor": 8,
    "subsampling_conv_channels": 256,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "num_mel_bins": 128,
    "projection_hidden_size": 4096,
    "projection_bias": False,
    "sampling_rate": 16000,
}


def omni(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": ["NemotronH_Nano_Omni_Reasoning_V3"],
        "model_type": "NemotronH_Nano_Omni_Reasoning_V3",
        "auto_map": {"AutoConfig": "configuration.NemotronH_Nano_Omni_Reasoning_V3_Config"},
        "max_sequence_length": 131072,
        "img_context_token_id": 18,
        "video_context_token_id": 131081,
        "sound_context_token_id": 27,
        "img_context_token": "<image>",
        "video_context_token": "<video>",
        "sound_context_token": "<so_embedding>",
        "img_start_token": "<img>",
        "img_end_token": "</img>",
        "force_image_size": 512,
        "patch_size": 16,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "template": "v2",
        "image_tag_type": "internvl",
        "projector_hidden_size": 20480,
        "vit_hidden_size": 1280,
        "video_pruning_rate": 0.7,
        "use_thumbnail": True,
        "norm_mean": [0.48145466, 0.4578275, 0.40821073],
        "norm_std": [0.26862954, 0.26130258, 0.27577711],
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "",
            "version": "c-radio_v4-h",
            "patch_size": 16,
            "args": VISION_ARGS,
            "video_target_num_patches": 1024,
            "video_maintain_aspect_ratio": True,
            "video_temporal_patch_size": 2,
            "separate_video_embedder": True,
        },
        "sound_config": SOUND,
        "llm_config": nano_3(),
    }
    return copy.deepcopy(values | changes)


def v2_vl(**changes: Any) -> dict[str, Any]:
    values = omni()
    for name in ("sound_config", "sound_context_token_id", "sound_context_token", "img_context_token_id"):
        values.pop(name)
    args = {k: v for k, v in VISION_ARGS.items() if k not in ("min_num_patches", "max_num_patches")}
    values |= {
        "architectures": ["NemotronH_Nano_VL_V2"],
        "model_type": "NemotronH_Nano_VL_V2",
        "image_context_token_id": 18,
        "vision_config": {"version": "radio_v2.5-h", "patch_size": 16, "args": args},
        "llm_config": nano_2(twelve=True),
    }
    return copy.deepcopy(values | changes)
