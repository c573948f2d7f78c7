"""Models of random weights for benchmarks: the released Omni's shapes, smaller ones like them, and how they are filled.

A packed model is filled tensor by tensor in its format, so that the whole never stands in memory as bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from encoders.audio import AudioConfig
from encoders.vision import VisionConfig
from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.config import MediaConfig, OmniConfig
from omni.identity import Origin, samples
from omni.mamba import MambaConfig
from omni.model import OmniModel
from omni.moe import Experts, MoEConfig
from omni.packed import (
    FILLED,
    FORMATS,
    GROUPS,
    STACKS,
    TOWERS,
    Eight,
    Format,
    Four,
    PackedExperts,
    PackedLinear,
    Plain,
    Stack,
    Weight,
)
from omni.packed import widen as keep_wide
from omni.precision import multiplied_in
from omni.projector import ProjectorConfig

BLOCKS: dict[str, BlockConfig] = {
    "M": MambaConfig(heads=64, head_dim=64),
    "*": AttentionConfig(heads=32, kv_heads=2, head_dim=128),
    "E": MoEConfig(experts=128, top_k=6, hidden=1856, shared=3712, scale=2.5),
}
NANO_3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
OMNI = OmniConfig(
    backbone=BackboneConfig(width=2688, vocabulary=131072, blocks=tuple(BLOCKS[letter] for letter in NANO_3)),
    vision=VisionConfig(),
    vision_projector=ProjectorConfig(width=5120, hidden=20480),
    audio=AudioConfig(),
    audio_projector=ProjectorConfig(width=1024, hidden=4096),
    media=MediaConfig(audio_token=27, pruning=0.7),
)
STD = 0.02
POOL = 2**23  # random words, drawn once, of which random bytes are cut


def formats(text: str) -> list[Format | None]:
    """Some of bf16 (None), int8 and int4, with commas between. Raises ValueError for others."""
    known: dict[str, Format | None] = {"bf16": None, **{form: form for form in FORMATS}}
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"bench: format {wrong[0]!r} came; want some of {', '.join(known)}")
    return [known[name] for name in names]


def plain_name() -> str:
    """What `random_packed` makes of no format: "bf16", or "f32" where that is slow."""
    return "bf16" if multiplied_in(torch.bfloat16) == torch.bfloat16 else "f32"


def shrunk(config: OmniConfig, layers: int, scale: float = 1.0) -> OmniConfig:
    """The first layers, and all sizes times `scale`, in whole heads and groups of 64; towers as deep in proportion.

    Raises ValueError unless there are that many layers and 0 < scale <= 1.
    """
    blocks = config.backbone.blocks
    if not 1 <= layers <= len(blocks) or not 0 < scale <= 1:
        raise ValueError(f"bench: {layers} layers at scale {scale}; want 1 to {len(blocks)} layers and 0 < scale <= 1")

    def some(count: int, step: int) -> int:
        return max(step, int(count * scale) // step * step)

    def block(c: BlockConfig) -> BlockConfig:
        match c:
            case MambaConfig():
                return replace(c, heads=some(c.heads, c.groups))
            case AttentionConfig():
                return replace(c, heads=some(c.heads, c.kv_heads))
            case MoEConfig():
                shared = some(c.shared, 64) if c.shared else 0
                experts = max(min(2 * c.top_k, c.experts), int(c.experts * scale))
                return replace(c, experts=experts, hidden=some(c.hidden, 64), shared=shared)
            case _:
                return c

    backbone = replace(
        config.backbone,
        width=some(config.backbone.width, 64),
        vocabulary=some(config.backbone.vocabulary, 64),
        blocks=tuple(map(block, blocks[:layers])),
    )
    made = replace(config, backbone=backbone)
    part = layers / len(blocks)
    if isinstance(config.vision, VisionConfig) and config.vision_projector:
        v, heads = config.vision, some(config.vision.heads, 1)
        width = v.width // v.heads * heads
        ratio = v.mlp_width / v.width
        vision = replace(v, width=width, heads=heads, mlp_width=int(width * ratio), depth=max(1, int(v.depth * part)))
        projector = replace(
            config.vision_projector, width=width * config.shuffle**2, hidden=some(config.vision_projector.hidden, 64)
        )
        made = replace(made, vision=vision, vision_projector=projector)
    if config.audio and config.audio_projector:
        a, heads = config.audio, some(config.audio.heads, 1)
        width = a.width // a.heads * heads
        audio = replace(
            a, width=width, heads=heads, ff_width=some(a.ff_width, 64), depth=max(1, int(a.depth * part)),
            subsampling_channels=some(a.subsampling_channels, 8),
        )  # fmt: skip
        projector = replace(config.audio_projector, width=width, hidden=some(config.audio_projector.hidden, 64))
        made = replace(made, audio=audio, audio_projector=projector)
    return made


def one_of_each(config: OmniConfig, experts: int = 8, vocabulary: int = 4096) -> OmniConfig:
    """A text-only model with one layer of each kind at full width, few experts and a small vocabulary: for checks."""
    kinds = dict.fromkeys(config.backbone.blocks)
    blocks = tuple(replace(b, experts=max(b.top_k, experts)) if isinstance(b, MoEConfig) else b for b in kinds)
    vocabulary = min(vocabulary, config.backbone.vocabulary)
    return OmniConfig(backbone=replace(config.backbone, blocks=blocks, vocabulary=vocabulary))


def draw(name: str, value: Tensor, std: float = STD, buffer: bool = False) -> None:
    """Fill a parameter or a buffer of this name: norms and running variances ones, decays and steps in 0 .. 1, other
    buffers zeros, all else of standard deviation `std`.
    """
    if name in ("A_log", "dt_bias"):
        value.uniform_(0, 1)
    elif name in ("D", "running_var") or (name == "weight" and value.ndim == 1):
        value.fill_(1)
    elif buffer:
        value.zero_()
    else:
        value.normal_(std=std)


def random_model(config: OmniConfig, seed: int = 0) -> OmniModel:
    """Weights of standard deviation 0.02 in bfloat16."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = OmniModel(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(False)
            draw(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            draw(name, buffer, buffer=True)
    return model.eval()


def random_packed(
    config: OmniConfig, form: Format | None = None, towers: Format | None = None, seed: int = 0
) -> OmniModel:
    """A packed model, made without the weights it might have been packed from, of standard deviation 0.02.

    form: of backbone and head; towers: of both towers and their projectors; None, and all else: bfloat16, or float32
    on a processor that is slow in it, as `omni.load` has it. The most that is held beside the model is one matrix.
    """
    torch.manual_seed(seed)
    beside = multiplied_in(torch.bfloat16)
    with torch.device("meta"):
        model = OmniModel(config)
    noise = _Noise()
    for path, module in list(model.named_modules()):
        for leaf, child in list(module.named_children()):
            kind = towers if f"{path}.{leaf}".lstrip(".").partition(".")[0] in TOWERS else form
            if isinstance(child, nn.Linear):
                bias = None if child.bias is None else torch.empty(child.bias.shape, dtype=beside).normal_(std=STD)
                weight = noise.weight(child.weight.shape, kind)
                setattr(module, leaf, PackedLinear(weight, bias, _origin(child.weight, weight)))
            elif isinstance(child, Experts):
                setattr(module, leaf, noise.experts(child, kind))
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_meta:
                made = torch.empty(value.shape, dtype=beside)
                draw(name, made)
                module.register_parameter(name, nn.Parameter(made, requires_grad=False))
        for name, value in list(module.named_buffers(recurse=False)):
            if value.is_meta:
                floating = value.dtype.is_floating_point
                made = torch.empty(value.shape, dtype=beside if floating else value.dtype)
                draw(name, made, buffer=True)
                module.register_buffer(name, made)
    keep_wide(model)
    return model.eval()


def _origin(was: Tensor, weight: Weight) -> Origin:
    """Of a weight that was never there: its values count as zeros."""
    form = {Eight: " int8", Four: " int4"}.get(type(weight), "")
    return Origin(tuple(was.shape), torch.zeros(samples(was.shape)), form)


class _Noise:
    """Random matrices in each format, as fast as memory is written."""

    def __init__(self) -> None:
        self.words = torch.empty(POOL, dtype=torch.int64).random_(-(2**63), None)

    def bytes(self, shape: Sequence[int]) -> Tensor:
        """uint8, evenly distributed: the pool again and again, from anywhere on."""
        out = torch.empty(*shape, dtype=torch.uint8)
        flat, pool = out.view(-1), self.words.view(torch.uint8)
        done = 0
        while done < len(flat):
            first = int(torch.randint(len(pool), ()))
            part = pool[first : first + len(flat) - done]
            flat[done : done + len(part)] = part
            done += len(part)
        return out

    def weight(self, shape: Sequence[int], form: Format | None) -> Weight:
        """See `omni.packed.packed`, which takes int8 where int4's groups do not divide the width."""
        rows, width = shape
        group = next((size for size in GROUPS if width % size == 0), None)
        if form == "int4" and group is not None:
            filled = rows + -rows % FILLED
            scale = torch.empty(width // group, filled).uniform_(0.8, 1.2) * STD / 4.61  # codes' own: (256 - 1) / 12
            scales = torch.stack((scale, scale / 2), -1)  # codes 0 .. 15 stand for -8 .. 7, whose middle is -1/2
            return Four(self.bytes((filled, width // 2)), scales.bfloat16(), rows, width)
        if form is not None:
            codes = self.bytes((rows, width)).view(torch.int8).clamp_(min=-127)
            return Eight(codes, (torch.empty(rows).uniform_(0.8, 1.2) * STD / 73.6).bfloat16())
        return Plain(torch.empty(rows, width, dtype=multiplied_in(torch.bfloat16)).normal_(std=STD))

    def experts(self, experts: Experts, form: Format | None) -> PackedExperts:
        """As packed from these."""
        stacks: dict[str, Stack] = {}
        for name in STACKS:
            was = getattr(experts, name)
            if was is not None:
                weights = [self.weight(was.shape[1:], form) for _ in range(len(was))]
                stacks[name] = Stack.joined(weights, _origin(was, weights[0]))
        if experts.up_bias is not None:
            raise ValueError("bench: experts with biases came; random packed models have none")
        return PackedExperts(stacks, {}, experts.clamp)
