"""Benchmark of the way to the first token: a clip between two texts, its frames alone or in tubelets, whole or thinned
out by EVS; seconds by stage, and ratios to frames alone and whole.

Each way encodes the same frames with the same weights; a single frame is embedded by the picture's embedding. Checked
first: packed weights against the reference, and how many tokens are left of the clip. Source of the comparison:
Nemotron 3 Nano Omni (arXiv 2604.24954).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch

from encoders.vision import RadioVit, VisionConfig
from omni.bench_model import HYBRID, check_twins
from omni.bench_random import OMNI, one_of_each, random_packed, shrunk
from omni.bench_result import line
from omni.config import OmniConfig
from omni.heap import keep_freed
from omni.model import OmniModel
from omni.packed import Format
from omni.prefill import Prefix
from omni.projector import ProjectorConfig
from processors import video
from processors.batch import Batch, Media, Slot
from token_reduction import num_kept

SIZES: dict[str, OmniConfig] = {
    "small": shrunk(OMNI, 6, 1 / 32),
    "mid": replace(
        HYBRID,
        vision=VisionConfig(width=384, depth=12, heads=6, mlp_width=1536),
        vision_projector=ProjectorConfig(width=1536, hidden=4096),
    ),
    "real": replace(OMNI, audio=None, audio_projector=None),
}
WAYS: dict[str, tuple[bool, bool]] = {  # tubelets, EVS
    "none": (False, False),
    "EVS": (False, True),
    "tubelets": (True, False),
    "both": (True, True),
}
STAGES = ("pixels", "encode", "prefill", "score")
QUESTION = 64  # ids of the texts around the clip
LINE, STAMP = 3, 12  # ids of the text before a tubelet: of any, and of each of its frames with its time
SIDE = 512  # pixels of a frame's sides


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """One way. tokens: that the backbone reads; seconds: by stage, medians; total: of all, the median; ratio: of the
    total to that of frames alone and whole; spread: of the total, (max - min) / median.
    """

    way: str
    tokens: int
    seconds: dict[str, float]
    total: float
    ratio: float
    spread: float


def frame_by_frame(tower: RadioVit) -> RadioVit:
    """The same weights in a tower that takes each frame alone, as a picture."""
    with torch.device("meta"):
        made = RadioVit(replace(tower.config, tubelet_frames=1))
    made.blocks = tower.blocks
    ours, theirs = made.patch_generator, tower.patch_generator
    ours.embedder, ours.pos_embed, ours.cls_token = theirs.embedder, theirs.pos_embed, theirs.cls_token
    return made.eval()


def ask(tubelets: torch.Tensor, clip: tuple[int, int, int], rate: float, frames: int, vocabulary: int) -> Batch:
    """A question around a clip of (steps, rows, cols), each step behind a line of text about its frames."""
    ids: list[int] = [1] * (QUESTION // 2)
    slots: list[Slot] = []
    for step in range(clip[0]):
        ids += [2] * (LINE + STAMP * frames)
        slots.append(Slot(position=len(ids), kind="tubelet", first=step))
        ids.append(3)
    ids += [4] * (QUESTION - QUESTION // 2)
    media = Media(tubelets=tubelets, clips=torch.tensor([clip]), rates=torch.tensor([rate], dtype=torch.float64))
    tokens = torch.tensor(ids) % vocabulary
    return Batch(tokens=tokens, lengths=torch.tensor([len(ids)]), slots=tuple(slots), media=media)


@torch.inference_mode()
def once(model: OmniModel, clip: torch.Tensor, rule: video.VideoRule, rate: float) -> tuple[dict[str, float], int]:
    """Seconds by stage from frames to the first token, and the tokens read.

    Raises ValueError where another number of the clip's tokens is left than its shape says.
    """
    marks = [time.perf_counter()]
    grid = video.clip_grid(clip.shape[2], clip.shape[1], rule)
    tubelets = video.tubelets(clip, grid, rule)
    steps = -(-len(clip) // rule.tubelet_frames)
    batch = ask(tubelets, (steps, *grid), rate, rule.tubelet_frames, model.config.backbone.vocabulary)
    marks.append(time.perf_counter())
    features = model.encode(batch.media)
    spliced = model.embed(batch, features)
    marks.append(time.perf_counter())
    prefix = Prefix.new(model)
    prefix.append(batch, spliced)
    hidden = prefix.finish(model)
    marks.append(time.perf_counter())
    model.score(hidden).argmax(-1).item()
    marks.append(time.perf_counter())
    places = grid[0] * grid[1] // model.config.shuffle**2
    if len(features.tubelet) != num_kept(steps, places, rate):
        raise ValueError(
            f"bench: {len(features.tubelet)} tokens are left of a clip, want {num_kept(steps, places, rate)}"
        )
    seconds = [after - before for before, after in pairwise(marks)]
    return dict(zip(STAGES, seconds, strict=True)), len(spliced.tokens)


def measure(
    config: OmniConfig = SIZES["mid"],
    form: Format | None = None,
    frames: int = 64,
    rate: float = 0.5,
    patches: int = 1024,
    repeats: int = 3,
) -> list[First]:
    """The four ways, in turns after a warm-up of each. rate: the share of a clip's tokens that EVS removes; patches: of
    a frame; form: of all weights, None: see `plain_name`.

    Raises ValueError for a model without tubelets, a rate outside 0 .. 1, and where a check fails.
    """
    if not 0 < rate < 1 or frames < 2:
        raise ValueError(f"bench: a rate of {rate} on {frames} frames came; want 0 < rate < 1 and at least 2 frames")
    if not isinstance(config.vision, VisionConfig) or config.vision.tubelet_frames < 2:
        raise ValueError("bench: a model without tubelets came; want one whose tower embeds several frames together")
    check_twins(one_of_each(config))
    model = random_packed(config, form, form)
    keep_freed()
    assert isinstance(model.vision, RadioVit)
    towers = {True: model.vision, False: frame_by_frame(model.vision)}
    pixels = video.VideoRule(target=patches)
    clip = torch.randint(0, 256, (frames, SIDE, SIDE, 3), dtype=torch.uint8)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    read: dict[str, int] = {}
    for run in range(repeats + 1):
        for way, (joined, thinned) in WAYS.items():
            model.vision = towers[joined]
            rule = replace(pixels, tubelet_frames=model.vision.config.tubelet_frames)
            seconds, read[way] = once(model, clip, rule, rate if thinned else 0.0)
            if run:
                found[way].append(seconds)
    totals = {way: [sum(each.values()) for each in runs] for way, runs in found.items()}
    whole = statistics.median(totals["none"])
    return [
        First(
            way=way,
            tokens=read[way],
            seconds={stage: statistics.median(each[stage] for each in runs) for stage in STAGES},
            total=statistics.median(totals[way]),
            ratio=statistics.median(totals[way]) / whole,
            spread=(max(totals[way]) - min(totals[way])) / statistics.median(totals[way]),
        )
        for way, runs in found.items()
    ]


def in_order(found: Mapping[str, float]) -> bool:
    """Whether both together take less than tubelets, these less than EVS, and that less than none."""
    return found["both"] < found["tubelets"] < found["EVS"] < found["none"]


def report(found: list[First]) -> str:
    """One JSON line."""
    return line(first=[asdict(each) for each in found], in_order=in_order({each.way: each.total for each in found}))
