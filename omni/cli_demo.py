"""`omni demo`: the app in the browser."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from omni.shell import fail


def demo(
    model: Annotated[str, typer.Option(help="tiny, a checkpoint's folder, or a hub repository's id")] = "tiny",
    port: Annotated[int | None, typer.Option(help="none: 7860, or the next that is free", min=1, max=65535)] = None,
    share: Annotated[bool, typer.Option("--share/--no-share", help="also at a public address, by Gradio")] = False,
) -> None:
    """Ask, read documents, watch long videos and listen, in the browser."""
    if port is not None:
        _check_free(port)
    from demos.app import launch

    try:
        launch(model, port, share)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        fail("demo: Gradio is missing; pip install 'omni[demo]'")
    except (ValueError, OSError) as error:
        fail(f"demo: {error}")


def _check_free(port: int) -> None:
    """End at once, before a model is loaded, where a port cannot be had."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            fail(f"demo: port {port} cannot be had ({error.strerror}); choose another, or leave out --port")
