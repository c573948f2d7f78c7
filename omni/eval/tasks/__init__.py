"""Tasks by name: benchmarks that are read, and those that this package makes itself."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from omni.eval.spec import Spec, read
from omni.eval.task import Task
from omni.eval.tasks import documents, own, screens, sounds, texts, videos

ALL: tuple[Task, ...] = (
    *documents.TASKS,
    *videos.TASKS,
    *sounds.TASKS,
    *texts.TASKS,
    *screens.TASKS,
    *own.TASKS,
)
TASKS = {task.name: task for task in ALL}


def named(name: str) -> Task:
    """Raises ValueError for a name that is unknown."""
    if name not in TASKS:
        raise ValueError(f"eval: the task {name!r} is unknown; want one of {', '.join(TASKS)}")
    return TASKS[name]


def spec_of(what: str) -> Spec:
    """A spec from a file, or a task's own from its name. Raises ValueError for what is neither."""
    if what in TASKS:
        return TASKS[what].spec()
    if not Path(what).suffix:
        close = get_close_matches(what, TASKS, 3) or list(TASKS)
        raise ValueError(f"eval: {what!r} is no task and no .yaml or .toml file; want one of {', '.join(close)}")
    values = read(Path(what))
    if not isinstance(values.get("task"), str):
        raise ValueError(f"spec: {what} names no task; want one of {', '.join(TASKS)}")
    return named(values["task"]).spec(values)
