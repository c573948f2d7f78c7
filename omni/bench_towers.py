"""Benchmark of the towers: C-RADIO and FastConformer of random weights against transformers' on the same, in turns.

Outputs are compared first, in float32, on a small picture and a short sound.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.audio import AudioConfig, FastConformer, num_tokens
from encoders.vision import RadioVit, VisionConfig
from omni.bench_random import OMNI, draw
from omni.bench_result import Result, comparisons, free_memory, in_turns, line, spread, timed
from omni.config import OmniConfig
from omni.heap import keep_freed
from omni.hf_towers import write_audio, write_vision
from omni.keys import sources
from omni.packed import pack
from omni.projector import ProjectorConfig

CLOSE = 1e-4  # of the features' norm, in float32
RATE = 100  # mel frames a second
LONG = 600  # seconds from which on a sound runs `long_repeats` times
SPARE = 2**30  # bytes left free beside what transformers is thought to need


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Our tower and theirs. run, run_theirs: one packed item → its features. held: bytes that theirs is thought to
    need for an item of so many rows.
    """

    ours: nn.Module
    theirs: nn.Module
    run: Callable[[Tensor], Tensor]
    run_theirs: Callable[[Tensor], Tensor]
    held: Callable[[int], int]


def randomise(module: nn.Module) -> None:
    """Draw every weight so that activations stay of order one."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            value.requires_grad_(False)
            fan = value.shape[-1] if name == "pos_embed" else value[0].numel()
            draw(name, value, std=fan**-0.5 if value.ndim > 1 else 0.1)
        for name, value in part.named_buffers(recurse=False):
            draw(name, value, buffer=True)


def shape_of(patches: int) -> tuple[int, int]:
    """The grid of so many patches that is nearest to a square."""
    rows = next(rows for rows in range(math.isqrt(patches), 0, -1) if patches % rows == 0)
    return rows, patches // rows


def vision_pair(config: VisionConfig, dtype: torch.dtype) -> Pair:
    """RadioVit and transformers' RadioModel, theirs with ours' weights.

    Raises ValueError where they disagree.
    """
    from transformers import RadioConfig, RadioModel

    torch.manual_seed(0)
    ours = RadioVit(config).eval()
    randomise(ours)
    values: dict[str, Any] = write_vision(config) | {"video_temporal_patch_size": config.tubelet_frames}
    theirs: Any = RadioModel(RadioConfig(**{name: value for name, value in values.items() if name != "model_type"}))
    theirs.make_preprocessor_external()
    missing = theirs.eval().load_state_dict(_as_theirs(ours, theirs), strict=False, assign=True).missing_keys
    if left := [name for name in missing if not name.endswith(("lambda1", "summary_idxs"))]:
        raise ValueError(f"bench: transformers' RADIO wants {', '.join(left[:3])}, for which we have no weights")

    def run(patches: Tensor) -> Tensor:
        return ours(patches, torch.tensor([shape_of(len(patches))]))

    def run_theirs(patches: Tensor) -> Tensor:
        return theirs(patches, image_grid_hw=torch.tensor([shape_of(len(patches))])).features.view(len(patches), -1)

    size = torch.empty((), dtype=dtype).element_size()
    pair = Pair(ours=ours, theirs=theirs, run=run, run_theirs=run_theirs,
                held=lambda rows: 4 * rows * config.mlp_width * size)  # fmt: skip
    return _ready(pair, torch.randn(24, config.pixels), dtype)


def _as_theirs(ours: RadioVit, theirs: nn.Module) -> dict[str, Tensor]:
    """Our weights under the names that transformers has; views where ours joins several of theirs."""
    known, found = theirs.state_dict(), dict[str, Tensor]()
    for name, value in ours.state_dict().items():
        options = [source.keys for source in sources(f"vision.{name}", OMNI)]
        options = [[key.removeprefix("vision_model.") for key in keys] for keys in options]
        keys = next((keys for keys in options if all(key in known for key in keys)), [])
        if not keys:
            raise ValueError(f"bench: transformers' RADIO has no place for {name}")
        found |= dict(zip(keys, value.chunk(len(keys)), strict=True))
    return found


def audio_pair(config: AudioConfig, dtype: torch.dtype) -> Pair:
    """FastConformer and transformers' ParakeetEncoder, theirs with ours' weights.

    Raises ValueError where they disagree.
    """
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    torch.manual_seed(0)
    ours = FastConformer(config).eval()
    randomise(ours)
    values = write_audio(config, ProjectorConfig(width=config.width, hidden=1))
    values = {name: value for name, value in values.items() if name != "model_type" and "projection" not in name}
    theirs: Any = ParakeetEncoder(ParakeetEncoderConfig(**values)).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    size = torch.empty((), dtype=dtype).element_size()

    def run(mels: Tensor) -> Tensor:
        return ours(mels, torch.tensor([len(mels)]))[0]

    def held(frames: int) -> int:
        """Scores by position, padded, shifted and scaled, of all heads at once; or the first convolution's planes."""
        scores = config.heads * 5 * num_tokens(frames) ** 2
        planes = 2 * config.subsampling_channels * (frames // 2) * (config.mels // 2)
        return max(scores, planes) * size

    def run_theirs(mels: Tensor) -> Tensor:
        return theirs(mels[None]).last_hidden_state[0]

    pair = Pair(ours=ours, theirs=theirs, run=run, run_theirs=run_theirs, held=held)
    return _ready(pair, torch.randn(2 * RATE, config.mels), dtype)


@torch.inference_mode()
def _ready(pair: Pair, item: Tensor, dtype: torch.dtype) -> Pair:
    """Compare, then take on the dtype, and pack ours as a loaded model's tower is."""
    for module in (pair.ours, pair.theirs):
        module.requires_grad_(False)
    wanted = pair.run_theirs(item)
    error = float((pair.run(item) - wanted).norm() / wanted.norm())
    if not error <= CLOSE:
        kind = type(pair.ours).__name__
        raise ValueError(f"bench: {kind} differs by {error:.1e} from transformers; want at most {CLOSE}")
    pair.theirs.to(dtype)
    pack(pair.ours.to(dtype))
    keep_freed()
    return pair


@torch.inference_mode()
def compare(name: str, pair: Pair, item: Tensor, repeats: int, free: int | None = None) -> Result:
    """Both in turns, warmed up by comparing them; ours alone, and why, where theirs would not fit in free memory."""
    free, needed = free_memory() if free is None else free, pair.held(len(item)) + SPARE
    made, note = pair.run(item).float(), f"median of {repeats}"
    if needed > free:
        times = timed(lambda: pair.run(item), repeats, warm=False)
        note += f"; transformers left out: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return Result(name=name, ours=statistics.median(times), theirs=None, spread=spread(times), note=note)
    wanted = pair.run_theirs(item).float()
    note += f"; differs by {float((made - wanted).norm() / wanted.norm()):.0e} in {str(item.dtype).partition('.')[2]}"
    a, b, varied = in_turns(lambda: pair.run(item), lambda: pair.run_theirs(item), repeats, warm=False)
    return Result(name=name, ours=a, theirs=b, spread=varied, note=note)


def measure(
    config: OmniConfig = OMNI,
    dtype: torch.dtype = torch.bfloat16,
    patches: Sequence[int] = (1024, 4096),
    seconds: Sequence[int] = (60, 1800),
    repeats: int = 5,
    long_repeats: int = 2,
    free: int | None = None,
) -> list[Result]:
    """A picture of each number of patches and a sound of each length, in a config's towers.

    free: bytes that transformers may take (None: as many as there are). Raises ValueError where features differ, and
    for a config without both towers.
    """
    if not isinstance(config.vision, VisionConfig) or config.audio is None:
        raise ValueError("bench: a config without both towers came; want C-RADIO and FastConformer")
    results: list[Result] = []
    if patches:
        pair = vision_pair(config.vision, dtype)
        for count in patches:
            item = torch.randn(count, config.vision.pixels, dtype=dtype)
            results.append(compare(f"picture of {count} patches", pair, item, repeats, free))
        del pair
    if seconds:
        pair = audio_pair(config.audio, dtype)
        for length in seconds:
            item = torch.randn(length * RATE, config.audio.mels, dtype=dtype)
            runs = long_repeats if length >= LONG else repeats
            results.append(compare(f"{length} s of sound", pair, item, runs, free))
    return results


def report(results: list[Result]) -> str:
    """One JSON line."""
    return line(results=comparisons(results))
