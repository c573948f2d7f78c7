"""Ours = transformers, on its own random float32 weights, loaded from the folder that it wrote; and back."""

from __future__ import annotations

import json
from pathlib import Path

import oracles
import pytest
import small
import torch
from oracles import relative_error
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3

from encoders.audio import num_tokens
from omni.hf import from_hf
from omni.keys import sources
from omni.model import OmniModel
from processors.batch import Batch, Media, Slot

IDS = torch.randint(0, 96, (1, 45), generator=torch.Generator().manual_seed(3))

# transformers warns about names that it wrote itself, and about kernels that a CPU does not have
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def text_batch() -> Batch:
    return Batch(tokens=IDS[0], lengths=torch.tensor([45]))


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("M-*EM", {}),
        ("M*M*", {"use_conv_bias": False, "use_bias": True}),
        ("ME*E", {"moe_latent_size": 24}),
        ("*EE", {"n_group": 3, "topk_group": 2, "num_experts_per_tok": 3}),
        ("*E", {"norm_topk_prob": False}),
        ("M*", {"chunk_size": 256}),
    ],
)
@torch.no_grad()
def test_nemotron_h_logits_equal_transformers(tmp_path: Path, pattern: str, changes: dict[str, object]) -> None:
    reference = oracles.text_model(pattern, **changes)
    model = OmniModel.from_pretrained(oracles.saved(reference, tmp_path))
    assert relative_error(model(text_batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5


@pytest.mark.parametrize("scaled", [True, False])
@torch.no_grad()
def test_llama_logits_equal_transformers(tmp_path: Path, scaled: bool) -> None:
    changes = {} if scaled else {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    reference = oracles.llama_model(**changes)
    model = OmniModel.from_pretrained(oracles.saved(reference, tmp_path))
    assert relative_error(model(text_batch()).logits, reference(input_ids=IDS).logits[0]) <= 1e-5


def omni_inputs() -> tuple[Batch, dict[str, torch.Tensor]]:
    """Text, two pictures and a recording: our batch and transformers' arguments."""
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[4, 6], [8, 2]])
    patches = torch.randn(40, 768, generator=generator)
    mels = torch.randn(85, 16, generator=generator)
    padded = torch.cat((mels, torch.zeros(5, 16)))[None]
    ids = [5, 6, *[18] * 6, 7, *[18] * 4, 8, *[27] * num_tokens(85), 9, 10]
    theirs = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": patches,
        "image_grid_hw": grids,
        "input_features": padded,
        "input_features_mask": (torch.arange(90) < 85)[None],
    }
    slots = (
        Slot(position=2, kind="image", first=0),
        Slot(position=4, kind="image", first=1),
        Slot(position=6, kind="audio", first=0),
    )
    media = Media(patches=patches, grids=grids, mels=mels, frames=torch.tensor([85]))
    tokens = torch.tensor([5, 6, 18, 7, 18, 8, 27, 9, 10])
    return Batch(tokens=tokens, lengths=torch.tensor([9]), slots=slots, media=media), theirs


@pytest.mark.parametrize("pattern", ["ME*-E", "M*E"])
@torch.no_grad()
def test_omni_logits_equal_transformers_for_text_pictures_and_sound(tmp_path: Path, pattern: str) -> None:
    reference = oracles.omni_model(pattern, **({"moe_latent_size": 24} if pattern == "M*E" else {}))
    model = OmniModel.from_pretrained(oracles.saved(reference, tmp_path))
    batch, theirs = omni_inputs()
    out = model(batch)
    assert torch.equal(out.tokens, theirs["input_ids"][0])
    assert relative_error(out.logits, reference(**theirs).logits[0]) <= 1e-5


@torch.no_grad()
def test_a_vision_norm_of_mtp_exports_is_applied_before_the_shuffle(tmp_path: Path) -> None:
    reference = oracles.omni_model("M*E", num_nextn_predict_layers=1)
    assert reference.vision_final_layernorm is not None
    oracles.saved(reference, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    mtp = OmniModel(from_hf(settings)).mtp  # transformers drops these weights; lend it some
    assert mtp is not None
    lent = {f"mtp.{key}": value for key, value in mtp.state_dict().items()}
    weights = load_file(tmp_path / "model.safetensors")
    for name, value in lent.items():
        source = next(sources(name, from_hf(settings)))
        parts = value.unbind(0) if source.join == "stack" else [value]
        weights |= {key: part.contiguous() for key, part in zip(source.keys, parts, strict=True)}
    save_file(weights, tmp_path / "model.safetensors")
    batch, theirs = omni_inputs()
    model = OmniModel.from_pretrained(tmp_path)
    assert relative_error(model(batch).logits, reference(**theirs).logits[0]) <= 1e-5


def loaded_there(folder: Path, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """What transformers makes of our folder; it must find every weight and know every key."""
    model, info = (kind or AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)  # pyright: ignore[reportGeneralTypeIssues]  (untyped there)
    assert not info["missing_keys"] - {"vision_model.summary_idxs"}, info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", ["hybrid", "latent", "llama"])
@torch.no_grad()
def test_transformers_loads_the_folder_that_we_wrote(tmp_path: Path, kind: str) -> None:
    make = {
        "hybrid": lambda: oracles.text_model("M-*EM"),
        "latent": lambda: oracles.text_model("ME*", moe_latent_size=24),
        "llama": oracles.llama_model,
    }
    model = OmniModel.from_pretrained(oracles.saved(make[kind](), tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    again = loaded_there(tmp_path / "ours")
    assert relative_error(again(input_ids=IDS).logits[0], model(text_batch()).logits) <= 1e-5


@pytest.mark.parametrize("ahead", [0, 1])
@torch.no_grad()
def test_transformers_loads_the_omni_folder_that_we_wrote(tmp_path: Path, ahead: int) -> None:
    """With multi-token prediction, whose weights it passes over, comes a norm of the vision tower."""
    reference = oracles.omni_model("M*E", num_nextn_predict_layers=ahead)
    model = small.model(from_hf(reference.config.to_dict()))
    assert (model.vision_norm is not None) == bool(ahead)
    model.save_pretrained(tmp_path / "ours")
    again = loaded_there(tmp_path / "ours", NemotronH_Omni_Reasoning_V3)
    batch, theirs = omni_inputs()
    assert relative_error(again(**theirs).logits[0], model(batch).logits) <= 1e-5
