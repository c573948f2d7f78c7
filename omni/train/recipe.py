"""The recipe of the model in the box, stage by stage; each resumes where it stopped.

The vision tower, the audio tower and the language model learn side by side (they need nothing of one another), then
`projection` joins them, beside the last steps of the language model if need be, `together` teaches the whole,
`drafting` the MTP head, and `export` writes what is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from omni.load import load
from omni.model import OmniModel
from omni.train.audio_tower import audio
from omni.train.binding import binding
from omni.train.data.choir import Choir
from omni.train.data.corpus import SHARD
from omni.train.data.voices import voices
from omni.train.drafting import drafting
from omni.train.exam import PAPERS, Marks, Score, differences, marks_of, record, score, table
from omni.train.joining import Joined, load_language, load_parts, projection, together
from omni.train.language import language
from omni.train.milestone import keep, restore
from omni.train.mixture import ALL, PHASES, Phase
from omni.train.tokens import tokenizer
from omni.train.towers import vision

TINY = Path(__file__).parents[1] / "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Steps of each stage; the language stage's phases, patches of a vision step and of a step's charts, tokens of an
    audio step, of a step of the projectors or the drafting head, and of a step of the whole (in each process).
    """

    language: int = 10500
    vision: int = 15000
    audio: int = 4000
    projection: int = 900
    binding: int = 1200
    together: int = 3500
    drafting: int = 1600
    phases: tuple[Phase, ...] = PHASES
    patches: int = 3000
    bound_patches: int = 6000
    audio_tokens: int = 700
    joint_tokens: int = 2048
    whole_tokens: int = 4096
    voices: tuple[str, ...] | None = None  # all, or those of these names
    shards: int | None = None
    utterances: int = SHARD


SHIPPED = Sizes()
SMOKE = Sizes(
    language=2, vision=2, audio=2, projection=2, binding=2, together=2, drafting=2,
    phases=(Phase(until=9, tokens=400, weights=ALL),), patches=200, bound_patches=200, audio_tokens=100,
    joint_tokens=300, whole_tokens=300,
    voices=("espeak en-us", "espeak en-us+m3"), shards=1, utterances=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Where checkpoints and the log lie, how large the stages are, and where the result goes."""

    folder: Path
    sizes: Sizes = SHIPPED
    quiet: bool = False
    out: Path = TINY

    def language(self) -> None:
        """The backbone on what the renderer knows."""
        language(self.folder, steps=self.sizes.language, phases=self.sizes.phases, quiet=self.quiet)

    def vision(self) -> None:
        """The vision tower alone."""
        vision(self.folder, steps=self.sizes.vision, patches=self.sizes.patches, quiet=self.quiet)

    def audio(self) -> None:
        """The audio tower alone."""
        taught, tested = self._choir().spoken, self._choir(held_out=True).spoken
        audio(self.folder, taught, tested, steps=self.sizes.audio, tokens=self.sizes.audio_tokens, quiet=self.quiet)

    def projection(self) -> None:
        """Projectors and towers imitate the stand-in."""
        joined = Joined()
        load_parts(joined, dict.fromkeys(("language", "vision tower", "audio tower"), self.folder))
        projection(joined, self.folder, self._choir(), steps=self.sizes.projection, tokens=self.sizes.joint_tokens,
                   quiet=self.quiet)  # fmt: skip

    def binding(self) -> None:
        """The vision tower on what belongs together in charts."""
        binding(self._joined("projection"), self.folder, steps=self.sizes.binding, patches=self.sizes.bound_patches,
                quiet=self.quiet)  # fmt: skip

    def together(self) -> None:
        """The whole model."""
        joined = Joined()
        if not (self.folder / "together.pt").is_file():  # which needs nothing of the stages before
            joined = self._joined("binding")
            load_language(joined, _checkpoint(self.folder, "language"))
        together(joined, self.folder, self._choir(), steps=self.sizes.together, tokens=self.sizes.whole_tokens,
                 quiet=self.quiet)  # fmt: skip

    def drafting(self) -> None:
        """The MTP head."""
        model = self._joined("together").model
        drafting(model, self.folder, self._choir(), steps=self.sizes.drafting, tokens=self.sizes.joint_tokens,
                 quiet=self.quiet)  # fmt: skip

    def export(self) -> None:
        """Write the model as a checkpoint in the released layout, in bfloat16, with its tokenizer and template."""
        saved = _checkpoint(self.folder, "drafting")
        model = Joined().model
        model.load_state_dict(saved)
        export(model, self.out)

    def exam(self) -> None:
        """Examine what `export` wrote; the marks lie beside it, in exam.json."""
        model, processor = load(self.out)
        voice, marks, scores = self._choir(held_out=True), dict[str, Marks](), list[Score]()
        for paper in PAPERS:
            marks[paper.name] = marks_of(model, processor, voice, paper)
            scores.append(score(paper.name, marks[paper.name]))
            print(table(scores[-1:]).splitlines()[-1], flush=True)
            found = {"scores": record(scores), "differences": record(differences(marks))}
            (self.out / "exam.json").write_text(json.dumps(found, indent=1) + "\n")
        print(table(differences(marks), signed=True), flush=True)

    def keep(self) -> None:
        """Keep with the code what training needs beside the shipped weights."""
        keep(self.folder)

    def restore(self) -> None:
        """Go on, on another machine, from the shipped weights and what was kept beside them."""
        print("restored" if restore(self.folder, TINY) else "the checkpoint is there already")

    def _joined(self, stage: str) -> Joined:
        joined = Joined()
        joined.load_state_dict(_checkpoint(self.folder, stage))
        return joined

    def _choir(self, held_out: bool = False) -> Choir:
        sizes, chosen = self.sizes, None
        if sizes.voices is not None:
            chosen = [voice for voice in voices(held_out) if voice.name in sizes.voices]
        return Choir(self.folder.parent / "speech", held_out, chosen=chosen, shards=sizes.shards, size=sizes.utterances)


STAGES: dict[str, Callable[[Recipe], None]] = {
    "language": Recipe.language,
    "vision": Recipe.vision,
    "audio": Recipe.audio,
    "projection": Recipe.projection,
    "binding": Recipe.binding,
    "together": Recipe.together,
    "drafting": Recipe.drafting,
    "export": Recipe.export,
}
BESIDE: dict[str, Callable[[Recipe], None]] = {  # when told only
    "exam": Recipe.exam,
    "keep": Recipe.keep,
    "restore": Recipe.restore,
}


def export(model: OmniModel, out: Path) -> None:
    """Write a model in bfloat16, with the small model's tokenizer and template."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer().save_pretrained(out)


def tiny(recipe: Recipe, stage: str = "all") -> None:
    """Run one stage, or all in order. Raises ValueError for an unknown stage."""
    if stage != "all" and stage not in STAGES | BESIDE:
        raise ValueError(f"train: stage {stage!r} is unknown; want all or one of {', '.join(STAGES | BESIDE)}")
    torch.set_flush_denormal(True)  # squared ReLUs leave many numbers next to nothing, which are slow
    try:
        if stage in BESIDE:
            BESIDE[stage](recipe)
        for name, run in STAGES.items():
            if stage in ("all", name):
                run(recipe)
    finally:
        torch.set_flush_denormal(False)


def _checkpoint(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    path = folder / f"{stage}.pt"
    if not path.is_file():
        raise ValueError(f"train: {path} is missing; run the stage {stage} first")
    return torch.load(path, weights_only=True)["module"]
