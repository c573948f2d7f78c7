"""The language part of a config.json ↔ ours, whatever its family."""

from __future__ import annotations

from typing import Any

from omni.backbone import BackboneConfig
from omni.config import Keys, OmniConfig
from omni.fields import Fields
from omni.hf_gpt_oss import read_gpt_oss, write_gpt_oss
from omni.hf_llama import read_llama, write_llama
from omni.hf_nemotron import read_nemotron_h, write_nemotron_h
from omni.mtp import MTPConfig

NEMOTRON_H = ("nemotron_h", "nemotron_h_puzzle")
GPT_OSS = ("gpt_oss", "gpt_oss_puzzle")
LLAMA = ("llama", "nemotron-nas", "deci", "deci_lm", "decilm")


def read_text(fields: Fields) -> tuple[BackboneConfig, MTPConfig | None, Keys]:
    """The language part of a config.json, and the family of its keys.

    Without a model_type, the name of the norm's epsilon tells Llama from Nemotron-H. Raises ValueError for a family
    that is unknown.
    """
    kind = fields.values.get("model_type")
    known = (*NEMOTRON_H, *LLAMA, *GPT_OSS)
    if kind and kind not in known:
        raise ValueError(f"{fields.where}: model_type {kind!r}; known are {', '.join(known)}")
    if kind in GPT_OSS:
        return read_gpt_oss(fields), None, "gpt_oss"
    guess = not kind and fields.has("rms_norm_eps") and not fields.has("layer_norm_epsilon")
    if kind in LLAMA or guess:
        return read_llama(fields), None, "llama"
    return *read_nemotron_h(fields), "nemotron_h"


def read_ids(fields: Fields) -> tuple[int | None, tuple[int, ...], int | None]:
    """The ids of the beginning, the ends, and padding."""
    bos, eos, pad = (
        fields.take(f"{name}_token_id", default=default, kind=object)
        for name, default in (("bos", None), ("eos", 2), ("pad", None))
    )
    ends = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not all(isinstance(one, int) for one in (bos or 0, *ends, pad or 0)):
        raise ValueError(
            f"{fields.where}: bos_token_id {bos!r}, eos_token_id {eos!r}, pad_token_id {pad!r}; ids were "
            "wanted, of the end also a list"
        )
    return bos, ends, pad


def write_text(c: OmniConfig) -> dict[str, Any]:
    """The language part of a config.json, in upstream's names."""
    b = c.backbone
    head: dict[str, Any] = {
        "hidden_size": b.width,
        "vocab_size": b.vocabulary,
        "tie_word_embeddings": b.tied,
        "bos_token_id": c.bos,
        "eos_token_id": list(c.eos),
        "pad_token_id": c.pad,
    }
    match c.keys:
        case "llama":
            return head | write_llama(b)
        case "gpt_oss":
            return head | write_gpt_oss(b)
        case "nemotron_h":
            return head | write_nemotron_h(b, c.mtp)
