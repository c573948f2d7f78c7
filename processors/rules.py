"""Rules: everything that decides how media become tokens, as one value; and the ways of other engines as presets.

`reference` is what the models were trained on. The presets `transformers`, `vllm` and `sglang` differ from it where
those engines do (Nemotron 3 Nano Omni, arXiv 2604.24954, against the engines' behaviour), so that their answers can
be repeated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from processors import audio, image, video

Preset = Literal["reference", "transformers", "vllm", "sglang"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """image: dynamic resolution, or tiles. sampling: a clip's frames where the caller chooses none. pruning: EVS rate.

    page_dpi: the resolution at which a page with a text layer is worth drawing; budgets only lower it. page_label:
    the text before each page. sound: where a clip's own sound goes: "after" its frames, "interleaved" with segments
    of `segment` frames, or "off".
    """

    preset: Preset = "reference"
    image: image.ImageRule | image.TileRule = field(default_factory=image.ImageRule)
    video: video.VideoRule = field(default_factory=video.VideoRule)
    sampling: video.Sampling = field(default_factory=lambda: video.RECIPE)
    audio: audio.AudioRule | None = field(default_factory=audio.AudioRule)
    pruning: float = 0.0
    page_dpi: int = 144
    page_label: str = "Page {label}:\n"
    sound: Literal["after", "interleaved", "off"] = "after"
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
            extra = replace(self.audio, mel=replace(self.audio.mel, extra_frame=True)) if self.audio else None
            each = replace(self.image, budget="each") if isinstance(self.image, image.ImageRule) else self.image
            return replace(self, preset=preset, video=plain, image=each, audio=extra, sound="off")
        if preset == "vllm":
            return replace(self, preset=preset, video=plain, sampling=video.ENGINE_COUNT, audio=hard, sound="off")
        return replace(self, preset=preset, video=plain, sampling=video.ENGINE, audio=hard, sound="off")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a plan or a receipt."""
        return asdict(self)
