"""`omni demo`: the app in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from omni.shell import fail


def demo(
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    port: Annotated[int | None, typer.Option(help="none: 7860, or the next that is free")] = None,
    share: Annotated[bool, typer.Option("--share/--no-share", help="also at a public address, by Gradio")] = False,
) -> None:
    """Ask, read documents, watch long videos and listen, in the browser."""
    from demos.app import launch

    try:
        launch(model, port, share)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        fail("demo: Gradio is missing; pip install 'omni[demo]'")
    except (ValueError, OSError) as error:
        fail(f"demo: {error}")
