"""The command line: `omni ask`, `ingest`, `replay`, `plan`, `inspect`, `doctor`, `bench`."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from omni.cli_ask import ask
from omni.cli_bench import bench
from omni.cli_demo import demo
from omni.cli_eval import evaluate
from omni.cli_listen import listen
from omni.cli_memory import ingest, replay
from omni.cli_quantize import quantize
from omni.cli_train import train
from omni.shell import Commands, console, fail, size

app = typer.Typer(
    help="Ask any document, long video or sound a question, on any machine.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Ask any document, long video or sound a question, on any machine."""


@app.command()
def doctor() -> None:
    """Say which torch, kernels and decoders are in use, and how to get what is missing."""
    table = Table("part", "in use", "note", title=f"omni {version('omni')}")
    for row in _machine() + _packages():
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _machine() -> list[tuple[str, str, str]]:
    import torch

    from omni.kernels_cuda import ready
    from omni.precision import fast_bfloat16

    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [
        ("python", platform.python_version(), platform.platform()),
        ("processor", f"{capability}, {threads} threads", f"{os.cpu_count()} cores seen"),
        ("memory", f"{_memory() / 2**30:.1f} GiB", "of this machine"),
        ("torch", torch.__version__, f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU"),
    ]
    if torch.cuda.is_available():
        mamba = "mamba-ssm in Mamba layers" if ready() else "the reference in Mamba layers, slower"
        rows.append(("GPU", torch.cuda.get_device_name(), mamba))
    packs = torch.backends.mkldnn.is_available()
    rows.append(("kernels", "torch, oneDNN" if packs else "torch", "fast twins of the reference, on a CPU"))
    rows.append(("bfloat16", *(("fast", "products in it") if fast_bfloat16() else ("slow", "float32 instead"))))
    return rows


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


PARTS = {
    "vision tower": ("timm", ""),
    "resampling": ("torchaudio", ""),
    "pictures": ("pillow", ""),
    "PDF": ("pypdfium2", ""),
    "video": ("decord2", ""),
    "video, sound": ("av", ""),
    "tokenizer": ("transformers", ""),
    "demo": ("gradio", "pip install 'omni[demo]'"),
    "server": ("fastapi", "pip install 'omni[serve]'"),
    "word error rate": ("jiwer", "pip install 'omni[eval]'"),
    "benchmarks' data": ("datasets", "pip install 'omni[eval]'"),
    "mamba-ssm": ("mamba-ssm", "pip install 'omni[cuda]', with a CUDA device"),
}


def _packages() -> list[tuple[str, str, str]]:
    rows = []
    for part, (package, hint) in PARTS.items():
        try:
            rows.append((part, f"{package} {version(package)}", ""))
        except PackageNotFoundError:
            rows.append((part, "missing", hint or f"pip install {package}"))
    return rows


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="a checkpoint's folder, its config.json, or a hub repository's id")],
    context: Annotated[int, typer.Option(help="tokens for which to state the cache", min=1)] = 131072,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """A model's layer pattern, parameters (total, active), cache bytes a token and memory by dtype.

    No weights are read.
    """
    from omni.anatomy import Anatomy, anatomy, groups
    from omni.checkpoint import read_config
    from omni.hf import from_hf

    try:
        config = from_hf(read_config(path))
    except ValueError as error:
        fail(str(error))
    found: Anatomy = anatomy(config)
    sizes = {name: found.bytes_at(bits) for name, bits in BITS.items()}
    if as_json:
        values = {
            "pattern": found.pattern,
            "parameters": found.parts,
            "total": found.total,
            "active": found.active,
            "kv_bytes_per_token": 2 * found.kv_elements,
            "state_bytes": 4 * found.state_elements,
            "context": context,
            "context_bytes": found.cache_bytes(context),
            "weights_bytes": sizes,
        }
        typer.echo(json.dumps(values))
        return
    console.print(f"[bold]{escape(Path(path).name)}[/bold]  {len(found.pattern)} layers  {found.pattern}")
    table = Table("part", "parameters")
    for name, count in found.parts.items():
        table.add_row(name, _billions(count))
    table.add_section()
    table.add_row("all", _billions(found.total))
    table.add_row(
        "active a token", f"{_billions(found.active)} ({_billions(found.active + found.embedding)} with embedding)"
    )
    console.print(table)
    layers = Table("layers", "kind and sizes")
    for text, count in groups(config.backbone.blocks):
        layers.add_row(str(count), escape(text))
    console.print(layers)
    memory = Table("memory", "")
    for name, weight in sizes.items():
        memory.add_row(f"weights, {name}", size(weight))
    memory.add_section()
    memory.add_row("cache a token, bf16", size(2 * found.kv_elements))
    memory.add_row("state a sequence, fp32", size(4 * found.state_elements))
    memory.add_row(f"one sequence of {context} tokens", size(found.cache_bytes(context)))
    console.print(memory)


@app.command()
def plan(
    files: Annotated[list[Path], typer.Argument(help="pictures, PDFs, videos, sounds", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    context: Annotated[int | None, typer.Option(help="tokens that the prompt may take")] = None,
    preset: Annotated[str, typer.Option(help="reference, transformers, vllm or sglang")] = "reference",
    evs: Annotated[float | None, typer.Option(help="share of a video's tokens to remove")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="leave out pages that do not fit, instead of refusing")] = False,
    password: Annotated[str | None, typer.Option(help="of the PDFs that are encrypted")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """What files will cost before anything is run: tokens, pages' dpi, frames' times, memory, what is left out.

    Only the model's config and tokenizer are read.
    """
    from omni.checkpoint import TINY
    from omni.load import OmniProcessor
    from processors.opening import unlocked

    try:
        inside = model == "tiny" and (TINY / "config.json").is_file()
        processor = OmniProcessor.from_pretrained(TINY if inside else model)
        parts = unlocked([{"type": "file", "path": str(file)} for file in files], password)
        messages = [{"role": "user", "content": parts}]
        overflow = "drop" if drop else "refuse"
        made = processor.plan(messages, context=context, preset=preset, video_pruning_rate=evs, overflow=overflow)
    except ValueError as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(made.to_dict()))
        return
    table = Table("file", "kind", "tokens", "text", "details")
    for item in made.items:
        table.add_row(
            escape(item.name), item.kind, str(item.tokens), str(item.text_tokens), escape(_details(item.details))
        )
    console.print(table)
    for left in made.left_out:
        console.print(f"left out: {escape(left)}")
    console.print(f"{made.tokens} tokens in all ({made.text_tokens} of the conversation's own), preset {preset}")
    console.print(f"state after the prompt: {size(made.cache_bytes)}")


app.command()(ask)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")
app.command()(demo)
app.command()(ingest)
app.command()(listen)
app.command()(replay)
app.command()(quantize)
app.command()(train)


def _details(values: dict[str, object]) -> str:
    """Lists are shortened to their ends."""
    shown = []
    for name, value in values.items():
        if isinstance(value, list) and len(value) > 4:
            value = f"{value[0]}, {value[1]} … {value[-1]} ({len(value)})"
        shown.append(f"{name} {value}")
    return "; ".join(shown)


BITS: dict[str, float] = {"fp32": 32, "bf16 / fp16": 16, "fp8 / int8": 8, "nvfp4 / int4 (with scales)": 4.5}


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e6:.2f}M"
