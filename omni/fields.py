"""A section of an upstream config.json, read so that nothing is dropped in silence.

Every key is either used, known to change nothing, or refused by name; two aliases that disagree are refused too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Fields:
    """A section of a config.json, read key by key so that nothing is dropped in silence."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: {type(values).__name__} came, a section with names and values was wanted")
        self.values, self.where, self.used = dict(values), where, set[str]()

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(name) is not None

    def take(self, *names: str, default: Any = ..., kind: type | None = None) -> Any:
        """The value under any of the names; all that are given must agree.

        A default makes it optional; null is absent. kind: what it must be, else what the default is, a whole number
        where there is none; `object` takes anything.
        """
        self.used |= set(names)
        found = {name: self.values[name] for name in names if self.has(name)}
        if not found:
            if default is ...:
                raise ValueError(f"{self.where}: {' / '.join(names)} is missing; add it to the config")
            return default
        first = next(iter(found.values()))
        if any(value != first for value in found.values()):
            raise ValueError(f"{self.where}: {found} disagree though they mean the same; keep one of them")
        kind = kind or (int if default is ... else object if default is None else type(default))
        least = 1 if default is ... else 0
        if not _is(first, kind, least):
            wanted = WORDS.get(kind, f"a whole number from {least} on")
            raise ValueError(f"{self.where}: {next(iter(found))} is {first!r}, {wanted} was wanted")
        return first

    def expect(self, *names: str, value: Any, why: str) -> None:
        """A setting of which only one value is built."""
        got = self.take(*names, default=value, kind=object)
        if got != value:
            raise ValueError(f"{self.where}: {' / '.join(names)} is {got!r}, only {value!r} is supported ({why})")

    def section(self, *names: str) -> Fields:
        """A section under any of the names, to be read key by key itself."""
        name = next((name for name in names if self.has(name)), names[0])
        return Fields(self.take(*names, kind=object), f"{self.where}: {name}")

    def done(self, inert: frozenset[str] = frozenset()) -> None:
        """Refuse what was neither read nor is known to change nothing."""
        left = sorted(set(self.values) - self.used - inert - HOUSEKEEPING)
        if left:
            raise ValueError(
                f"{self.where}: unknown {', '.join(left)}; remove them if they change nothing, or this version "
                "of omni would compute something else than was trained"
            )


WORDS: dict[type, str] = {
    bool: "true or false",
    float: "a finite number",
    str: "a text",
    list: "a list",
    tuple: "a list",
    Mapping: "a section with names and values",
}


def _is(value: Any, kind: type, least: int) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, list | tuple if kind in (list, tuple) else kind)


# Written by libraries around a model; none changes what it computes.
HOUSEKEEPING = frozenset(
    """architectures auto_map dtype torch_dtype transformers_version _name_or_path model_type
        return_dict use_cache output_attentions output_hidden_states output_router_logits
        use_return_dict chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder
        is_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder pruned_heads
        finetuning_task task_specific_params tokenizer_class prefix sep_token_id
        decoder_start_token_id torchscript use_bfloat16 tf_legacy_loss quantization_config
        _attn_implementation attn_implementation version max_new_tokens name licence license""".split()
)
TEXT_INERT = frozenset(
    """max_position_embeddings initializer_range rescale_prenorm_residual num_logits_to_keep
        use_mamba_kernels mamba_ssm_cache_dtype attention_dropout hidden_dropout rope_theta
        partial_rotary_factor rope_parameters rope_scaling time_step_min time_step_max
        time_step_floor mamba_dt_min mamba_dt_max mamba_dt_init_floor expand mamba_expand
        num_hidden_layers norm_eps moe_shared_expert_overlap n_shared_experts keep_in_fp32
        attn_layer_period layer_types num_attention_heads_mamba calc_logits_entropy""".split()
)
