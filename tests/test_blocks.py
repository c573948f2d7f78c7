"""Feed-forward blocks and multi-token prediction = their definitions, one token and one expert at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import randomize
from torch import Tensor

from omni import ops
from omni.moe import MoE, MoEConfig
from omni.mtp import MTP, MTPConfig

PLAIN = MoEConfig(experts=6, top_k=3, hidden=5, scale=2.5)
KINDS = {
    "sigmoid": PLAIN,
    "softmax": replace(PLAIN, router="softmax", normalize=False),
    "shared": replace(PLAIN, shared=7),
    "latent": replace(PLAIN, latent=4, shared=7),
    "groups": replace(PLAIN, groups=3, top_groups=2),
    "gated": replace(PLAIN, gated=True, shared=7),
    "gpt-oss": replace(
        PLAIN, router="softmax", gated=True, selection_bias=False, router_bias=True, expert_bias=True, clamp=0.5
    ),
}


def expert(weights: dict[str, Tensor], number: int, x: Tensor, clamp: float | None) -> Tensor:
    """One expert on one token, from the stacked weights."""

    def linear(name: str, value: Tensor) -> Tensor:
        bias = weights.get(f"experts.{name}_bias")
        return weights[f"experts.{name}_proj"][number] @ value + (0 if bias is None else bias[number])

    hidden = linear("up", x)
    if "experts.gate_proj" not in weights:
        hidden = hidden.clamp(min=0) ** 2
    elif clamp is None:
        gate = linear("gate", x)
        hidden = gate / (1 + (-gate).exp()) * hidden
    else:
        gate = linear("gate", x).clamp(max=clamp)
        hidden = gate / (1 + (-1.702 * gate).exp()) * (hidden.clamp(-clamp, clamp) + 1)
    return linear("down", hidden)


def by_definition(config: MoEConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """out = W_up sum w_i E_i(W_down x) + shared(x), w_i = scale s_i / sum of the chosen s."""
    out = []
    for token in x:
        logits = weights["gate.weight"] @ token + weights.get("gate.bias", torch.zeros(config.experts))
        scores = torch.sigmoid(logits) if config.router == "sigmoid" else logits.exp() / logits.exp().sum()
        ranks = scores + weights.get("gate.e_score_correction_bias", torch.zeros(config.experts))
        size = config.experts // config.groups
        best = sorted(range(config.groups), key=lambda g: -float(ranks[g * size : (g + 1) * size].topk(2).values.sum()))
        allowed = [e for e in range(config.experts) if e // size in best[: config.top_groups]]
        chosen = sorted(allowed, key=lambda e: -float(ranks[e]))[: config.top_k]
        total = sum(float(scores[e]) for e in chosen) if config.normalize else 1.0
        inner = weights["fc1_latent_proj.weight"] @ token if config.latent else token
        mixed = sum(
            (config.scale * scores[e] / total * expert(weights, e, inner, config.clamp) for e in chosen),
            torch.zeros_like(inner),
        )
        mixed = weights["fc2_latent_proj.weight"] @ mixed if config.latent else mixed
        if config.shared:
            hidden = weights["shared_experts.up_proj.weight"] @ token
            if config.gated:
                hidden = F.silu(weights["shared_experts.gate_proj.weight"] @ token) * hidden
            else:
                hidden = hidden.clamp(min=0) ** 2
            mixed = mixed + weights["shared_experts.down_proj.weight"] @ hidden
        out.append(mixed)
    return torch.stack(out)


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_experts_mix_as_defined(kind: str) -> None:
    config = KINDS[kind]
    model = MoE(config, 8)
    randomize(model, 3)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), by_definition(config, dict(model.state_dict()), x), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.sampled_from([1, 2, 3, 6]), data=st.data())
def test_experts_are_chosen_from_the_best_groups_alone(seed: int, groups: int, data: st.DataObject) -> None:
    top_groups = data.draw(st.integers(1, groups))
    size = 12 // groups
    top_k = data.draw(st.integers(1, size * top_groups))
    scores = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed)) - 3  # negative: a mask of zero would win
    chosen = ops.choose_experts(scores, top_k, groups, top_groups)
    for row, picks in zip(scores, chosen, strict=True):
        sums = row.view(groups, size).topk(min(2, size), -1).values.sum(-1)
        best = set(sums.topk(top_groups).indices.tolist())
        allowed = [e for e in range(12) if e // size in best]
        assert picks.tolist() == sorted(allowed, key=lambda e: -float(row[e]))[:top_k]


@torch.no_grad()
def test_multi_token_prediction_is_as_defined() -> None:
    """u = W [RMSNorm_e(embedding); RMSNorm_h(hidden)], then the block's layers, then the last norm."""
    torch.manual_seed(0)
    model = MTP(MTPConfig(blocks=(small.ATTENTION, small.LATENT)), 32, 1e-5).eval()
    randomize(model, 5)
    following, hidden = (torch.randn(9, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    w = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    x = torch.cat((norm(following, "enorm.weight"), norm(hidden, "hnorm.weight")), -1) @ w["eh_proj.weight"].T
    h = norm(x, "layers.0.norm.weight")
    q, k, v = ((h @ w[f"layers.0.mixer.{name}_proj.weight"].T).unflatten(-1, (-1, 8)) for name in "qkv")
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / 8**0.5
    scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    x = x + torch.einsum("hij,jhd->ihd", scores, v).flatten(1) @ w["layers.0.mixer.o_proj.weight"].T
    x = x + by_definition(
        small.LATENT,
        {name.removeprefix("layers.1.mixer."): value for name, value in w.items() if name.startswith("layers.1.mixer")},
        norm(x, "layers.1.norm.weight"),
    )
    torch.testing.assert_close(model(following, hidden, (9,)), norm(x, "final_layernorm.weight"), rtol=1e-4, atol=1e-5)
