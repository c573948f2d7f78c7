"""The receipt as a page for people: items as cards, clips as film strips with what was pruned dimmed, times of the true
clock.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from omni.seen import Place, Seen
from processors.given import GivenItem

IDS = 4000  # shown of a prompt
TITLE = 400  # characters of a question shown as the title
TOKEN_SECONDS = 0.08  # of sound
ENDS = {"eos": "end token", "length": "length limit", "stop": "stop string"}
STAGES = {
    "decode media": "decode files",
    "encode": "towers",
    "prefill": "read the prompt",
    "decode": "write the answer",
}


def page(seen: Seen, ids: Sequence[int], pieces: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """The HTML page. values: the receipt's plain values."""
    loader = FileSystemLoader(Path(__file__).parent)
    around = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    ranges = seen.by_item() if seen.given.items else [range(len(seen.places))] * bool(seen.places)
    items = seen.given.items or (_unknown(seen),) * bool(seen.places)
    read = sum(place.tokens for place in seen.places)
    return around.get_template("receipt.html.jinja").render(
        title=_question(seen)[:TITLE],
        answer=values["answer"],
        when=values["when"],
        facts=_facts(seen, values),
        items=[_item(item, places, seen) for item, places in zip(items, ranges, strict=True)],
        nothing="Text alone, no files.",
        left_out=seen.given.left_out,
        prompt={
            "tokens": seen.tokens,
            "text_tokens": seen.tokens - read,
            "ids": [*ids[:IDS], *([f"and {len(ids) - IDS} more"] if len(ids) > IDS else [])],
            "pieces": [_chip(seen.places[piece]) if isinstance(piece, int) else piece for piece in pieces],
        },
        stages=_stages(values["seconds"]),
        remembered=_remembered(seen),
        tables=_tables(values),
        rules=_rules(seen),
    )


def _question(seen: Seen) -> str:
    """The last thing a user wrote."""
    messages = [message for call in seen.given.calls for message in call.messages if message["role"] == "user"]
    texts = [part["text"] for part in messages[-1]["content"] if "text" in part] if messages else []
    return "\n".join(text.strip() for text in texts if text.strip()) or "An answer"


def _facts(seen: Seen, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    answer, seconds = values["answer"], values["seconds"]
    written, took = len(answer["tokens"]), seconds.get("decode", 0.0)
    media = sum(place.tokens for place in seen.places)
    return [
        ("prompt", f"{seen.tokens:,} tokens"),
        ("of media", f"{media:,} tokens"),
        ("written", f"{written:,} tokens"),
        ("speed", f"{written / took:,.1f} tokens/s" if took else "–"),
        ("ended by", ENDS.get(answer["stopped"], str(answer["stopped"]))),
        ("weights", values["model"]["fingerprint"][:12]),
    ]


def _unknown(seen: Seen) -> GivenItem:
    return GivenItem(
        kind="media",
        name="a batch made by hand",
        sha256="not known",
        size=0,
        source=None,
        slots=len(seen.places),
        tokens=0,
        text_tokens=0,
        details={},
    )


def _item(item: GivenItem, numbers: range, seen: Seen) -> dict[str, Any]:
    """A card."""
    places = [seen.places[number] for number in numbers]
    tubelets = [number for number in numbers if seen.places[number].kind == "tubelet"]
    frames = seen.given.rules.get("video", {}).get("tubelet_frames", 1)
    labels = _labels(item, places, frames)
    masks = {number: seen.kept[number] for number in tubelets if number in seen.kept}
    pruned = any(not bool(mask.all()) for mask in masks.values())
    looks = [
        {
            "jpeg": base64.b64encode(seen.looks[number]).decode(),
            "label": labels[number - numbers.start][0],
            "told": labels[number - numbers.start][1],
            "pruned": outline(~masks[number]) if number in masks else None,
            "rows": masks[number].shape[0] if number in masks else 1,
            "cols": masks[number].shape[1] if number in masks else 1,
        }
        for number in numbers
        if number in seen.looks
    ]
    visual = sum(place.kind != "audio" for place in places)
    thing = "pages" if item.kind == "document" else "tubelets"
    return {
        "name": item.name,
        "kind": item.kind,
        "tokens": f"{sum(place.tokens for place in places):,}",
        "lines": _lines(item, places, masks),
        "sha256": item.sha256,
        "size": _bytes(item.size),
        "bars": [float(mask.float().mean()) for mask in masks.values()] if pruned else [],
        "from": labels[tubelets[0] - numbers.start][0] if tubelets else "",
        "to": labels[tubelets[-1] - numbers.start][0] if tubelets else "",
        "looks": looks,
        "tall": item.kind == "document",
        "more": f"{len(looks)} of {visual} {thing} are shown." if looks and len(looks) < visual else "",
    }


def _labels(item: GivenItem, places: list[Place], frames: int) -> list[tuple[str, str]]:
    """Of each place: what it is, and how much of it."""
    details, labels, steps, pages, second = item.details, list[tuple[str, str]](), 0, 0, 0.0
    for place in places:
        tokens = f"{place.tokens:,} tokens"
        if place.kind == "tubelet":
            true, told = (details.get(f"{clock}_seconds", [])[steps * frames :][:frames] for clock in ("true", "told"))
            steps += 1
            slow = any(abs(a - b) >= 0.005 for a, b in zip(true, told, strict=True))
            heard = f", told {', '.join(f'{moment:.2f}' for moment in told)}" if slow else ""
            labels.append((", ".join(map(clock_time, true)) or f"tubelet {steps}", tokens + heard))
        elif place.kind == "image" and item.kind == "document":
            dpi = details.get("effective_dpi", [])
            drawn = f", {dpi[pages]:g} dpi" if dpi else ""
            labels.append((f"page {details['pages'][pages]}{drawn}", tokens))
            pages += 1
        else:
            until = second + place.tokens * TOKEN_SECONDS
            labels.append((f"{clock_time(second)} to {clock_time(until)}" if place.kind == "audio" else "", tokens))
            second = until
    return labels


def _lines(item: GivenItem, places: list[Place], masks: Mapping[int, Tensor]) -> list[str]:
    """What was made of it, in words."""
    d, lines = item.details, list[str]()
    if item.kind == "image":
        lines.append(f"{d['width']}×{d['height']} px, read at {_px(d['grid'])} px")
    if item.kind == "document":
        low, high = (f"{edge(found):g}" for edge in (min, max)) if (found := d.get("effective_dpi")) else ("", "")
        drawn = ", in tiles" if not low else f" at {low} dpi" if low == high else f" at {low} to {high} dpi"
        lines.append(f"{len(d['pages'])} of {d['pages_in_file']} pages{drawn}")
    if item.kind == "video":
        true, told = d["true_seconds"], d["told_seconds"]
        lines.append(
            f"{d['frames']} of {d['frames_in_file']} frames from {clock_time(true[0])} to {clock_time(true[-1])}, "
            f"read at {_px(d['grid'])} px, decoded by {d['decoder']}"
        )
        if abs(true[-1] - told[-1]) >= 0.005:
            lines.append(
                "Times here are true. The model was told those of the clock it was trained with, which runs slow: "
                f"{told[-1]:.2f} s for the last frame, at {clock_time(true[-1])}."
            )
        if masks:
            kept = sum(int(mask.sum()) for mask in masks.values())
            every = sum(mask.numel() for mask in masks.values())
            lines.append(
                f"{kept:,} of {every:,} visual tokens kept ({kept / every:.0%}; asked to remove "
                f"{d['pruning_rate']:.0%})" + ("; dimmed patches were removed" if kept < every else "")
            )
    heard = [place for place in places if place.kind == "audio"]
    if heard:
        tokens, chunks = sum(place.tokens for place in heard), sum(place.items for place in heard)
        seconds = d.get("seconds", d.get("sound_seconds"))
        cut = f" in {chunks} chunks" if chunks > 1 else ""
        lines.append(f"{clock_time(seconds or 0.0)} of sound, {tokens:,} tokens{cut}")
        spans = d.get("sound_spans", [])
        if len(spans) > 1:
            lines.append("told after the frames: " + ", ".join(f"{a:.2f}–{b:.2f} s" for a, b in spans))
    return lines


def outline(mask: Bool[Tensor, "rows cols"]) -> str:
    """An SVG path over the places where the mask is True: one rectangle a run in a row."""
    parts = []
    for y, row in enumerate(mask.tolist()):
        start = None
        for x, on in enumerate([*row, False]):
            if on and start is None:
                start = x
            if not on and start is not None:
                parts.append(f"M{start} {y}h{x - start}v1H{start}z")
                start = None
    return "".join(parts)


def clock_time(seconds: float) -> str:
    """Seconds as a clock shows them: 7.25 s, 3:05.40, 1:00:36.00."""
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:05.2f}"
    return f"{minutes}:{rest:05.2f}" if minutes else f"{rest:.2f} s"


def _chip(place: Place) -> dict[str, Any]:
    return {"kind": place.kind, "tokens": place.tokens}


def _px(grid: Sequence[int], patch: int = 16) -> str:
    return f"{grid[1] * patch}×{grid[0] * patch}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    known = {STAGES[name]: seconds[name] for name in STAGES if seconds.get(name)}
    total = sum(known.values()) or 1.0
    return [
        {"name": name, "seconds": f"{value:.2f} s", "percent": f"{100 * value / total:.2f}"}
        for name, value in known.items()
    ]


def _remembered(seen: Seen) -> str:
    if not seen.memory:
        return ""
    spent = ", ".join(f"{STAGES.get(stage, stage)} {v:.2f} s" for stage, v in seen.memory.items() if stage != "tokens")
    kept = f" Its keys and values were kept as {seen.stored['kv']}." if seen.stored else ""
    return (
        f"{int(seen.memory['tokens']):,} of the {seen.tokens:,} tokens came from a memory and cost nothing now; "
        f"ingesting them took: {spent}.{kept}"
    )


def _tables(values: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Names and values, by title."""
    settings, model = _flat(values["settings"]), values["model"]
    return {
        "Settings of the answer": [
            (name.removeprefix("sampling."), str(value)) for name, value in settings if value not in (None, (), [])
        ],
        "Model and machine": [("weights", model["fingerprint"]), *model["environment"].items()],
    }


def _rules(seen: Seen) -> list[tuple[str, str]]:
    """What the caller asked of the processor, then every rule."""
    asked = seen.given.calls[-1].arguments if seen.given.calls else {}
    rules = [(name, value) for name, value in _flat(seen.given.rules) if name not in asked]
    return [(name, str(value).strip()) for name, value in [*_flat(asked), *rules] if value is not None]


def _flat(values: Mapping[str, Any], stem: str = "") -> list[tuple[str, Any]]:
    """Nested values by dotted names."""
    found = list[tuple[str, Any]]()
    for name, value in values.items():
        found += _flat(value, f"{stem}{name}.") if isinstance(value, dict) else [(f"{stem}{name}", value)]
    return found
