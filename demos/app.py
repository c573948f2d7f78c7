"""The demo: one model, five tabs, any number of visitors.

    omni demo                        the model in the box, at http://127.0.0.1:7860
    omni demo --model path/to/checkpoint --port 8000

Visitors share the model and nothing else. What they upload lies in a folder that is made for this run and deleted at
its end; no other file is ever opened for them.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from html import escape
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
FOLDER = "GRADIO_TEMP_DIR"  # where the server keeps uploads
DAY = 24 * 3600


def build(desk: Any) -> Any:
    """The app of a loaded model (`demos.desk.Desk`): Gradio's Blocks."""
    import gradio as gr

    from demos import ask_tab, document_tab, hood_tab, listen_tab, video_tab
    from demos.samples import a_few, of_kind, samples
    from demos.session import Session

    every = samples()
    with gr.Blocks(title="omni", analytics_enabled=False, delete_cache=(3600, DAY), fill_width=True) as app:
        session = gr.State(Session(), time_to_live=DAY)
        gr.HTML(f'<header class="top"><h1>omni</h1><p>Documents, pictures, videos and sounds, read by '
                f"<b>{escape(desk.title)}</b> on this machine.</p></header>")  # fmt: skip
        with gr.Tabs():
            with gr.Tab("Ask"):
                ask_tab.build(desk, session, a_few(every))
            with gr.Tab("Document"):
                document_tab.build(desk, session, of_kind(every, ".pdf"))
            with gr.Tab("Long video"):
                video_tab.build(desk, session, of_kind(every, ".mp4", ".mov", ".webm", ".mkv"))
            with gr.Tab("Listen"):
                listen_tab.build(desk, session, of_kind(every, ".wav", ".mp3", ".flac", ".ogg", ".m4a"))
            with gr.Tab("Under the hood") as hood:
                hood_tab.build(desk, session, hood)
    return app


def look() -> dict[str, Any]:
    """Arguments of Gradio's `launch` that decide how the app looks."""
    from gradio.themes import Soft

    theme = Soft(
        primary_hue="green",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        block_border_width="1px",
        input_border_width="1px",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
        block_title_background_fill="none",
        block_title_text_color="*body_text_color_subdued",
        block_title_padding="0",
        block_title_text_weight="500",
        block_label_background_fill="*background_fill_primary",
        block_label_background_fill_dark="*background_fill_primary",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_weight="500",
    )
    script = (HERE / "app.js").read_text()
    return {"theme": theme, "css": (HERE / "app.css").read_text(), "head": f"<script>{script}</script>"}


def closed(samples: Path) -> dict[str, Any]:
    """Arguments of Gradio's `launch` that decide what can be read: uploads, and the samples in the box."""
    return {"allowed_paths": [str(samples)], "max_file_size": "2gb", "strict_cors": True, "footer_links": []}


def launch(model: str = "tiny", port: int | None = None, share: bool = False, *, wait: bool = True) -> Any:
    """Load a model ("tiny", a folder or a hub repository's id) and serve the demo; the app.

    port: None: 7860, or the next that is free. share: also at a public address of Gradio's. wait: until Ctrl-C.
    Raises ValueError for a model that cannot be loaded, ImportError without Gradio, OSError for a port in use.
    """
    folder = tempfile.mkdtemp(prefix="omni-demo-")
    os.environ[FOLDER] = folder  # before Gradio is imported, which reads it then
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    ends = wait and threading.current_thread() is threading.main_thread()  # others are sent no signals
    before = signal.signal(signal.SIGTERM, _end) if ends else None
    try:
        desk = _desk(model)
        try:
            serve(app := build(desk), port, share, wait)
        finally:
            if wait:
                desk.close()
    finally:
        if wait:
            shutil.rmtree(folder, ignore_errors=True)
        if ends:
            signal.signal(signal.SIGTERM, before)
    return app


def _end(*_: object) -> NoReturn:
    """What ends a service: as Ctrl-C, so that visitors' files are removed; once, lest that is cut short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(143)


def _desk(name: str) -> Any:
    from demos.desk import Desk
    from demos.session import LIMITS
    from omni.load import load

    model, processor = load(name)
    processor.limits = LIMITS
    return Desk(model, processor, name)


def serve(app: Any, port: int | None, share: bool, wait: bool) -> None:
    """Serve an app; see `launch`."""
    from demos.samples import SAMPLES

    app.queue(default_concurrency_limit=None).launch(
        server_port=port, share=share, prevent_thread_lock=not wait, quiet=not wait, **look(), **closed(SAMPLES)
    )


if __name__ == "__main__":
    launch()
