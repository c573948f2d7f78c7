"""What `make demo` runs: the model in the box answers questions about the samples, as `omni ask` does."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import omni
from demos.samples import samples


def main() -> None:
    """Print each question with its answer and the truth, and how many are right."""
    console = Console()
    model = omni.load("tiny")
    table = Table("file", "question", "answer", "truth", "", "seconds", title="omni ask FILE QUESTION --no-think")
    right, questions = 0, samples()
    for asked in questions:
        started = time.perf_counter()
        answer = omni.ask(asked.question, *map(str, asked.files), model=model, think=False, max_new_tokens=64).text
        same = answer == asked.truth
        right += same
        mark = "[green]right[/]" if same else "[red]wrong[/]"
        took = f"{time.perf_counter() - started:.2f}"
        names = " ".join(file.name for file in asked.files)
        table.add_row(names, asked.question, escape(answer), asked.truth, mark, took)
    console.print(table)
    console.print(f"{right} of {len(questions)} right")


if __name__ == "__main__":
    main()
