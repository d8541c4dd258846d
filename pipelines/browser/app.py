"""The page as a server: its tabs put together, served from this machine alone, and taken down.

Left out: what the tabs do.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from pipelines.browser import compare, draw, edit, rebuild
from pipelines.browser.files import Folder
from pipelines.browser.models import Models
from pipelines.browser.parts import Stops

TITLE = "tokenloom: see, hear and edit codes"
# Of the machine that looks at the page: Gradio's own would come from Google.
FONT, FONT_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
LARGEST_UPLOAD = "100mb"
# People whose work is remembered at once, and seconds after which files of uploads are removed.
SESSIONS, KEPT = 50, 3600
CSS = """
.gradio-container, .gradio-container main { width: 100% !important; margin: auto; }
.gradio-container main { max-width: 1500px !important; }
.given img, .pixels img { image-rendering: pixelated; }
.given img { width: 100%; height: 100%; object-fit: contain; }
.roomy .image-container { padding-top: 34px; }
.plot .image-container img { object-fit: contain; }
.pairs .thumbnail-item { aspect-ratio: 2 / 1 !important; }
.plots .thumbnail-item { aspect-ratio: 5 / 2 !important; }
.plots.pairs .thumbnail-item { aspect-ratio: 5 / 1 !important; }
.prose { overflow-x: auto; }
.prose table { width: 100%; }
.prose th, .prose td { word-break: normal !important; overflow-wrap: normal !important; }
footer { display: none !important; }
"""


@contextmanager
def served(models: Models, host: str, port: int) -> Iterator[str]:
    """The page's address, for as long as it is served. Uploads and results lie in a folder that is removed
    then."""
    folder = Folder()
    # Gradio reads these when its components are made.
    os.environ.update(GRADIO_TEMP_DIR=str(folder.path), GRADIO_ANALYTICS_ENABLED="False")
    for noisy in ("httpx", "httpx2", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        page = build(models, folder)
        _, address, _ = page.launch(**_options(host, port))
        yield address
        page.close(verbose=False)
    finally:
        folder.remove()


def build(models: Models, folder: Folder) -> Any:
    """The page, not served yet."""
    stops = Stops()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT)) as page:
        gr.Markdown("# tokenloom\nPictures and sound as codes: rebuild them, change codes, draw new ones.")
        with gr.Tabs():
            with gr.Tab("Rebuild", id="rebuild"):
                rebuild.build(models, folder)
            with gr.Tab("Edit", id="edit"):
                edit.build(models, folder, stops)
            with gr.Tab("Draw", id="draw"):
                draw.build(models, folder, stops)
            with gr.Tab("Compare", id="compare"):
                compare.build(models, folder)
        page.unload(stops.on_stop)
    page.queue(default_concurrency_limit=4)
    return page


def wait_for_end() -> None:
    """Wait until the process is asked to end."""
    threading.Event().wait()


def _options(host: str, port: int) -> dict[str, Any]:
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "inbrowser": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
        "allowed_paths": [],
        "footer_links": [],
        "max_file_size": LARGEST_UPLOAD,
        "state_session_capacity": SESSIONS,
        "theme": gr.themes.Default(font=FONT, font_mono=FONT_MONO),
        "css": CSS,
    }
