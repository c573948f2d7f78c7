"""Under the hood: what the last answer was made of. Plan, tokens by item, state, receipt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from secrets import token_hex
from typing import Any

import gradio as gr

from demos.desk import Desk
from demos.session import Session, uploads
from demos.talk import Told
from omni.anatomy import anatomy
from omni.shell import size

HINT = '<p class="hint">Ask something in any tab, then look here.</p>'


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> None:
    """Lay the tab out. tab: itself; it is filled anew whenever it is opened."""
    gr.HTML(about(desk))
    shown = gr.HTML(HINT)
    with gr.Row(elem_classes="tools"):
        page = gr.DownloadButton("Receipt as a page", visible=False, size="sm")
        values = gr.DownloadButton("Receipt as JSON", visible=False, size="sm")
    receipt = gr.HTML(elem_classes="receipt")
    tab.select(
        filled, session, [shown, page, values, receipt], api_name="hood", concurrency_limit=None, show_progress="hidden"
    )


def about(desk: Desk) -> str:
    """The model, in a line of figures."""
    found = anatomy(desk.model.config)
    facts = [
        ("model", desk.title),
        ("parameters", f"{found.total / 1e6:,.1f} million, {found.active / 1e6:,.1f} active a token"),
        ("layers", found.pattern),
        ("context", f"{desk.context:,} tokens"),
        ("state", f"{size(4 * found.state_elements)} constant, and {size(2 * found.kv_elements)} a token"),
        ("computes in", f"{str(desk.model.dtype).removeprefix('torch.')} on {desk.model.device}"),
    ]
    return f"<h3>The model</h3>{_facts(facts)}"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="facts">{"".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)}</dl>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def filled(session: Session) -> tuple[Any, Any, Any, Any]:
    """The last answer's figures, its receipt to keep, and to look at."""
    told = session.last
    if told is None:
        return HINT, gr.DownloadButton(visible=False), gr.DownloadButton(visible=False), ""
    folder = uploads() / token_hex(16)
    folder.mkdir(parents=True)
    page, values = folder / "receipt.html", folder / "receipt.json"
    told.result.receipt.save(page)
    told.result.receipt.save(values)
    return (
        figures(told),
        gr.DownloadButton(value=str(page), visible=True),
        gr.DownloadButton(value=str(values), visible=True),
        _framed(told.result.receipt.to_html()),
    )


def _framed(page: str) -> str:
    """A page of its own, that may run nothing and open nothing."""
    return f'<iframe title="Receipt" sandbox="" srcdoc="{escape(page)}"></iframe>'


def figures(told: Told) -> str:
    """Where the tokens went, what was planned and what was read, and the state behind it."""
    result, seen = told.result, told.result.receipt.seen
    planned = {item.name: item for plan in told.plans for item in plan.items}
    rows = list[tuple[object, ...]]()
    for item, places in zip(seen.given.items, seen.by_item(), strict=True):
        read = sum(seen.places[number].tokens for number in places)
        plan = planned.get(item.name)
        rows.append((item.name, item.kind, plan.tokens if plan else "live", f"{read:,}", item.text_tokens))
    media = sum(place.tokens for place in seen.places)
    rows.append(("text and marks", "", "", f"{result.prompt_tokens - media:,}", ""))
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds.items())
    facts = [
        ("asked in", told.where),
        ("prompt", f"{result.prompt_tokens:,} tokens"),
        ("written", f"{len(result.tokens):,} tokens, {result.thinking_tokens:,} of them thinking"),
        ("ended by", result.stopped),
        ("state kept", f"{size(told.state_bytes)} for {told.state_tokens:,} tokens" if told.state_tokens else "none"),
        ("seconds", took),
    ]
    left = [line for plan in told.plans for line in plan.left_out]
    missing = "".join(f'<p class="note">Left out: {escape(line)}</p>' for line in left)
    items = _table(("item", "kind", "planned", "read", "labels and times"), rows)
    return f"<h3>The last answer</h3>{_facts(facts)}<h3>Tokens by item</h3>{items}{missing}{_plans(told)}"


def _plans(told: Told) -> str:
    """The plans in full, folded."""
    plans = [plan.to_dict() for plan in told.plans]
    if not plans:
        return ""
    text = escape(json.dumps(plans if len(plans) > 1 else plans[0], indent=1, ensure_ascii=False))
    return f"<details><summary>The plan, made before anything was decoded</summary><pre>{text}</pre></details>"
