"""transformers' models at tiny sizes with random float32 weights: the independent implementation that ours must equal.

Every weight is drawn at random, norms and running statistics included, so that nothing is proved by an identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    PreTrainedModel,
    RadioConfig,
    RadioModel,
)
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

# transformers clamps dt from below in prefill only; a tiny bound makes its prefill and decode agree, as ours do.
TEXT = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "intermediate_size": 80,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 2.5,
    "time_step_min": 1e-9,
    "bos_token_id": 1,
    "eos_token_id": [2, 11],
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
    "intermediate_size": 64,
    "max_img_size": 128,
}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "attention_bias": False,
    "convolution_bias": False,
    "scale_input": False,
    "dropout": 0.0,
    "layerdrop": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
}


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and running statistic so that activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or "inv_freq" in name or "input_conditioner" in name or "lambda1" in name:
            continue
        draw = torch.randn(value.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("running_var"):
                value.copy_(draw.square() + 0.5)
            elif name.endswith("A_log"):
                value.copy_(draw.abs())
            elif name.endswith("_bias"):
                value.copy_(draw)
            elif value.ndim < 2 and name.endswith("weight"):
                value.copy_(1 + 0.2 * draw)
            elif value.ndim < 2:
                value.copy_(0.3 * draw)
            elif "embed" in name or "pos_" in name or "position_embedding" in name or "token" in name:
                value.copy_(draw)
            else:
                value.copy_(draw * value.shape[-1] ** -0.5)


def text_model(pattern: str = "M-*EM", **changes: Any) -> NemotronHForCausalLM:
    model = NemotronHForCausalLM(NemotronHConfig(**{**TEXT, "hybrid_override_pattern": pattern, **changes}))
    randomize(model)
    return model.eval()


def llama_model(**changes: Any) -> LlamaForCausalLM:
    values = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
    model = LlamaForCausalLM(LlamaConfig(**{**values, **changes}))
    randomize(model)
    return model.eval()


def gpt_oss_model(**changes: Any) -> GptOssForCausalLM:
    values = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 9,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 128,
        },
    }
    model = GptOssForCausalLM(GptOssConfig(**{**values, **changes}))
    randomize(model)
    return model.eval()


def vision_model(**changes: Any) -> RadioModel:
    model = RadioModel(RadioConfig(**{**VISION, "video_temporal_patch_size": 2, **changes}))
    randomize(model)
    model.make_preprocessor_external()
    return model.eval()


def audio_model(**changes: Any) -> ParakeetEncoder:
    model = ParakeetEncoder(ParakeetEncoderConfig(**{**AUDIO, **changes}))
    randomize(model)
    return model.eval()


def omni_model(pattern: str = "ME*-E", **changes: Any) -> NemotronH_Omni_Reasoning_V3:
    config = NemotronH_Omni_Reasoning_V3_Config(
        text_config={"model_type": "nemotron_h", **TEXT, "hybrid_override_pattern": pattern, **changes},
        vision_config={"model_type": "radio", **VISION, "video_temporal_patch_size": 2},
        audio_config={
            "model_type": "parakeet_encoder",
            **AUDIO,
            "projection_hidden_size": 40,
            "projection_bias": False,
        },
        vision_hidden_size=32,
        projector_hidden_size=64,
        image_token_id=18,
        video_token_id=131081,
        audio_token_id=27,
    )
    model = NemotronH_Omni_Reasoning_V3(config)
    randomize(model)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())
