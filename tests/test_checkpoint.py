"""Checkpoints: each dialect and format loads to the same weights, save and load undo one another, nothing loads in
part.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import released
import small
import talker
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from omni.checkpoint import Checkpoint
from omni.hf import from_hf, to_hf
from omni.model import OmniModel
from omni.quantize import quantize_fp8, quantize_nvfp4
from processors.batch import Batch

OMNI = small.FAMILIES["Omni"]
TOWER = "vision_model.radio_model.model"
LANGUAGE = "language_model.backbone.layers"


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Edit the tensors of a saved folder."""
    path = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)
    return folder


def saved(folder: Path, family: str = "Omni") -> tuple[OmniModel, Path]:
    model = small.model(small.FAMILIES[family])
    model.save_pretrained(folder)
    return model, folder


def same_weights(a: OmniModel, b: OmniModel) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        assert value.dtype == theirs[name].dtype, name


@pytest.mark.parametrize("family", list(small.FAMILIES))
def test_saving_and_loading_gives_the_same_model(tmp_path: Path, family: str) -> None:
    model, folder = saved(tmp_path, family)
    again = OmniModel.from_pretrained(folder)
    assert again.config == model.config
    assert not again.training
    same_weights(again, model)


def test_answers_end_where_any_file_of_a_checkpoint_says(tmp_path: Path) -> None:
    """Released configs name the end of a text alone, generation_config.json and the tokenizer the end of a turn."""
    talker.talker(talker.SEES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert OmniModel.from_pretrained(tmp_path).config.eos == (2,)
    talker.TOKENIZER.save_pretrained(tmp_path)
    codec = OmniModel.from_pretrained(tmp_path).codec
    assert codec is not None
    assert set(codec.eos) == {2, 11}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11, 7]}))
    model = OmniModel.from_pretrained(tmp_path)
    assert (model.config.eos, model.config.bos) == ((2, 11, 7), 1)
    model.save_pretrained(tmp_path / "again")
    assert OmniModel.from_pretrained(tmp_path / "again").config.eos == (2, 11, 7)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_tied_to_the_embeddings_is_written_for_those_who_do_not_tie_it(tmp_path: Path, tied: bool) -> None:
    config = small.FAMILIES["Nano 3"]
    model = small.model(replace(config, backbone=replace(config.backbone, tied=tied)))
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    batch = small.sentence(9)
    with torch.no_grad():
        torch.testing.assert_close(theirs(batch.tokens[None]).logits[0], model(batch).logits, rtol=1e-4, atol=1e-4)
    again = OmniModel.from_pretrained(tmp_path)
    assert (again.head.weight is again.embeddings.weight) == tied
    if tied:
        rewritten(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1})
        with pytest.raises(ValueError, match="differs from the embeddings that it is tied to"):
            OmniModel.from_pretrained(tmp_path)


def test_shards_hold_the_same_and_name_themselves(tmp_path: Path) -> None:
    model = small.model(OMNI)
    model.save_pretrained(tmp_path, shard_bytes=20_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    same_weights(OmniModel.from_pretrained(tmp_path), model)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="empty folder"):
        model.save_pretrained(tmp_path)


def test_a_dtype_may_be_asked_for_but_selection_stays_float32(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    model = OmniModel.from_pretrained(folder, dtype=torch.bfloat16)
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    assert {kind for name, kind in kinds.items() if "e_score" not in name and "num_batches" not in name} == {
        torch.bfloat16
    }
    assert {kind for name, kind in kinds.items() if "e_score" in name} == {torch.float32}


def dialect_b(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Later exports: vision_projector.…, the tower in Hugging Face's ViT naming, query, key and value apart."""
    names = {
        "vision_final_layernorm.": "vision_projector.vision_final_layernorm.",
        "mlp1.0.": "vision_projector.mlp1.norm.",
        "mlp1.1.": "vision_projector.mlp1.linear1.",
        "mlp1.3.": "vision_projector.mlp1.linear2.",
        f"{TOWER}.patch_generator.embedder.": "vision_model.embeddings.patch_projection.",
        f"{TOWER}.patch_generator.video_embedder.": "vision_model.embeddings.video_patch_projection.",
        f"{TOWER}.patch_generator.pos_embed": "vision_model.embeddings.position_embedding",
        f"{TOWER}.patch_generator.cls_token.token": "vision_model.embeddings.cls_register_token",
        f"{TOWER}.blocks.": "vision_model.encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        new = key
        for old, replacement in names.items():
            if key.startswith(("mlp1", "vision_model", "vision_final")):
                new = new.replace(old, replacement)
        if ".attn.qkv." in new:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[new.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            out[new] = value
    return out


def dialect_c(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names in memory: model for backbone, experts stacked."""
    out: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    for key, value in tensors.items():
        new = key.replace(".backbone.", ".model.").replace("sound_encoder.encoder.", "audio_tower.")
        new = new.replace("mlp1.0", "multi_modal_projector.layer_norm").replace(
            "mlp1.1", "multi_modal_projector.linear_1"
        )
        new = new.replace("mlp1.3", "multi_modal_projector.linear_2").replace(
            "sound_projection.norm", "embed_audio.layer_norm"
        )
        new = re.sub(r"sound_projection\.linear(\d)", r"embed_audio.linear_\1", new)
        if found := re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", new):
            stacks.setdefault(f"{found[1]}.{found[2]}", []).append(value)
        else:
            out[new] = value
    return out | {key: torch.stack(parts) for key, parts in stacks.items()}


@pytest.mark.parametrize("family", ["Omni", "Omni with MTP"])
@pytest.mark.parametrize("dialect", [dialect_b, dialect_c])
def test_each_dialect_loads_to_the_same_weights(
    tmp_path: Path, dialect: Callable[[dict[str, Tensor]], dict[str, Tensor]], family: str
) -> None:
    model, folder = saved(tmp_path, family)
    same_weights(OmniModel.from_pretrained(rewritten(folder, dialect)), model)


def test_mtp_may_sit_below_the_language_model(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, "Omni with MTP")
    keys = set(load_file(folder / "model.safetensors"))
    assert {"mtp.layers.0.enorm.weight", "mtp.layers.0.eh_proj.weight", "mtp.layers.1.final_layernorm.weight"} <= keys
    moved = rewritten(
        folder,
        lambda t: {f"language_model.{key}" if key.startswith("mtp.") else key: value for key, value in t.items()},
    )
    same_weights(OmniModel.from_pretrained(moved), model)


@torch.no_grad()
def test_a_checkpoint_without_the_vision_norms_weights_normalises_alone(tmp_path: Path) -> None:
    """As its trainers' code does: no checkpoint has stored them."""
    model, folder = saved(tmp_path, "Omni with MTP")
    rewritten(
        folder, lambda t: {key: value.bfloat16() for key, value in t.items() if not key.startswith("vision_final")}
    )
    loaded = OmniModel.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.device("meta"):
        own = OmniModel(model.config)
    Checkpoint.open(folder).fill(own, model.config)
    for got in (loaded, own):
        norm = got.vision_norm
        assert norm is not None
        assert norm.weight.dtype == norm.bias.dtype == torch.bfloat16
        assert norm.weight.tolist() == [1.0] * 16
        assert norm.bias.tolist() == [0.0] * 16


def test_the_released_keys_are_the_ones_we_write(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    keys = set(load_file(folder / "model.safetensors"))
    assert {
        "language_model.backbone.embeddings.weight",
        "language_model.backbone.norm_f.weight",
        "language_model.lm_head.weight",
        "language_model.backbone.layers.0.mixer.A_log",
        "language_model.backbone.layers.0.mixer.conv1d.bias",
        "language_model.backbone.layers.1.mixer.gate.e_score_correction_bias",
        "language_model.backbone.layers.1.mixer.experts.5.up_proj.weight",
        "language_model.backbone.layers.1.mixer.shared_experts.down_proj.weight",
        "language_model.backbone.layers.2.mixer.q_proj.weight",
        "mlp1.0.weight",
        "mlp1.1.weight",
        "mlp1.3.weight",
        f"{TOWER}.patch_generator.video_embedder.weight",
        f"{TOWER}.patch_generator.cls_token.token",
        "vision_model.radio_model.model.blocks.1.attn.qkv.bias",
        "sound_encoder.encoder.subsampling.layers.6.weight",
        "sound_encoder.encoder.layers.0.conv.norm.running_mean",
        "sound_encoder.encoder.layers.0.conv.norm.num_batches_tracked",
        "sound_encoder.encoder.layers.1.self_attn.bias_u",
        "sound_encoder.encoder.layers.1.self_attn.relative_k_proj.weight",
        "sound_projection.linear2.weight",
    } <= keys
    assert all(load_file(folder / "model.safetensors")[key].ndim == 3 for key in keys if key.endswith("conv1d.weight"))


def test_tensors_that_change_nothing_are_read_over(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    extra = {
        "vision_model.radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "vision_model.radio_model.summary_idxs": torch.zeros(2),
        "vision_model.radio_model.model.blocks.0.layer_scale1.lambda1": torch.ones(16),
        "sound_encoder.encoder.feature_extractor.featurizer.fb": torch.zeros(1, 16, 257),
    }
    same_weights(OmniModel.from_pretrained(rewritten(folder, lambda t: t | extra)), model)


def quantized(kind: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """As ModelOpt lays a checkpoint out: experts in NVFP4 or FP8, Mamba's projections in FP8, scales beside them."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for key, value in tensors.items():
            stem = key.removesuffix("weight")
            if ".experts." in key and kind == "nvfp4":
                q = quantize_nvfp4(value)
                out |= {key: q.packed, f"{stem}weight_scale": q.block_scale, f"{stem}weight_scale_2": q.tensor_scale}
                out[f"{stem}input_scale"] = torch.tensor(1.0)
            elif ".experts." in key or "in_proj" in key or "out_proj" in key:
                q8, scale = quantize_fp8(value)
                out |= {key: q8, f"{stem}weight_scale": scale, f"{stem}input_scale": torch.tensor(1.0)}
            else:
                out[key] = value.bfloat16() if value.is_floating_point() and "e_score" not in key else value
            if key.endswith(".k_proj.weight"):
                out[f"{stem}k_scale"] = torch.tensor(1.0)
                out[f"{stem.removesuffix('k_proj.')}v_scale"] = torch.tensor(1.0)
        return out

    return change


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_quantised_checkpoints_load_by_exact_dequantisation(tmp_path: Path, kind: str) -> None:
    model, folder = saved(tmp_path)
    rewritten(folder, quantized(kind))
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}}))
    loaded = OmniModel.from_pretrained(folder, dtype=torch.float32)
    expert = "backbone.layers.1.mixer.experts.up_proj"
    want = model.state_dict()[expert]
    from omni.quantize import dequantize_fp8, dequantize_nvfp4

    exact = [
        dequantize_nvfp4(quantize_nvfp4(part)) if kind == "nvfp4" else dequantize_fp8(*quantize_fp8(part))
        for part in want
    ]
    assert torch.equal(loaded.state_dict()[expert], torch.stack(exact))
    with torch.device("meta"):
        own = OmniModel(model.config)
    Checkpoint.open(folder).fill(own, model.config)  # "auto", on a machine that is fast in bfloat16
    assert torch.equal(own.state_dict()[expert], torch.stack(exact).bfloat16())


BREAKS: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (lambda t: {k: v for k, v in t.items() if "norm_f" not in k}, "lacks language_model.backbone.norm_f.weight"),
    (
        lambda t: {k: v for k, v in t.items() if "experts.3.up" not in k},
        "lacks language_model.backbone.layers.1.mixer.experts.0",
    ),
    (lambda t: t | {"surprise.weight": torch.zeros(2)}, "unknown keys surprise.weight"),
    (lambda t: t | {"mlp1.3.weight": torch.zeros(32, 41)}, r"mlp1.3.weight \(32, 41\), want \(32, 40\)"),
    (
        lambda t: t | {"language_model.backbone.layers.1.mixer.experts.3.up_proj.weight": torch.zeros(16, 31)},
        r"experts.0.up_proj.weight \(\), want \(6, 16, 32\)",
    ),
    (
        lambda t: t | {"mlp1.3.weight": t["mlp1.3.weight"].to(torch.float8_e4m3fn)},
        "mlp1.3.weight came with",
    ),
    (
        lambda t: t | {"mlp1.3.weight_scale": torch.ones(3)},
        "dequantize: mlp1.3.weight",
    ),
    (lambda t: t | {"surprise.weight_scale": torch.ones(1)}, "unknown keys surprise.weight_scale"),
    (lambda t: t | {"surprise.k_proj.k_scale": torch.ones(1)}, "unknown keys surprise.k_proj.k_scale"),
    (lambda t: t | {"mlp1.3.pre_quant_scale": torch.ones(40)}, "unknown keys mlp1.3.pre_quant_scale"),
    (lambda t: t | {"mlp1.3.weight": t["mlp1.3.weight"].int()}, "mlp1.3.weight of I32; want floating point"),
    (lambda t: t | {"mlp1.0.weight": t["mlp1.0.weight"].to(torch.float8_e5m2)}, "mlp1.0.weight of F8_E5M2"),
    (lambda t: t | {f"{LANGUAGE}.0.mixer.A_log": torch.ones(4, dtype=torch.uint8)}, "A_log of U8"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        OmniModel.from_pretrained(rewritten(folder, change))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_weights_cannot_have_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(ValueError, match=f"dtype {dtype} came; want 'auto', float32"):
        OmniModel.from_pretrained(folder, dtype=dtype)


def test_broken_folders_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder and no hub id"):
        OmniModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        OmniModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="download the file again"):
        OmniModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        OmniModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(OMNI)))
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        OmniModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"model.safetensors"):
        OmniModel.from_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="keep one of them"):
        OmniModel.from_pretrained(tmp_path)


def test_a_hub_name_without_a_connection_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="check the name and the connection"):
        OmniModel.from_pretrained("nobody/nothing")


def tiny_text(values: dict[str, Any]) -> dict[str, Any]:
    """A released language config with its own fields at sizes that fit a test."""
    small_sizes: dict[str, Any] = {
        "hidden_size": 32, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "vocab_size": 64,
        "hybrid_override_pattern": "ME*E" if "n_routed_experts" in values else "M-*-", "num_hidden_layers": 4,
    }  # fmt: skip
    if "n_routed_experts" in values:
        small_sizes |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        small_sizes |= {"moe_shared_expert_intermediate_size": 24}
    return values | small_sizes | ({"moe_latent_size": 16} if "moe_latent_size" in values else {})


def tiny_omni(values: dict[str, Any]) -> dict[str, Any]:
    """The same of a config with towers."""
    values["llm_config"] = tiny_text(values["llm_config"])
    values["vision_config"]["args"] |= {"model": "vit_tiny_patch16_224", "cpe_max_size": 128}
    values |= {"vit_hidden_size": 192, "projector_hidden_size": 64}
    if "sound_config" in values:
        values["sound_config"] |= {
            "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 24,
            "subsampling_conv_channels": 4, "num_mel_bins": 16, "projection_hidden_size": 40,
        }  # fmt: skip
    return values


LAYOUTS = {
    "Omni": lambda: tiny_omni(released.omni()),
    "V2 VL": lambda: tiny_omni(released.v2_vl()),
    "Nano 3": lambda: tiny_text(released.nano_3()),
    "Super": lambda: tiny_text(released.nemotron_super()),
    "Nano 2": lambda: tiny_text(released.nano_2()),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@torch.no_grad()
def test_a_folder_in_the_published_layout_loads(tmp_path: Path, layout: str) -> None:
    values = LAYOUTS[layout]()
    config = from_hf(values)
    model = small.model(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))  # the published fields in place of ours
    again = OmniModel.from_pretrained(tmp_path)
    same_weights(again, model)
    batch = small.sentence(8)
    if config.vision:
        batch = Batch.pack([batch, small.mixed(1, config.vision.tubelet_frames, config.audio is not None)])
    assert torch.equal(again(batch).logits, model(batch).logits)


PEAK = """
import re, sys
from pathlib import Path
from omni.model import OmniModel
import torch

def memory(name): return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

OmniModel.from_pretrained(sys.argv[2])  # everything is imported and warm
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = memory("VmRSS")
model = OmniModel.from_pretrained(sys.argv[1])
print(memory("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


def test_loading_needs_no_more_than_the_model_and_one_shard(tmp_path: Path) -> None:
    shard = 60_000_000
    small.model(OMNI).save_pretrained(tmp_path / "small")
    with torch.device("meta"):
        big = OmniModel(small.text((small.MAMBA, small.MoEConfig(experts=96, top_k=2, hidden=1024, shared=64)) * 12))
    big.to_empty(device="cpu").save_pretrained(tmp_path / "big", shard_bytes=shard)
    del big
    arguments = [sys.executable, "-c", PEAK, str(tmp_path / "big"), str(tmp_path / "small")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    grown, weights = map(int, done.stdout.split())
    print(
        f"the peak grew by {grown / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights in shards of {shard / 1e6:.0f} MB"
    )
    assert weights > 4 * shard
    assert grown < weights + 1.25 * shard
