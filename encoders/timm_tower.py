"""Any timm VisionTransformer by name as a vision tower: packed items of any grid, timm's weights and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from encoders.vision import check_grids, run_blocks, with_prefix, without_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmConfig:
    """A tower by timm's name for it, which says the rest.

    Raises ValueError for a model that is not a plain VisionTransformer (windows, rotary positions, other blocks).
    """

    name: str

    def __post_init__(self) -> None:
        _shape(self.name)

    @property
    def width(self) -> int:
        """Of a feature."""
        return _shape(self.name)[0]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return _shape(self.name)[1]

    @property
    def tubelet_frames(self) -> int:
        """Frames that share a patch embedding: one, since no timm model has an embedding for tubelets."""
        return 1


@lru_cache
def _shape(name: str) -> tuple[int, int]:
    with torch.device("meta"):
        tower = TimmTower(name)
    return tower.width, tower.patch_size


class TimmTower(nn.Module):
    """A tower for images and single frames. `name` is timm's; `pretrained` downloads timm's weights.

    Raises ValueError for a model that is not a plain VisionTransformer (windows, rotary positions, other blocks).
    """

    checkpoint = False

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except RuntimeError as error:
            raise ValueError(f"TimmTower: {error}; see timm.list_models('vit_*')") from None
        plain = type(model) is VisionTransformer and all(
            type(block) is Block and type(block.attn) is Attention for block in model.blocks
        )
        if not plain or not isinstance(model, VisionTransformer):
            raise ValueError(f"TimmTower: {name} is a {type(model).__name__}; want one of timm's plain ViTs, 'vit_*'")
        self.model = model
        self.width: int = model.embed_dim
        self.patch_size: int = model.patch_embed.patch_size[0]

    def embed_images(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches width"]:
        """timm's patch embedding and its positions, resampled to each grid as timm does.

        Raises ValueError when patches and grids do not fit.
        """
        model = self.model
        conv = model.patch_embed.proj
        if patches.shape[1] != (wanted := conv.weight[0].numel()):
            raise ValueError(
                f"TimmTower: patches of {patches.shape[1]} values came, this tower wants {wanted} "
                f"(3 channels of {self.patch_size} px squares, one frame at a time)"
            )
        check_grids(grids, len(patches), "embed_images")
        x = nn.functional.linear(patches, conv.weight.flatten(1), conv.bias)
        return x + self._positions(grids) if model.pos_embed is not None else x

    def embed_tubelets(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "frames 2"]
    ) -> Float[Tensor, "patches width"]:
        """Frames of clips, embedded as images. Raises ValueError for patches that hold more than one frame's pixels."""
        return self.embed_images(patches, grids)

    def encode(
        self, x: Float[Tensor, "patches width"], grids: Int[Tensor, "items 2"]
    ) -> Float[Tensor, "patches width"]:
        """All blocks and the model's own norms; each item attends to itself alone."""
        model = self.model
        tokens = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
        prefix = torch.cat(tokens) if tokens else x.new_zeros(0, self.width)
        if tokens and model.pos_embed is not None and not model.no_embed_class:
            prefix = prefix + model.pos_embed[0, : len(prefix)]
        sizes = grids.prod(-1).tolist()
        x = model.norm_pre(with_prefix(x, sizes, prefix.to(x.dtype)))
        x = run_blocks(list(model.blocks), x, [size + len(prefix) for size in sizes], self.checkpoint)
        return without_prefix(model.norm(x), sizes, len(prefix))

    def forward(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches width"]:
        """Embed and encode; raises ValueError when patches and grids do not fit."""
        return self.encode(self.embed_images(patches, grids), grids)

    def _positions(self, grids: Tensor) -> Tensor:
        model = self.model
        assert model.pos_embed is not None
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        parts: list[Tensor] = []
        for rows, cols in grids.tolist():
            resized = resample_abs_pos_embed(
                model.pos_embed, [rows, cols], list(model.patch_embed.grid_size), num_prefix_tokens=prefix
            )
            parts.append(resized[0, prefix:])
        return torch.cat(parts)
