"""What `make demo` runs: the model in the box answers questions about the samples, as `omni ask` does."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import omni

SAMPLES = Path(__file__).parent / "samples"


def main() -> None:
    """Print each question with its answer and the truth, and how many are right."""
    console = Console()
    model = omni.load("tiny")
    table = Table("file", "question", "answer", "truth", "", "seconds", title="omni ask FILE QUESTION --no-think")
    right, questions = 0, json.loads((SAMPLES / "questions.json").read_text())
    for asked in questions:
        started = time.perf_counter()
        files = [str(SAMPLES / name) for name in asked["files"]]
        answer = omni.ask(asked["question"], *files, model=model, think=False, max_new_tokens=64).text
        same = answer == asked["truth"]
        right += same
        mark = "[green]right[/]" if same else "[red]wrong[/]"
        took = f"{time.perf_counter() - started:.2f}"
        table.add_row(" ".join(asked["files"]), asked["question"], answer, asked["truth"], mark, took)
    console.print(table)
    console.print(f"{right} of {len(questions)} right")


if __name__ == "__main__":
    main()
