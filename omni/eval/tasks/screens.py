"""Screens: ScreenSpot, where to click."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni.eval.item import Item
from omni.eval.rows import image, items
from omni.eval.spec import Spec
from omni.eval.task import Task
from processors.media import picture_size

Row = Mapping[str, Any]
ASKED = {
    "share": "as shares of the picture's width and height, such as 0.25, 0.50",
    "thousand": "in thousandths of the picture's width and height, such as 250, 500",
    "pixel": "in pixels of the picture",
}


def _screenspot(spec: Spec, index: int, row: Row) -> Item:
    """The box is (left, top, right, bottom) as shares of the picture."""
    part, unit = image(row["image"], spec), spec.options["unit"]
    if unit not in ASKED:
        raise ValueError(f"spec: options.unit is {unit!r}; want one of {', '.join(ASKED)}")
    return Item(
        name=str(index),
        media=(part,),
        fields={"question": row["instruction"], "unit": ASKED[unit]},
        truth={"box": [float(side) for side in row["bbox"]], "size": _size(unit, part["image"])},
        groups={"type": row["data_type"], "source": row["data_source"]},
    )


def _size(unit: str, picture: object) -> list[float]:
    """The picture's width and height in the unit that the answer is asked for in."""
    if unit == "pixel":
        return [float(side) for side in picture_size(picture)]
    return [1000.0, 1000.0] if unit == "thousand" else [1.0, 1.0]


TASKS = (
    Task(
        name="screenspot",
        about="where to click for an instruction; the point lies in the element's box. unit: share, thousand or pixel",
        items=items(_screenspot, ("image", "instruction", "bbox", "data_type", "data_source")),
        rule="click",
        prompt="Where do I click to do this: {question}\nAnswer with x, y {unit}.",
        source={"path": "rootsautomation/ScreenSpot", "split": "test"},
        options={"unit": "share"},
    ),
)
