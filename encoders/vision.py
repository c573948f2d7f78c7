"""Vision tower: C-RADIO, a ViT with cropped positions and prefix tokens, on timm's blocks; images of all sizes packed.

Images and tubelets lie one behind the other, patches row-major, and pass the tower together: only attention knows
where one ends. Sources: C-RADIOv4 (arXiv 2601.17237) and AM-RADIO (arXiv 2312.06709) with its cropped position
embedding (CPE); Nemotron 3 Nano Omni (arXiv 2604.24954) for the separate tubelet embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LONG = 512  # tokens of an item from which its heads go one by one, where that is faster
SCORES = 2**21  # of one head that are held at a time then


@runtime_checkable
class VisionTower(Protocol):
    """What a tower offers: patches and grids in, one feature a patch out."""

    width: int
    patch_size: int

    def embed_images(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches width"]:
        """Image patches with positions, packed; grids are (rows, cols) of each image."""
        ...

    def embed_tubelets(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "tubelets 2"]
    ) -> Float[Tensor, "patches width"]:
        """The same for the patches of tubelets."""
        ...

    def encode(
        self, x: Float[Tensor, "patches width"], grids: Int[Tensor, "items 2"]
    ) -> Float[Tensor, "patches width"]:
        """Embedded items through the tower, each attending to itself alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """C-RADIO's shape; the defaults are ViT-H/16 as released.

    positions: side of the learned square of positions, in patches. prefix_tokens: class and register tokens in front
    of each item. tubelet_frames: frames that share one patch embedding in a clip (1: clips are embedded as images).
    """

    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp_width: int = 5120
    patch_size: int = 16
    prefix_tokens: int = 10
    positions: int = 128
    tubelet_frames: int = 2
    eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = (
            self.width,
            self.depth,
            self.heads,
            self.mlp_width,
            self.patch_size,
            self.positions,
            self.tubelet_frames,
        )
        if min(sizes) < 1 or self.prefix_tokens < 0 or self.width % self.heads:
            raise ValueError(f"VisionConfig: {self} does not fit; sizes must be positive and heads divide the width")

    @property
    def pixels(self) -> int:
        """Values of one image patch."""
        return 3 * self.patch_size**2


class Prefix(nn.Module):
    """Class and register tokens, under the released name."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(count, width).normal_(std=0.02))


class PatchGenerator(nn.Module):
    """Patch embeddings of images and of tubelets, positions and prefix tokens, under the released names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embedder = nn.Linear(config.pixels, config.width, bias=False)
        frames = config.tubelet_frames
        self.video_embedder = nn.Linear(frames * config.pixels, config.width, bias=False) if frames > 1 else None
        self.pos_embed = nn.Parameter(torch.empty(1, config.positions**2, config.width).normal_(std=0.02))
        self.cls_token = Prefix(config.prefix_tokens, config.width)


class RadioVit(nn.Module):
    """C-RADIO. Set `checkpoint` to save memory in training: blocks are computed again going back."""

    checkpoint = False

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.patch_size = config.width, config.patch_size
        self.patch_generator = PatchGenerator(config)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_width / config.width,
                qkv_bias=True,
                norm_layer=partial(nn.LayerNorm, eps=config.eps),  # pyright: ignore[reportArgumentType]  (timm calls it)
            )
            for _ in range(config.depth)
        )

    def embed_images(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches width"]:
        """Linear embedding of image patches, positions added. Raises ValueError when patches and grids do not fit."""
        return self._embed(self.patch_generator.embedder, 1, patches, grids, "embed_images")

    def embed_tubelets(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "tubelets 2"]
    ) -> Float[Tensor, "patches width"]:
        """The same for tubelets (the patches of consecutive frames joined), through their own embedding if there is
        one.
        """
        generator, frames = self.patch_generator, self.config.tubelet_frames
        return self._embed(generator.video_embedder or generator.embedder, frames, patches, grids, "embed_tubelets")

    def _embed(self, embedder: nn.Module, frames: int, patches: Tensor, grids: Tensor, where: str) -> Tensor:
        wanted = frames * self.config.pixels
        if patches.shape[1] != wanted:
            raise ValueError(
                f"{where}: patches of {patches.shape[1]} values came, this tower wants {wanted} "
                f"(3 channels of {self.patch_size} px squares, times the frames of a tubelet)"
            )
        check_grids(grids, len(patches), where)
        embedded = embedder(patches)
        return embedded + self.positions(grids).to(embedded.dtype)

    def positions(self, grids: Int[Tensor, "items 2"]) -> Float[Tensor, "patches width"]:
        """Cropped positions, float32: the learned square resized to (m, m), m = max(rows, cols), cut top left."""
        side = self.config.positions
        square = self.patch_generator.pos_embed.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        resized: dict[int, Tensor] = {}
        parts: list[Tensor] = []
        for rows, cols in grids.tolist():
            m = max(rows, cols)
            if m not in resized:
                resized[m] = F.interpolate(square, (m, m), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
            parts.append(resized[m][:rows, :cols].flatten(0, 1))
        return torch.cat(parts) if parts else square.new_zeros(0, self.width)

    def encode(
        self, x: Float[Tensor, "patches width"], grids: Int[Tensor, "items 2"]
    ) -> Float[Tensor, "patches width"]:
        """Embedded items (images and tubelets alike) through all blocks; each attends to itself alone."""
        sizes = grids.prod(-1).tolist()
        prefix = self.patch_generator.cls_token.token.to(x.dtype)
        x = with_prefix(x, sizes, prefix)
        x = run_blocks(list(self.blocks), x, [size + len(prefix) for size in sizes], self.checkpoint)
        return without_prefix(x, sizes, len(prefix))

    def forward(
        self, patches: Float[Tensor, "patches pixels"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches width"]:
        """Images only: embed and encode."""
        return self.encode(self.embed_images(patches, grids), grids)


def check_grids(grids: Int[Tensor, "items 2"], patches: int, where: str) -> None:
    """Raise ValueError unless the grids are positive and add up to the patches."""
    sizes = grids.tolist()
    if any(min(size) < 1 for size in sizes) or sum(rows * cols for rows, cols in sizes) != patches:
        raise ValueError(
            f"{where}: {patches} patches came for grids {sizes}; want rows * cols patches of each item, all positive"
        )


def with_prefix(
    x: Float[Tensor, "patches width"], sizes: list[int], prefix: Float[Tensor, "prefix width"]
) -> Float[Tensor, "tokens width"]:
    """Put the prefix tokens in front of each item."""
    if not len(prefix):
        return x
    return torch.cat([part for item in x.split(sizes) for part in (prefix, item)]) if sizes else x


def without_prefix(x: Float[Tensor, "tokens width"], sizes: list[int], count: int) -> Float[Tensor, "patches width"]:
    """Drop the prefix tokens again."""
    if not count or not sizes:
        return x
    return torch.cat([item[count:] for item in x.split([size + count for size in sizes])])


def run_blocks(
    blocks: list[nn.Module], x: Float[Tensor, "tokens width"], lengths: list[int], recompute: bool = False
) -> Float[Tensor, "tokens width"]:
    """timm's blocks over packed items of the given lengths."""
    for block in blocks:
        assert isinstance(block, Block)
        if recompute and torch.is_grad_enabled():
            x = checkpoint(_run_block, block, x, lengths, use_reentrant=False)  # pyright: ignore[reportAssignmentType]  (untyped in torch)
        else:
            x = _run_block(block, x, lengths)
    return x


def _run_block(block: Block, x: Tensor, lengths: list[int]) -> Tensor:
    assert isinstance(block.attn, Attention)
    x = x + block.drop_path1(block.ls1(packed_attention(block.attn, block.norm1(x), lengths)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def packed_attention(
    attention: Attention, x: Float[Tensor, "tokens width"], lengths: list[int]
) -> Float[Tensor, "tokens width"]:
    """timm's attention within each item: no mask and no padding; neighbours of one length share a call."""
    heads = attention.num_heads
    q, k, v = attention.qkv(x).unflatten(-1, (3, heads, -1)).unbind(1)  # (tokens, heads, head_dim)
    q, k = attention.q_norm(q), attention.k_norm(k)
    mixed: list[Tensor] = []
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        rows = slice(start, start + count * length)
        start = rows.stop
        if length >= LONG and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.is_grad_enabled():
            items = zip(*(part[rows].split(length) for part in (q, k, v)), strict=True)
            mixed += [_head_by_head(*item, attention.scale) for item in items]
            continue
        items = [part[rows].unflatten(0, (count, length)).transpose(1, 2) for part in (q, k, v)]
        out = F.scaled_dot_product_attention(items[0], items[1], items[2], scale=attention.scale)
        mixed.append(out.transpose(1, 2).flatten(0, 1))
    out = torch.cat(mixed) if mixed else q
    return attention.proj_drop(attention.proj(attention.norm(out.flatten(-2))))


def _head_by_head(
    q: Float[Tensor, "tokens heads dim"],
    k: Float[Tensor, "tokens heads dim"],
    v: Float[Tensor, "tokens heads dim"],
    scale: float,
) -> Float[Tensor, "tokens heads dim"]:
    """Attention of one item as two products a head with a softmax between: in bfloat16 on a CPU twice to three times
    as fast as torch's. Some queries at a time, so that their scores stay in the cache.
    """
    out, q = torch.empty_like(q), q * scale
    block = max(16, SCORES // len(q))
    for head in range(q.shape[1]):
        keys, values = k[:, head].t(), v[:, head]
        for start in range(0, len(q), block):
            rows = slice(start, start + block)
            out[rows, head] = (q[rows, head] @ keys).softmax(-1) @ values
    return out
