"""llama.cpp as a peer: a checkpoint's folder → GGUF → tokens a second of prefill and decode.

It runs through the prebuilt wheel of `xllamacpp` (measured: 2026.10.11549). Weights are converted by the script that
llama-cpp-python's source distribution carries (0.3.36, its gguf-py beside it) and quantised by `gguf` (0.19.0). The
wheel is built for AVX2: no AVX-512, no bfloat16 products, no VNNI. Say so beside a ratio; a native build may be faster.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

SDIST = "llama-cpp-python==0.3.36"
CONVERT = """
import runpy, sys
from pathlib import Path
script = Path(sys.argv[1])
sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
def splitter(model, tokenizer):
    try:
        return known(model, tokenizer)
    except NotImplementedError:  # it knows released tokenizers only; ids are given here, so any splitter will do
        return "gpt-2"
TextModel.get_vocab_base_pre = splitter
sys.argv = sys.argv[1:]
runpy.run_path(str(script), run_name="__main__")
"""
SPEED = "import sys; from omni.bench_llama import measure; print(measure(sys.argv[1], *map(int, sys.argv[2:])))"


def find_converter(folder: Path) -> Path:
    """convert_hf_to_gguf.py under a folder, fetched there with pip (77 MB) where it is not yet.

    Raises ValueError where pip cannot fetch the source distribution.
    """
    pattern = "llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py"
    if not any(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        _run([*pip, "-d", str(folder), SDIST])
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob(pattern))


def installed() -> bool:
    """Whether llama.cpp can be run and fed here."""
    return all(find_spec(name) is not None for name in ("xllamacpp", "gguf"))


def add_tokenizer(folder: Path, vocabulary: int) -> None:
    """Put a byte-level BPE of so many entries beside a checkpoint of random weights: the converter wants one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = {token: i for i, token in enumerate(("<unk>", "<s>", "</s>", *letters))}
    latin = [letter for letter in letters if letter.isascii() and letter.isalpha()]
    pairs = list(product(latin, latin))
    merges = [*pairs, *((a + b, c) for (a, b), c in product(pairs, latin))][: vocabulary - len(entries)]
    for a, b in merges:
        entries[a + b] = len(entries)
    if len(entries) != vocabulary:
        raise ValueError(f"bench: a vocabulary of {vocabulary} came; want 259 to {len(entries)}")
    made = Tokenizer(models.BPE(vocab=entries, merges=merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]  (a setter there)
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  (a setter there)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def converted(folder: Path, out: Path, converter: Path) -> Path:
    """Write a checkpoint's folder (config, safetensors, tokenizer) as a bfloat16 GGUF file; norms and routers float32.

    Raises ValueError with the script's last words where it fails.
    """
    command = [sys.executable, "-c", CONVERT, str(converter), str(folder), "--outfile", str(out), "--outtype", "bf16"]
    _run(command)
    return out


def quantised(gguf: Path, kind: Literal["q8_0", "q4_0"]) -> Path:
    """Write a bfloat16 GGUF file again, its bfloat16 matrices (embeddings and head too) in blocks of 32 values.

    llama.cpp's own quantiser would keep the head of q4_0 in six bits; here every matrix has the same format.
    """
    g = _package("gguf")
    types, keys = g.GGMLQuantizationType, g.Keys.General
    target = types[kind.upper()]
    reader, out = g.GGUFReader(gguf), gguf.with_name(f"{gguf.stem.removesuffix('.bf16')}.{kind}.gguf")
    writer = g.GGUFWriter(out, reader.get_field(keys.ARCHITECTURE).contents())
    for name, field in reader.fields.items():
        if name not in (keys.ARCHITECTURE, keys.FILE_TYPE) and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    writer.add_file_type(g.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    for tensor in reader.tensors:
        many = tensor.tensor_type == types.BF16
        data = g.quantize(g.dequantize(tensor.data, types.BF16), target) if many else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=target if many else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def serve(gguf: Path, context: int, threads: int) -> Any:
    """xllamacpp's server for one sequence of up to `context` tokens, every prompt read anew. Close by deleting it.

    Raises ValueError where xllamacpp is not installed.
    """
    x = _package("xllamacpp")
    params = x.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.n_batch = context, 1, context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt, params.cache_ram_mib, params.n_ctx_checkpoints = False, 0, 0  # no copies of states
    params.verbosity = 0
    return x.Server(params)


def complete(server: Any, prompt: list[int], new: int, **settings: Any) -> dict[str, Any]:
    """Greedy continuation of ids by exactly `new` tokens, in the server's own words; `timings` are milliseconds."""
    asked = {"prompt": prompt, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    return server.handle_completions(asked | settings)


def measure(gguf: str, prompt: int, new: int, threads: int, repeats: int) -> str:
    """What `rates` runs in a process of its own: after a warm-up, two lists of tokens a second, as JSON.

    A decoding is timed from the first new token to the last.
    """
    server = serve(Path(gguf), prompt + new, threads)
    rates: tuple[list[float], list[float]] = ([], [])
    for run in range(repeats + 1):
        timings = complete(server, [100 + (run + 31 * i) % 1000 for i in range(prompt)], new)["timings"]
        if timings["prompt_n"] != prompt or timings["predicted_n"] != new:
            raise ValueError(f"llama.cpp read {timings['prompt_n']} of {prompt} tokens, wrote {timings['predicted_n']}")
        if run:
            rates[0].append(1000 * prompt / timings["prompt_ms"])
            rates[1].append(1000 * (new - 1) / timings["predicted_ms"])
    return json.dumps(rates)


def rates(gguf: Path, prompt: int, new: int, threads: int, repeats: int) -> tuple[list[float], list[float]]:
    """Tokens a second of reading a prompt and of writing `new` tokens after it (at least 2), batch 1, of each repeat.

    Raises ValueError where xllamacpp is not installed or cannot load the file.
    """
    _package("xllamacpp")
    command = [sys.executable, "-c", SPEED, str(gguf), *map(str, (prompt, new, threads, repeats))]
    prefill, decode = json.loads(_run(command).splitlines()[-1])
    return prefill, decode


def _package(name: Literal["xllamacpp", "gguf"]) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"bench: {name} is not installed; pip install xllamacpp gguf (prebuilt, no compiler)"
        ) from None


def _run(command: list[str]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ValueError(f"bench: {command[0]} failed with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout
