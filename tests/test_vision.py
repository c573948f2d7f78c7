"""The vision tower = transformers' RADIO.

Packed = alone, images and tubelets in one pass; timm's ViTs give timm's numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import oracles
import pytest
import small
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from safetensors.torch import load_file
from torch import Tensor

from encoders import vision
from encoders.timm_tower import TimmConfig, TimmTower
from encoders.vision import RadioVit, VisionConfig
from omni.config import OmniConfig
from omni.keys import sources
from omni.model import OmniModel
from omni.projector import ProjectorConfig
from processors.batch import Batch

TINY = "vit_tiny_patch16_224"
CONFIG = VisionConfig(width=24, depth=2, heads=3, mlp_width=48, positions=12, prefix_tokens=5)


def tower(seed: int = 0) -> RadioVit:
    torch.manual_seed(seed)
    return RadioVit(CONFIG).eval()


def pixels(grids: list[tuple[int, int]], values: int = 768, seed: int = 1) -> tuple[Tensor, Tensor]:
    count = sum(rows * cols for rows, cols in grids)
    patches = torch.randn(count, values, generator=torch.Generator().manual_seed(seed))
    return patches, torch.tensor(grids).reshape(-1, 2)


@torch.no_grad()
def test_features_of_three_sizes_equal_transformers() -> None:
    reference = oracles.vision_model()
    ours = RadioVit(VisionConfig(width=32, depth=2, heads=4, mlp_width=64, positions=8, prefix_tokens=10)).eval()
    theirs = reference.state_dict()
    weights: dict[str, Tensor] = {}
    for name in ours.state_dict():
        for source in _sources(name):
            keys = [key.removeprefix("vision_model.") for key in source]
            if all(key in theirs for key in keys):
                weights[name] = torch.cat([theirs[key] for key in keys])
    ours.load_state_dict(weights)
    patches, grids = pixels([(4, 6), (8, 2), (3, 5)])
    want = reference(patches, image_grid_hw=grids).features
    assert relative_error(ours(patches, grids), want) <= 1e-5
    frames = torch.randn(2, 6, 4 * 16, 6 * 16, generator=torch.Generator().manual_seed(2))
    cut = frames.unflatten(2, (4, 16)).unflatten(4, (6, 16)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
    grids = torch.tensor([[4, 6], [4, 6]])
    got = ours.encode(ours.embed_tubelets(cut, grids), grids)
    assert relative_error(got, reference(frames).features.flatten(0, 1)) <= 1e-5


def _sources(name: str) -> list[tuple[str, ...]]:
    return [source.keys for source in sources(f"vision.{name}", small.FAMILIES["Omni"])]


GRIDS = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(images=GRIDS, tubelets=GRIDS)
@torch.no_grad()
def test_images_and_tubelets_packed_equal_each_alone(
    images: list[tuple[int, int]], tubelets: list[tuple[int, int]]
) -> None:
    model = tower()
    patches, grids = pixels(images)
    frames, steps = pixels(tubelets, 1536)
    x = torch.cat((model.embed_images(patches, grids), model.embed_tubelets(frames, steps)))
    together = model.encode(x, torch.cat((grids, steps)))
    sizes = [rows * cols for rows, cols in images + tubelets]
    for i, part in enumerate(together.split(sizes)):
        grid = torch.cat((grids, steps))[i : i + 1]
        if i < len(images):
            alone = model(patches.split(sizes[: len(images)])[i], grid)
        else:
            alone = model.encode(model.embed_tubelets(frames.split(sizes[len(images) :])[i - len(images)], grid), grid)
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_are_the_top_left_of_a_resized_square() -> None:
    model = tower()
    square = model.patch_generator.pos_embed.view(1, 12, 12, 24).permute(0, 3, 1, 2)
    want = F.interpolate(square, (7, 7), mode="bilinear", align_corners=False)[0, :, :5, :7].permute(1, 2, 0)
    torch.testing.assert_close(model.positions(torch.tensor([[5, 7]])), want.flatten(0, 1))
    assert torch.equal(model.positions(torch.tensor([[12, 12]])), model.patch_generator.pos_embed[0])
    assert model.positions(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 24)


@torch.no_grad()
def test_a_tower_without_tubelets_embeds_frames_as_images() -> None:
    model = RadioVit(VisionConfig(width=24, depth=1, heads=3, mlp_width=48, positions=12, tubelet_frames=1)).eval()
    patches, grids = pixels([(2, 3)])
    assert torch.equal(model.embed_tubelets(patches, grids), model.embed_images(patches, grids))
    assert model.patch_generator.video_embedder is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near_full(dtype: torch.dtype) -> None:
    patches, grids = pixels([(4, 4), (6, 2)])
    want = tower()(patches, grids)
    got = tower().to(dtype)(patches.to(dtype), grids)
    assert got.dtype == dtype
    assert relative_error(got, want) < 0.02


@torch.no_grad()
def test_a_long_item_in_half_precision_attends_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float32 as the usual way, in several blocks, and other items of the call are not touched."""
    monkeypatch.setattr(vision, "SCORES", 600 * 250)
    layer = timm.layers.attention.Attention(64, num_heads=4, qkv_bias=True).bfloat16()
    x = torch.randn(1250, 64).bfloat16()
    made = vision.packed_attention(layer, x, [600, 600, 50])
    monkeypatch.setattr(vision, "LONG", 10**9)
    usual = vision.packed_attention(layer, x, [600, 600, 50])
    wanted = vision.packed_attention(layer.float(), x.float(), [600, 600, 50])
    assert not torch.equal(made, usual)
    assert torch.equal(made[1200:], usual[1200:])
    assert relative_error(made.float(), wanted) < 1.5 * relative_error(usual.float(), wanted) < 1.5e-2


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_384", "vit_base_patch16_clip_224"])
@torch.no_grad()
def test_a_timm_tower_gives_timms_features(name: str) -> None:
    torch.manual_seed(0)
    model = TimmTower(name).eval()
    side = model.patch_size
    for rows, cols in (model.model.patch_embed.grid_size, (6, 9)):
        image = torch.randn(1, 3, rows * side, cols * side)
        dynamic = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
        dynamic.load_state_dict(model.model.state_dict())
        want = dynamic.forward_features(image)[0, dynamic.num_prefix_tokens :]  # pyright: ignore[reportCallIssue]  (untyped there)
        cut = (
            image[0]
            .unflatten(1, (rows, side))
            .unflatten(3, (cols, side))
            .permute(1, 3, 0, 2, 4)
            .flatten(2)
            .flatten(0, 1)
        )
        got = model(cut, torch.tensor([[rows, cols]]))
        assert relative_error(got, want) <= 1e-5


@torch.no_grad()
def test_a_timm_tower_packs_like_any_other() -> None:
    torch.manual_seed(0)
    model = TimmTower(TINY).eval()
    patches, grids = pixels([(3, 4), (3, 4), (5, 2)])
    alone = [model(part, grids[i : i + 1]) for i, part in enumerate(patches.split([12, 12, 10]))]
    torch.testing.assert_close(model(patches, grids), torch.cat(alone), rtol=1e-4, atol=1e-5)


def timm_omni() -> OmniConfig:
    """V2 VL's parts with a tower by timm's name in C-RADIO's place."""
    config = small.FAMILIES["V2 VL"]
    return replace(config, vision=TimmConfig(name=TINY), vision_projector=ProjectorConfig(width=4 * 192, hidden=40))


def test_a_timm_tower_by_name_sees_and_learns_in_the_whole_model(tmp_path: Path) -> None:
    model = small.model(timm_omni())
    batch = Batch.pack([small.mixed(1, 1, False), small.sentence(9), small.mixed(2, 1, False)])
    with torch.no_grad():
        together, alone = list(model(batch)), [model(request).logits for request in batch]
        for got, want in zip(together, alone, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    grads = []
    assert isinstance(model.vision, TimmTower)
    for model.vision.checkpoint in (False, True):
        model.zero_grad()
        model(batch).logits.square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.vision.named_parameters() if p.grad is not None})
    assert grads[0].keys() == {name for name, _ in model.vision.named_parameters()}
    for name, grad in grads[0].items():
        assert bool(grad.any()), name
        torch.testing.assert_close(grad, grads[1][name])
    model.save_pretrained(tmp_path)
    again = OmniModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


@torch.no_grad()
def test_timm_reads_the_tower_that_we_wrote(tmp_path: Path) -> None:
    model = small.model(timm_omni())
    model.save_pretrained(tmp_path)
    stem = "vision_model.timm_model."
    tensors = load_file(tmp_path / "model.safetensors")
    theirs = timm.create_model(TINY, num_classes=0)
    theirs.load_state_dict({key.removeprefix(stem): value for key, value in tensors.items() if key.startswith(stem)})


def test_every_weight_learns_and_recomputing_gives_the_same_gradients() -> None:
    model = tower().train()
    patches, grids = pixels([(4, 4), (2, 6)])
    frames, steps = pixels([(2, 2)], 1536)
    grads = []
    for model.checkpoint in (False, True):
        model.zero_grad()
        x = torch.cat((model.embed_images(patches, grids), model.embed_tubelets(frames, steps)))
        model.encode(x, torch.cat((grids, steps))).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == {name for name, _ in model.named_parameters()}
    for name, grad in grads[0].items():
        assert bool(grad.any()), name
        torch.testing.assert_close(grad, grads[1][name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(width=10, heads=3), "heads divide the width"),
        (lambda: tower()(torch.zeros(4, 700), torch.tensor([[2, 2]])), "patches of 700 values"),
        (lambda: tower()(torch.zeros(5, 768), torch.tensor([[2, 2]])), "5 patches came"),
        (lambda: tower()(torch.zeros(0, 768), torch.tensor([[0, 2]])), "all positive"),
        (lambda: TimmTower("no_such_model"), "no_such_model"),
        (lambda: TimmTower("swin_tiny_patch4_window7_224"), "plain ViTs"),
        (lambda: TimmTower(TINY)(torch.zeros(4, 1536), torch.tensor([[2, 2]])), "wants 768"),
        (lambda: TimmTower(TINY)(torch.zeros(5, 768), torch.tensor([[2, 2]])), "5 patches came"),
        (lambda: TimmConfig(name="vit_nothing"), "vit_nothing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_the_released_tower_has_the_released_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in RadioVit(VisionConfig()).state_dict().items()}
    assert shapes["patch_generator.embedder.weight"] == (1280, 768)
    assert shapes["patch_generator.video_embedder.weight"] == (1280, 1536)
    assert shapes["patch_generator.pos_embed"] == (1, 16384, 1280)
    assert shapes["patch_generator.cls_token.token"] == (10, 1280)
    assert shapes["blocks.31.attn.qkv.bias"] == (3840,)
