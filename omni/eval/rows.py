"""Rows: a benchmark's table, read by `datasets` from the hub or from a local folder in the same schema.

Pictures and sounds stay the bytes they are: this project's own decoders open them, so that a receipt names their hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni.eval.item import Item, Lazy
from omni.eval.spec import Source, Spec

Make = Callable[[Spec, int, Mapping[str, Any]], Item]


def rows(source: Source, columns: Sequence[str]) -> Any:
    """The table, a row a mapping. Raises ValueError where it cannot be had, or a column is missing.

    A folder holds Parquet, JSON lines or CSV, a split in test.parquet or test-0.parquet; with a name, in a folder of
    it.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise ValueError("eval: datasets is not installed; pip install 'omni[eval]'") from None
    if not source.path:
        raise ValueError("eval: source.path is empty; name a repository of the hub, or a local folder")
    where = _where(source)
    try:
        table: Any = datasets.load_dataset(**where)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"eval: {source.path} {source.name or ''}, split {source.split}: {error}") from None
    if missing := [column for column in columns if column not in table.column_names]:
        raise ValueError(
            f"eval: {source.path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}"
        )
    for column, kind in table.features.items():
        if isinstance(kind, datasets.Image | datasets.Audio | datasets.Video):
            table = table.cast_column(column, type(kind)(decode=False))
    return table


READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


def _where(source: Source) -> dict[str, Any]:
    """What `datasets` is asked for. Raises ValueError where a folder has no file of the split."""
    if not Path(source.path).is_dir():
        if source.path.startswith((".", "/", "~")) or source.path.count("/") != 1:
            raise ValueError(
                f"eval: there is no folder {source.path}; source.path names one, or a repository of the hub as "
                "owner/name"
            )
        return {"path": source.path, "name": source.name, "split": source.split, "revision": source.revision}
    folder = Path(source.path) / (source.name or "")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in READERS] if folder.is_dir() else []
    found = [path for path in files if path.stem == source.split or path.stem.startswith(f"{source.split}-")]
    if not found:
        raise ValueError(
            f"eval: {folder} has no file of split {source.split}; want {source.split}.parquet, .jsonl, .json or .csv"
        )
    return {"path": READERS[found[0].suffix], "data_files": [str(path) for path in found], "split": "train"}


def items(make: Make, columns: Sequence[str]) -> Callable[[Spec], Lazy]:
    """A task's items from rows with these columns. A row that is otherwise than the task's raises ValueError."""

    return lambda spec: Lazy(rows(spec.source, columns), checked(make, spec))


def checked(make: Make, spec: Spec) -> Callable[[int, Mapping[str, Any]], Item]:
    """An item from a row's number and the row; ValueError where that is otherwise than the task's."""

    def made(index: int, row: Mapping[str, Any]) -> Item:
        try:
            return make(spec, index, row)
        except (LookupError, TypeError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"eval: {spec.source.path}: row {index} is not as {spec.task} has them ({why}); check the data"
            ) from error

    return made


def file_of(value: Any, spec: Spec) -> Any:
    """A picture's or sound's bytes or path, whatever form a row has it in."""
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else str(beside(spec, value["path"]))
    return str(beside(spec, value)) if isinstance(value, str) else value


def beside(spec: Spec, name: str) -> Path:
    """A file that a row names, in the folder of the source's media. Raises ValueError where it lies outside."""
    return within(Path(spec.source.media or spec.source.path), name, "source.media names the folder of the videos or "
                  "documents")  # fmt: skip


def within(folder: Path, name: str, hint: str) -> Path:
    """A file in a folder. Raises ValueError where it lies outside, or is missing: then with the hint."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"eval: {name} lies outside {folder}; check the data")
    if not path.is_file():
        raise ValueError(f"eval: {path} is missing; {hint}")
    return path


def image(value: Any, spec: Spec) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image", "image": file_of(value, spec)}


def audio(value: Any, spec: Spec) -> dict[str, Any]:
    """A part of a message; of an array of samples, with its rate."""
    if isinstance(value, Mapping) and "array" in value:
        return {"type": "audio", "audio": value["array"], "rate": value["sampling_rate"]}
    return {"type": "audio", "audio": file_of(value, spec)}


def video(spec: Spec, names: Sequence[str]) -> dict[str, Any]:
    """A part of a message: the first of these files that is there. Its sound is heard where the preset has it so."""
    for name in names[:-1]:
        folder = Path(spec.source.media or spec.source.path)
        if (folder / name).is_file():
            return {"type": "video", "path": str(beside(spec, name))}
    return {"type": "video", "path": str(beside(spec, names[-1]))}


def lettered(options: Sequence[str]) -> str:
    """Options one below the other, as A. B. C."""
    return "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))


def letter_of(options: Sequence[str], truth: str) -> str:
    """The letter of the option that is the truth, but for case. Raises ValueError where none is."""
    said = [option.strip().lower() for option in options]
    if truth.strip().lower() not in said:
        raise ValueError(f"eval: the truth {truth!r:.80} is none of the options {list(options)!r:.200}; check the data")
    return chr(ord("A") + said.index(truth.strip().lower()))


def split_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options that carry their letters already ("A. red"), without them."""
    return tuple(
        option[2:].strip() if option[:2] in (f"{chr(ord('A') + i)}.", f"{chr(ord('A') + i)})") else option.strip()
        for i, option in enumerate(options)
    )
