"""Benchmark of the released Omni's shapes with random weights in four bits: what it holds in memory, how fast it reads
and writes beside this machine's ceilings, and what a long context costs.

Checked first: the kernels of four bits against their own dequantised weights, and one layer of each kind against the
reference. The best usable rate of products is bfloat16's, or float32's where that is faster: weights in four bits are
unpacked into it for many rows; int8's would round activations too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from encoders.vision import VisionConfig
from omni.anatomy import pattern
from omni.bench_decode import filled_state, touched, touched_beside, writes
from omni.bench_model import Machine, check_twins, machine, ours, typical, work
from omni.bench_random import OMNI, one_of_each, plain_name, random_packed
from omni.bench_result import line, resident, spread
from omni.compiled import compile_steps
from omni.config import OmniConfig
from omni.heap import give_back, keep_freed
from omni.model import OmniModel
from omni.packed import FEW, Format, PackedExperts, PackedLinear, Weight
from omni.precision import multiplied_in
from processors.batch import Media

CLOSE = 2e-3  # of a product's norm, to which it is rounded: inputs and outputs are bfloat16
PATCHES, FRAMES = 1024, 1000  # of the picture and the sound that both towers see and hear


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """What was measured. Bytes; seconds; tokens a second, medians; spread: (max - min) / median, the larger.

    error: of products, against dequantised weights. built: seconds to make the model; held: by the process then; peak:
    by the process in all; peaks: by the end of each stage. encoded: seconds of a picture of 1024 patches and ten
    seconds of sound. touched: by writing a token after the prompt, packed weights and all else together;
    share_of_reads: of the machine's. after: seconds a token behind contexts of so many; growth: the longest's over the
    shortest's. outside_products: of the time of writing, None where compiled kernels hide it; operators: the largest
    shares of what a profile saw.
    """

    layers: str
    format: str
    towers: str
    error: float
    built: float
    held: int
    peak: int
    peaks: dict[str, int]
    encoded: float
    prompt: int
    prefill: float
    share_of_products: float
    decode: float
    touched_weights: int
    touched: int
    share_of_reads: float
    spread: float
    after: dict[int, float]
    growth: float
    outside_products: float | None
    operators: dict[str, float]


def check_products(model: OmniModel) -> float:
    """The largest error of packed products of few and of many rows, one matrix of each shape.

    Raises ValueError where it is too large.
    """
    found: dict[tuple[int, int], Weight] = {}
    for module in model.backbone.modules():
        weights = [module.packed] if isinstance(module, PackedLinear) else []
        if isinstance(module, PackedExperts):
            weights = [stack.weights[0] for stack in module.stacks.values()]
        for weight in weights:
            found.setdefault((weight.rows, weight.width), weight)
    worst = 0.0
    # of one row the codes are multiplied, for many unpacked
    kinds = {1: torch.float32, 4 * FEW: multiplied_in(torch.bfloat16)}
    for (rows, width), weight in found.items():
        for count, dtype in kinds.items():
            x = torch.randn(count, width).bfloat16().to(multiplied_in(torch.bfloat16))
            wanted = x.float() @ weight.dense(dtype).float().t()
            error = float((weight.linear(x, None).float() - wanted).norm() / wanted.norm())
            if not error <= CLOSE:
                raise ValueError(
                    f"bench: {count} rows times {rows} x {width} differ by {error:.1e} from the dequantised weights; "
                    f"want at most {CLOSE}"
                )
            worst = max(worst, error)
    return worst


@torch.inference_mode()
def encode(model: OmniModel, patches: int = PATCHES, frames: int = FRAMES) -> float:
    """Seconds in which the towers that the model has see a square picture and hear a sound, once."""
    config, media = model.config, Media()
    side = int(patches**0.5) // config.shuffle * config.shuffle
    seen = (side, side) if isinstance(config.vision, VisionConfig) else None
    if seen and isinstance(config.vision, VisionConfig):
        media = Media(patches=torch.randn(side * side, config.vision.pixels), grids=torch.tensor([seen]))
    if config.audio:
        sound = Media(mels=torch.randn(frames, config.audio.mels), frames=torch.tensor([frames]))
        media = Media.pack([media, sound])
    start = time.perf_counter()
    model.encode(media)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(
    config: OmniConfig = OMNI,
    form: Format | None = "int4",
    towers: Format | None = None,
    prompt: int = 2048,
    new: int = 32,
    repeats: int = 5,
    contexts: Sequence[int] = (1024, 65536),
    compiled: bool = False,
) -> tuple[Machine, Real]:
    """Check, make the model, measure. form, towers: formats of the language model and of the towers; None: see
    `plain_name`. compiled: single tokens through compiled kernels (`omni.compiled`), which layers in no format are left
    out of.

    Raises ValueError where a check fails, and without a context.
    """
    if not contexts:
        raise ValueError("bench: no context came; pass at least one, such as 1024")
    check_twins(one_of_each(config))
    before = machine()
    give_back()  # what the checks took is not the model's
    start = time.perf_counter()
    model = random_packed(config, form, towers)
    if compiled:
        compile_steps(model)
    keep_freed()  # only now, as `omni.load` does
    built = time.perf_counter() - start
    held, made = resident()
    peaks = {"made": made}
    error = check_products(model)
    peaks["checked"] = resident()[1]
    encoded = encode(model)
    peaks["encoded"] = resident()[1]
    reading, writing, look = ours(model, prompt, new, repeats)
    spent = look()
    peaks["read and written"] = resident()[1]
    prefill, decode = prompt / statistics.median(reading), new / statistics.median(writing)
    after: dict[int, float] = {}
    for tokens in contexts:
        embeddings = model.look_up(torch.randint(0, config.backbone.vocabulary, (new,)))
        after[tokens] = statistics.median(writes(model, filled_state(model, tokens), embeddings, repeats)) / new
    peaks["contexts"] = peak = resident()[1]
    here = typical([before, machine(), machine()])
    weights = touched(model)
    all_touched = weights + touched_beside(model, filled_state(model, prompt))
    return here, Real(
        layers=pattern(config.backbone.blocks),
        format=form or plain_name(),
        towers=towers or plain_name(),
        error=error,
        built=built,
        held=held,
        peak=peak,
        peaks=peaks,
        encoded=encoded,
        prompt=prompt,
        prefill=prefill,
        share_of_products=prefill * work(config) / here.usable,
        decode=decode,
        touched_weights=weights,
        touched=all_touched,
        share_of_reads=decode * all_touched / 1e9 / here.read,
        spread=spread(reading, writing),
        after=after,
        growth=after[max(after)] / after[min(after)],
        outside_products=None if compiled else spent.outside,
        operators=spent.operators,
    )


def rows(real: Real) -> list[tuple[str, str, str]]:
    """What, how much and what share of the ceiling, for people."""
    gib = 2**30
    contexts = [(f"a token after {tokens}", f"{1000 * each:.1f} ms", "") for tokens, each in real.after.items()]
    return [
        ("products against dequantised weights", f"{real.error:.1e}", ""),
        ("made in", f"{real.built:.0f} s", ""),
        ("resident", f"{real.held / gib:.2f} GiB", ""),
        ("peak", f"{real.peak / gib:.2f} GiB", ""),
        *((f"peak once {stage}", f"{by / gib:.2f} GiB", "") for stage, by in real.peaks.items()),
        (f"picture of {PATCHES} patches, {FRAMES // 100} s of sound", f"{real.encoded:.1f} s", ""),
        (f"reading {real.prompt} tokens", f"{real.prefill:.0f} tok/s", f"{real.share_of_products:.0%} of products"),
        ("writing", f"{real.decode:.2f} tok/s", f"{real.share_of_reads:.0%} of reads"),
        ("touched a token", f"{real.touched / gib:.2f} GiB", f"{real.touched_weights / gib:.2f} GiB in products"),
        ("writing outside products", "" if real.outside_products is None else f"{real.outside_products:.0%}", ""),
        *contexts,
        ("the longest context over the shortest", f"{real.growth:.2f}x", ""),
    ]


def report(here: Machine, real: Real) -> str:
    """One JSON line."""
    return line(machine=asdict(here), real=asdict(real))
