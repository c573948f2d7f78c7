"""Rules: everything that decides how media become tokens, as one value; and the ways of other engines as presets.

`reference` is what the models were trained on. The presets `transformers`, `vllm` and `sglang` differ from it where
those engines do (Nemotron 3 Nano Omni, arXiv 2604.24954, against the engines' behaviour), so that their answers can
be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from processors import audio, image, video

Preset = Literal["reference", "transformers", "vllm", "sglang"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
SoundPlace = Literal["after", "interleaved", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """image: dynamic resolution, or tiles. sampling: a clip's frames where the caller chooses none. pruning: EVS rate.

    page_dpi: the resolution at which a page with a text layer is worth drawing; budgets only lower it. page_label:
    the text before each page. sound: where a clip's own sound goes: "after" its frames, "interleaved" with segments
    of `segment` frames, or "off". Of the engines sglang alone hears it unasked, at the prompt's end; its preset puts
    it behind the clip's frames.
    """

    preset: Preset = "reference"
    image: image.ImageRule | image.TileRule = field(default_factory=image.ImageRule)
    video: video.VideoRule = field(default_factory=video.VideoRule)
    sampling: video.Sampling = field(default_factory=lambda: video.RECIPE)
    audio: audio.AudioRule | None = field(default_factory=audio.AudioRule)
    pruning: float = 0.0
    page_dpi: int = 144
    page_label: str = "Page {label}:\n"
    sound: SoundPlace = "after"
    segment: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.pruning < 1:
            raise ValueError(f"Rules: pruning rate {self.pruning}; want 0 <= rate < 1")
        if self.segment < 1 or self.segment % self.video.tubelet_frames:
            raise ValueError(
                f"Rules: segments of {self.segment} frames; want a multiple of {self.video.tubelet_frames}"
            )

    @property
    def pixels(self) -> image.PixelRule:
        return self.image.pixels

    def with_preset(self, name: str) -> Rules:
        """These rules as another engine would have them. Raises ValueError for an unknown preset."""
        preset = next((known for known in PRESETS if known == name), None)
        if preset is None:
            raise ValueError(f"Rules: preset {name!r} is unknown; want one of {', '.join(PRESETS)}")
        if preset == "reference":
            return replace(self, preset=preset)
        plain = replace(self.video, prefix="")
        hard = (
            replace(self.audio, mel=replace(self.audio.mel, shortest=1600), chunk=audio.VLLM.chunk)
            if self.audio
            else None
        )
        if preset == "transformers":
            extra = (
                replace(self.audio, mel=replace(self.audio.mel, extra_frame=True), chunk=audio.TRANSFORMERS.chunk)
                if self.audio
                else None
            )
            each = replace(self.image, budget="each") if isinstance(self.image, image.ImageRule) else self.image
            return replace(self, preset=preset, video=plain, image=each, audio=extra, sound="off")
        if preset == "vllm":
            return replace(self, preset=preset, video=plain, sampling=video.ENGINE_COUNT, audio=hard, sound="off")
        return replace(self, preset=preset, video=plain, sampling=video.ENGINE, audio=hard)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a plan or a receipt."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rules:
        """The inverse of `to_dict`, also of what JSON made of it. Raises ValueError for other fields."""
        return _read("Rules", (cls,), values)


_PARTS: dict[str, tuple[type, ...]] = {
    "image": (image.ImageRule, image.TileRule),
    "video": (video.VideoRule,),
    "sampling": (video.Rate, video.Count, video.Keyframes, video.Moments),
    "audio": (audio.AudioRule,),
    "pixels": (image.PixelRule,),
    "mel": (audio.MelRule,),
    "chunk": (audio.ChunkRule,),
}


def _read(name: str, kinds: tuple[type, ...], values: Mapping[str, Any]) -> Any:
    """The one of these kinds that has just these fields; a list is a tuple of it, a mapping a part."""
    kind = next((kind for kind in kinds if {field.name for field in fields(kind)} == set(values)), None)
    if kind is None:
        known = " or ".join(", ".join(field.name for field in fields(kind)) for kind in kinds)
        raise ValueError(f"Rules: {name} with {', '.join(map(str, values))} came; want {known}")
    made = dict[str, Any]()
    for part, value in values.items():
        inner = isinstance(value, Mapping)
        made[part] = _read(part, _PARTS[part], value) if inner else tuple(value) if isinstance(value, list) else value
    return kind(**made)
