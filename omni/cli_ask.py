"""`omni ask`: a question about files, or about what was ingested; the answer comes as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from omni.shell import check_output, fail, show, warn


def ask(
    what: Annotated[
        list[str], typer.Argument(metavar="[FILE]... QUESTION", help="pictures, PDFs, videos, sounds, or a memory")
    ],
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    think: Annotated[bool, typer.Option("--think/--no-think", help="think before answering")] = True,
    budget: Annotated[int | None, typer.Option(help="tokens to think, 0: none")] = None,
    effort: Annotated[str | None, typer.Option(help="low, medium or high, where the model knows that")] = None,
    context: Annotated[int | None, typer.Option(help="tokens that the prompt may take")] = None,
    password: Annotated[str | None, typer.Option(help="of the PDFs that are encrypted")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="thinking and answer together")] = 1024,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="of the likeliest tokens that together reach this share")] = None,
    top_k: Annotated[int | None, typer.Option(help="of so many of the likeliest tokens")] = None,
    seed: Annotated[int | None, typer.Option(help="of the random numbers")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends the answer; may be given again")] = None,
    schema: Annotated[Path | None, typer.Option(help="a JSON schema that the answer must satisfy, in a file")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="an answer that is allowed; may be given again")] = None,
    draft: Annotated[str | None, typer.Option(help="tokens to draft with the multi-token head, or auto")] = None,
    receipt: Annotated[Path | None, typer.Option(help="what the model was given, as a page (.html) or .json")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Ask a question about files, or about what `omni ingest` kept; the answer comes as it is written."""
    *files, question = what
    if _is_file(question):
        fail(f'ask: the question is missing, {question} is a file; write: omni ask {question} "What is this?"')
    if receipt is not None:
        check_output("--receipt", receipt, (".json", ".html"), files)
    settings: dict[str, Any] = {
        "stop": stop or None,
        "schema": schema and _schema(schema),
        "choices": choice or None,
        "draft": int(draft) if draft and draft.isdecimal() else draft,
    }

    from omni.ask import ask as begin

    thinking = False
    try:
        pieces = begin(
            question,
            *files,
            model=model,
            think=think,
            budget=budget,
            effort=effort,
            context=context,
            password=password,
            stream=True,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            **{name: value for name, value in settings.items() if value is not None},
        )
        for piece in pieces:
            if as_json:
                continue
            if thinking and not piece.thinking:
                show("", aside=True)
            thinking = piece.thinking
            show(piece.text, "dim" if thinking else "", end="", aside=thinking)
        (result,) = pieces.results
        if as_json:
            typer.echo(json.dumps(result.to_dict()))
        else:
            show("")
        if receipt is not None:
            result.receipt.save(receipt)
    except ValueError as error:
        fail(str(error))
    if result.stopped == "length" and not as_json:
        warn(f"cut off after {max_new_tokens} tokens; --max-new-tokens allows more")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        fail(f"--schema {path}: {error}; want a file with a JSON schema")
