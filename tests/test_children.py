"""Searched and pruned children = transformers' layers put together alike: no-op, linear, narrower, other experts.

gpt-oss, plain and in MXFP4, is here for the sake of its Puzzle children.
"""

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
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
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


@pytest.mark.parametrize("scaled", [True, False])
@torch.no_grad()
def test_gpt_oss_logits_equal_transformers_there_and_back(tmp_path: Path, scaled: bool) -> None:
    plain = {} if scaled else {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    reference = oracles.gpt_oss_model(**plain)
    model = OmniModel.from_pretrained(oracles.saved(reference, tmp_path / "theirs"))
    want = reference(input_ids=IDS).logits[0]
    assert relative_error(model(batch()).logits, want) <= 1e-5
    state = model.new_state()
    first, rest = (Batch(tokens=part, lengths=torch.tensor([len(part)])) for part in IDS[0].split([20, 25]))
    steps = torch.cat([model(first, state).logits, model(rest, state).logits])
    assert relative_error(steps, want) <= 1e-5
    model.save_pretrained(tmp_path / "ours")
    again, info = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=torch.float32)  # pyright: ignore[reportGeneralTypeIssues]  (untyped there)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert relative_error(again.eval()(input_ids=IDS).logits[0], want) <= 1e-5


@torch.no_grad()
def test_a_gpt_oss_childs_logits_equal_transformers(tmp_path: Path) -> None:
    reference = oracles.gpt_oss_model(layer_types=["sliding_attention", "full_attention", *["sliding_attention"] * 2])
    few = copy.deepcopy(reference.config)
    few.num_local_experts = 3
    reference.model.layers[1].mlp, reference.model.layers[2].mlp = GptOssMLP(few), GptOssMLP(few)
    oracles.randomize(reference)
    child = [{"num_local_experts": n, "sliding_window": w} for n, w in ((6, 9), (3, None), (3, 9), (6, 9))]
    changes = {"model_type": "gpt_oss_puzzle", "block_configs": child, "num_local_experts": None}
    model = OmniModel.from_pretrained(saved(reference, tmp_path, changes))
    assert relative_error(model(batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["model_type"], written["block_configs"]) == ("gpt_oss_puzzle", child)
    again = OmniModel.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    assert torch.equal(again(batch()).logits, model(batch()).logits)


@torch.no_grad()
def test_experts_in_mxfp4_are_what_transformers_unpacks(tmp_path: Path) -> None:
    reference = oracles.gpt_oss_model(num_hidden_layers=1)
    folder = oracles.saved(reference, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    stem = "model.layers.0.mlp.experts"
    for name, rows, width in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
        blocks = torch.randint(0, 256, (6, rows, width // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 126, (6, rows, width // 32), generator=generator, dtype=torch.uint8)
        tensors.pop(f"{stem}.{name}")
        tensors |= {f"{stem}.{name}_blocks": blocks, f"{stem}.{name}_scales": scales}
        weight = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
        reference.get_parameter(f"{stem}.{name}").copy_(weight)
    save_file(tensors, folder / "model.safetensors")
    model = OmniModel.from_pretrained(folder, dtype=torch.float32)
    assert relative_error(model(batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5
    tensors.pop(f"{stem}.down_proj_scales")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"down_proj_blocks came without .*down_proj_scales"):
        OmniModel.from_pretrained(folder)


@torch.no_grad()
def test_a_sink_takes_its_share_of_every_softmax() -> None:
    from omni.ops import causal_attention

    generator = torch.Generator().manual_seed(2)
    q = torch.randn(7, 4, 8, generator=generator)
    k, v = (torch.randn(2, 12, 8, generator=generator) for _ in range(2))
    sinks = torch.tensor([0.0, 3.0, -2.0, 30.0])
    for window, block in ((None, 512), (3, 2)):
        got = causal_attention(q, k, v, window, block, sinks)
        for i in range(7):
            first = 0 if window is None else max(0, 5 + i - window + 1)
            for head in range(4):
                scores = (q[i, head] * k[head // 2, first : 6 + i]).sum(-1) / 8**0.5
                shares = torch.cat((scores, sinks[head : head + 1])).softmax(-1)[:-1]
                torch.testing.assert_close(got[i, head], shares @ v[head // 2, first : 6 + i], rtol=1e-4, atol=1e-6)
