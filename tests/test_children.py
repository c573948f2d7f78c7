"""Searched and pruned children = transformers' layers put together alike: no-op, linear, narrower, other experts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from oracles import relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE

from omni.model import OmniModel
from omni.moe import MoEConfig
from processors.batch import Batch

IDS = torch.randint(0, 96, (1, 45), generator=torch.Generator().manual_seed(3))
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def batch() -> Batch:
    return Batch(tokens=IDS[0], lengths=torch.tensor([45]))


def saved(model: PreTrainedModel, folder: Path, changes: dict[str, Any], left_out: tuple[str, ...] = ()) -> Path:
    """transformers' folder with a child's config, without the norms of layers that do nothing."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if not key.startswith(left_out or "-")}, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


class LinearAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_mlp(x)


class NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@torch.no_grad()
def test_a_llama_nemotron_childs_logits_equal_transformers(tmp_path: Path) -> None:
    reference = oracles.llama_model(num_hidden_layers=4, intermediate_size=256, tie_word_embeddings=False)
    layers = reference.model.layers
    narrow = copy.deepcopy(reference.config)
    narrow.num_key_value_heads, narrow.intermediate_size = 1, 512  # ffn_mult 12: 2 * 12 * 48 / 3 = 384, up to 512
    layers[0].self_attn, layers[0].mlp = LlamaAttention(narrow, 0), LlamaMLP(narrow)
    layers[1].self_attn, layers[1].mlp = LinearAttention(48), LinearMLP(48)
    layers[2].self_attn, layers[3].mlp = NoAttention(), NoMLP()
    oracles.randomize(reference)
    child = [
        {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 12.0}},
        {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
        {"attention": {"no_op": True}, "ffn": {"intermediate_size": 256}},
        {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
    ]
    folder = saved(
        reference,
        tmp_path,
        {"model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"], "block_configs": child},
        ("model.layers.2.input_layernorm", "model.layers.3.post_attention_layernorm"),
    )
    model = OmniModel.from_pretrained(folder)
    assert relative_error(model(batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5
    model.save_pretrained(tmp_path / "again")
    again = OmniModel.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    assert torch.equal(again(batch()).logits, model(batch()).logits)


@pytest.mark.parametrize("latent", [None, 24])
@torch.no_grad()
def test_a_puzzle_hybrids_logits_equal_transformers(tmp_path: Path, latent: int | None) -> None:
    reference = oracles.text_model("MEM*E", moe_latent_size=latent)
    own = {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 3,
        "moe_shared_expert_intermediate_size": 8,
    }
    other = copy.deepcopy(reference.config)
    for name, value in own.items():
        setattr(other, name, value)
    reference.model.layers[4].mixer = NemotronHMoE(other)
    oracles.randomize(reference)
    sections: list[dict[str, Any]] = [
        {"block_type": "mamba"},
        {"block_type": "moe", "moe_intermediate_size": 24, "num_experts_per_tok": 2},
        {"block_type": "mamba"},
        {"block_type": "attention"},
        {"block_type": "moe", **own},
    ]
    changes = {"model_type": "nemotron_h_puzzle", "block_configs": sections, "num_hidden_layers": None}
    model = OmniModel.from_pretrained(saved(reference, tmp_path, changes))
    block = model.config.backbone.blocks[4]
    assert isinstance(block, MoEConfig)
    assert (block.hidden, block.experts, block.top_k, block.shared, block.latent) == (16, 4, 3, 8, latent)
    assert relative_error(model(batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["model_type"] == "nemotron_h_puzzle"
    assert [section["block_type"] for section in written["block_configs"]] == [s["block_type"] for s in sections]
    again = OmniModel.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    assert torch.equal(again(batch()).logits, model(batch()).logits)
