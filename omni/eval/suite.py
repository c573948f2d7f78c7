"""Suite: all of the package's own tasks on one model: the card's rows but for random dropping, clicks, needles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omni.eval import result
from omni.eval.result import Result
from omni.eval.run import Progress, Run
from omni.eval.spec import Spec
from omni.eval.task import Task
from omni.eval.tasks import own
from omni.load import OmniProcessor
from omni.model import OmniModel
from omni.train.exam import Score

Begin = Callable[[Task, int], Progress]  # a task and the number of its items → how to tell its progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task's result."""

    task: Task
    spec: Spec
    result: Result

    @property
    def score(self) -> Score:
        """As a row of the card's table."""
        figure = self.result.figure
        return Score(
            skill=self.task.about,
            value=figure.value,
            low=figure.low,
            high=figure.high,
            questions=figure.questions,
        )


def suite(
    model: OmniModel,
    processor: OmniProcessor,
    folder: Path,
    *,
    tasks: Iterable[Task] = own.TASKS,
    limit: int | None = None,
    begin: Begin | None = None,
) -> Iterator[Part]:
    """Each task's result as it is done; records lie in the folder, and what is there already is not asked again."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        spec = task.spec({} if limit is None else {"limit": limit})
        items = task.items(spec)
        records, times = Run(spec, model, processor, folder / f"{task.name}.jsonl").go(
            items, begin(task, len(items)) if begin else None
        )
        yield Part(task=task, spec=spec, result=result.summarise(records, times))
