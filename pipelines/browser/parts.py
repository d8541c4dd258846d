"""What the tabs share of Gradio: inputs that hand on files as they are, mistakes told in a sentence, sub-tabs
for pictures and sound, and drawings that can be stopped.

Left out: the tabs.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from pipelines.browser.grids import Cell, Layout
from pipelines.browser.models import PICTURES, SOUNDS, Models
from pipelines.run.command_line import in_words

MISTAKES = (ValueError, TypeError, OSError)


def picture_input(label: str, elem_id: str) -> Any:
    """A picture as the path of its file, whatever it holds: it is read by the project's own reader."""
    return _as_files(
        gr.Image(
            label=label,
            elem_id=elem_id,
            elem_classes=["given"],
            type="filepath",
            sources=["upload", "clipboard"],
            height=320,
            buttons=["fullscreen"],
        )
    )


def sound_input(label: str, elem_id: str) -> Any:
    """A sound as the path of its file."""
    return _as_files(
        gr.Audio(
            label=label,
            elem_id=elem_id,
            type="filepath",
            sources=["upload", "microphone"],
            editable=False,
            buttons=[],
        )
    )


def brush(label: str, elem_id: str) -> Any:
    """A picture to paint a region on."""
    return _only_uploads(
        gr.ImageEditor(
            label=label,
            elem_id=elem_id,
            type="numpy",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=28, colors=["#e11d48"], default_color="#e11d48", color_mode="fixed"),
            eraser=gr.Eraser(default_size=28),
            canvas_size=(320, 320),
            height=430,
            buttons=[],
            format="png",
        )
    )


def clicked(layout: Layout, event: gr.SelectData) -> Cell | None:
    """The cell of a grid that was clicked; None for a gap, and for a picture that was not there yet."""
    x, y = event.index
    known = isinstance(x, int | float) and isinstance(y, int | float)
    return layout.cell_at(x, y) if known else None


def _as_files(component: Any) -> Any:
    """The component, which hands on the paths of its files. (Not by a subclass: Gradio writes a file of stubs
    beside the module of one.)"""
    component.preprocess = lambda payload: None if payload is None else payload.path
    return _only_uploads(component)


def _only_uploads(component: Any) -> Any:
    """The component, which takes no addresses: Gradio would fetch them."""
    take = component.async_move_resource_to_block_cache

    async def only_uploads(url_or_file_path: str | Path | None) -> Any:
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gr.Error("addresses are not fetched; upload the file", print_exception=False)
        return await take(url_or_file_path)

    component.async_move_resource_to_block_cache = only_uploads
    return component


def shown_picture(label: str, elem_id: str, height: int = 320) -> Any:
    """A picture that the page shows, pixel for pixel."""
    return _shown(label, elem_id, height, "pixels")


def shown_grid(label: str, elem_id: str) -> Any:
    """A grid of codes."""
    return _shown(label, elem_id, None, "grid")


def shown_plot(label: str, elem_id: str) -> Any:
    """A plot that the page shows."""
    return _shown(label, elem_id, 240, "plot")


def _shown(label: str, elem_id: str, height: int | None, kind: str) -> Any:
    return gr.Image(
        label=label,
        elem_id=elem_id,
        elem_classes=["roomy", kind],
        format="png",
        interactive=False,
        height=height,
        buttons=["download", "fullscreen"],
    )


def shown_sound(label: str, elem_id: str) -> Any:
    """A player, from which the sound can be downloaded."""
    return gr.Audio(
        label=label, elem_id=elem_id, type="filepath", interactive=False, editable=False, buttons=["download"]
    )


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of which a person's mistake becomes a sentence on the page."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except MISTAKES as error:
            raise _sentence(error) from None

    return wrapper


def told_in_parts(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for what yields."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except MISTAKES as error:
            raise _sentence(error) from None

    return wrapper


def _sentence(error: Exception) -> Exception:
    text = in_words(error) if isinstance(error, ValueError | OSError) else str(error)
    wrong: Exception = gr.Error(escape(text), duration=20, title="That did not work", print_exception=False)
    return wrong


def by_kind(models: Models, tabs: Mapping[str, Callable[[], None]]) -> None:
    """Build what is for pictures and what is for sound, as far as there are models: in a tab each if both."""
    kinds = [kind for kind in tabs if models.of_kind(kind)]
    if len(kinds) == 1:
        tabs[kinds[0]]()
        return
    with gr.Tabs():
        for kind in kinds:
            with gr.Tab({PICTURES: "Pictures", SOUNDS: "Sound"}[kind]):
                tabs[kind]()


def choice_of(names: list[str], label: str, elem_id: str) -> Any:
    """A list of models to choose one of, hidden if there is one."""
    return gr.Dropdown(names, value=names[0], label=label, elem_id=elem_id, visible=len(names) > 1)


class Stops:
    """Which drawings of which sessions were asked to stop."""

    def __init__(self) -> None:
        self._running: dict[str, threading.Event] = {}

    def begin(self, session: str | None) -> Callable[[], bool]:
        """What tells whether the session has asked since; an earlier drawing of it is to stop."""
        self.stop(session)
        event = self._running[session or ""] = threading.Event()
        return event.is_set

    def stop(self, session: str | None) -> None:
        """Ask the session's drawing to stop, if there is one."""
        if event := self._running.pop(session or "", None):
            event.set()

    def on_stop(self, request: gr.Request) -> None:
        """Of a person who clicks on a button, or closes the page."""
        self.stop(request.session_hash)
