"""Benchmark of reading and writing: a hybrid of random weights in each format, against what this machine can do and
against other engines on the same weights, in one run, each right behind the format that it stands beside.

Results are compared with the reference first. Ceilings are measured in the run: bytes read a second by a sum over a
large tensor, products of large matrices in each dtype. A format's share is its arithmetic (or the bytes it must touch)
over what that ceiling would allow.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from omni.anatomy import anatomy
from omni.attention import AttentionConfig
from omni.backbone import BackboneConfig, BlockConfig
from omni.bench_decode import Profile, profiled, touched, writes
from omni.bench_random import random_model
from omni.bench_result import line, spread, timed
from omni.compiled import compile_steps
from omni.config import OmniConfig
from omni.heap import keep_freed
from omni.mamba import MambaConfig
from omni.model import OmniModel
from omni.moe import MoEConfig
from omni.packed import Format, pack
from omni.precision import multiplied_in
from omni.prefill import Prefix
from processors.batch import Batch

PATTERN = "MEMEM*EMEMEM*EME"
BLOCKS: dict[str, BlockConfig] = {
    "M": MambaConfig(heads=16, head_dim=64, state=128, groups=2),
    "*": AttentionConfig(heads=8, kv_heads=2, head_dim=128),
    "E": MoEConfig(experts=64, top_k=6, hidden=512, shared=1024, scale=2.5),
}
HYBRID = OmniConfig(
    backbone=BackboneConfig(width=1024, vocabulary=49152, blocks=tuple(BLOCKS[letter] for letter in PATTERN))
)
NUMBER_BY_NUMBER = 8  # GFLOP/s, at most, of products that torch has no kernel for
CLOSE = 1e-4  # of the logits' norm, in float32: in bfloat16, rounding alone sends tokens to other experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine can do with so many threads: GB read a second, GFLOP/s of large products by dtype."""

    threads: int
    read: float
    products: dict[str, float]

    @property
    def usable(self) -> float:
        """GFLOP/s in bfloat16, or in float32 where that is faster."""
        return max(self.products["float32"], self.products["bfloat16"])

    def words(self) -> str:
        """For people."""
        products = ", ".join(f"{name} {rate:.0f}" for name, rate in self.products.items())
        return f"{self.threads} threads: {self.read:.0f} GB/s read; products {products} GFLOP/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of reading a prompt and of writing after it, medians; spread: (max - min) / median.

    share_of_products: of the best usable ceiling; share_of_reads: of the machine's; outside_products: the share of the
    time of writing that is spent outside matrix products. None for other engines; the last also where compiled
    kernels hide it.
    """

    engine: str
    format: str
    prefill: float
    decode: float
    spread: float
    share_of_products: float | None = None
    share_of_reads: float | None = None
    outside_products: float | None = None


def machine(size: int = 2048, read_bytes: int = 2**28) -> Machine:
    """Measure the ceilings; of a dtype in which torch multiplies number by number, with smaller matrices."""
    large = torch.ones(read_bytes // 4)
    read = large.nbytes / min(timed(large.sum, 5)) / 1e9
    found = {
        str(dtype).removeprefix("torch."): _rate(dtype, size) for dtype in (torch.float32, torch.bfloat16, torch.int8)
    }
    return Machine(threads=torch.get_num_threads(), read=read, products=found)


def _rate(dtype: torch.dtype, size: int) -> float:
    multiply = torch.mm if dtype.is_floating_point else torch.ops.aten._int_mm
    rate = 0.0
    for side in (256, size):
        matrix = torch.ones(side, side, dtype=dtype)
        rate = 2 * side**3 / min(timed(lambda m=matrix: multiply(m, m), 5)) / 1e9
        if rate < NUMBER_BY_NUMBER:
            break
    return rate


def typical(looks: Sequence[Machine]) -> Machine:
    """The median of each ceiling over a run: a shared machine's read bandwidth halves and doubles within minutes."""
    products = {name: statistics.median(look.products[name] for look in looks) for name in looks[0].products}
    read = statistics.median(look.read for look in looks)
    return Machine(threads=looks[0].threads, read=read, products=products)


def work(config: OmniConfig) -> float:
    """GFLOP of matrix products that reading one token takes; the head scores a prompt's end only."""
    return 2 * (anatomy(config).active - config.backbone.width * config.backbone.vocabulary) / 1e9


@torch.inference_mode()
def ours(
    model: OmniModel, prompt: int, new: int, repeats: int
) -> tuple[list[float], list[float], Callable[[], Profile]]:
    """Seconds of reading a prompt as answers do (`omni.prefill`) and scoring its end, of writing `new` tokens singly
    after it, and how to see where the latter's time goes. The heap is as `omni.load` leaves it.
    """
    keep_freed()
    vocabulary = model.config.backbone.vocabulary
    batch = Batch(tokens=torch.randint(0, vocabulary, (prompt,)), lengths=torch.tensor([prompt]))
    written, prefix = model.look_up(torch.randint(0, vocabulary, (new,))), Prefix.new(model)

    def read() -> None:
        nonlocal prefix
        prefix = Prefix.new(model)
        prefix.append(batch, model.embed(batch))
        model.score(prefix.finish(model))

    prefill = timed(read, repeats)
    decode = writes(model, prefix.state, written, repeats)
    return prefill, decode, lambda: profiled(model, prefix.state, written, statistics.median(decode))


def check_twins(config: OmniConfig, tokens: int = 96) -> float:
    """The error of a packed model's logits, as a share of their norm as the reference gives them for the same weights.

    Raises ValueError where it is too large.
    """
    model = random_model(config).float()
    ids = torch.arange(tokens) % config.backbone.vocabulary
    with torch.enable_grad():  # the reference runs
        wanted = model.score(model.read(model.look_up(ids), (tokens,))).detach()
    pack(model)
    with torch.inference_mode():
        made = model.score(model.read(model.look_up(ids), (tokens,)))
    error = float((made - wanted).norm() / wanted.norm())
    if error > CLOSE:
        raise ValueError(f"bench: packed logits differ by {error:.1e} from the reference's; want at most {CLOSE}")
    return error


def measure(
    config: OmniConfig = HYBRID,
    prompt: int = 2048,
    new: int = 32,
    repeats: int = 5,
    peers: bool = True,
    compiled: bool = False,
) -> tuple[Machine, list[Speed]]:
    """Ours in bfloat16, int8 and int4, and right behind each format, on the same weights, transformers and llama.cpp
    where they are installed. On a processor that is slow in bfloat16 what is not weights is in float32, as `load` has
    it; one more format, float32 throughout, is measured there, and it is transformers'.

    compiled: each format also with single tokens compiled (`omni.compiled`).

    Raises ValueError where ours does not agree with its reference.
    """
    check_twins(config)
    looks = [machine()]
    found: list[tuple[Speed, int]] = []  # with the bytes of weights that a token of ours touches
    working = multiplied_in(torch.bfloat16)
    forms: list[tuple[str, torch.dtype, Format | None]] = [
        ("bf16", torch.bfloat16, None), ("int8", working, "int8"), ("int4", working, "int4")
    ]  # fmt: skip
    if working == torch.float32:
        forms.insert(0, ("f32", working, None))
    with tempfile.TemporaryDirectory() as folder:
        rivals = _rivals(config, Path(folder), prompt, new, repeats, working) if peers else {}
        for name, dtype, form in forms:
            for fused in (False, True) if compiled else (False,):
                model = random_model(config).to(dtype)
                pack(model, form, rows=fused)
                if fused:
                    compile_steps(model)
                read, write, spent = ours(model, prompt, new, repeats)
                speed = Speed(
                    engine="omni, compiled" if fused else "omni",
                    format=name,
                    prefill=prompt / statistics.median(read),
                    decode=new / statistics.median(write),
                    spread=spread(read, write),
                    outside_products=None if fused else spent().outside,
                )
                found.append((speed, touched(model)))
                del model, spent
                looks.append(machine())
            found += [(rival(), 0) for rival in rivals.get(name, ())]
    here = typical(looks)
    return here, [
        replace(
            speed,
            share_of_products=speed.prefill * work(config) / here.usable,
            share_of_reads=speed.decode * moved / 1e9 / here.read,
        )
        if moved
        else speed
        for speed, moved in found
    ]


def _rivals(
    config: OmniConfig, folder: Path, prompt: int, new: int, repeats: int, working: torch.dtype
) -> dict[str, list[Callable[[], Speed]]]:
    """How to measure the other engines that are installed, by the format of ours that they stand beside; the same
    weights are written into a folder for them.
    """
    from omni import bench_llama as llama

    checkpoint, like = folder / "checkpoint", "bf16" if working == torch.bfloat16 else "f32"
    random_model(config).save_pretrained(checkpoint)
    rivals = {like: [partial(transformers_speed, checkpoint, like, working, prompt, new, repeats)]}
    if llama.installed():
        llama.add_tokenizer(checkpoint, config.backbone.vocabulary)
        whole = llama.converted(checkpoint, folder / "model.bf16.gguf", llama.find_converter(folder))
        files = {"bf16": whole, "int8": llama.quantised(whole, "q8_0"), "int4": llama.quantised(whole, "q4_0")}
        for form, file in files.items():
            rivals.setdefault(form, []).append(partial(llama_speed, file, prompt, new, repeats))
    return rivals


@torch.inference_mode()
def transformers_speed(folder: Path, form: str, dtype: torch.dtype, prompt: int, new: int, repeats: int) -> Speed:
    """transformers on a checkpoint in a dtype, which the table calls `form`, with its cache."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, prompt + new))
    cache: Any = None

    def read() -> None:
        nonlocal cache
        cache = model(ids[:, :prompt], use_cache=True, logits_to_keep=1).past_key_values

    reading = timed(read, repeats)
    writing: list[float] = []
    for _ in range(repeats):
        read()
        start = time.perf_counter()
        for place in range(prompt, prompt + new):
            model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits[0, -1].argmax().item()
        writing.append(time.perf_counter() - start)
    return Speed(
        engine="transformers",
        format=form,
        prefill=prompt / statistics.median(reading),
        decode=new / statistics.median(writing),
        spread=spread(reading, writing),
    )


def llama_speed(file: Path, prompt: int, new: int, repeats: int) -> Speed:
    """llama.cpp on a GGUF file, whose name says its format."""
    from omni.bench_llama import rates

    reading, writing = rates(file, prompt, new, torch.get_num_threads(), repeats)
    return Speed(
        engine="llama.cpp",
        format=file.name.split(".")[-2],
        prefill=statistics.median(reading),
        decode=statistics.median(writing),
        spread=spread(reading, writing),
    )


def report(here: Machine, speeds: list[Speed]) -> str:
    """One JSON line."""
    return line(machine=asdict(here), speeds=[asdict(each) for each in speeds])
