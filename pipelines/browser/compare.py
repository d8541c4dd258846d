"""The tab Compare: the same picture or sound through several tokenizers, beside each other and in one table.

Left out: what is computed (`rebuilt.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from pipelines.browser.files import Folder, Given, picture_of, read_picture, read_sound, write_sound
from pipelines.browser.models import PICTURES, SOUNDS, Models
from pipelines.browser.parts import by_kind, picture_input, shown_sound, sound_input, told
from pipelines.browser.rebuilt import Rebuilt, measures, rebuild, table
from tokenizer import Tokenizer


def build(models: Models, folder: Folder) -> None:
    """The tab, within a page."""
    by_kind(
        models,
        {PICTURES: lambda: _build_pictures(models, folder), SOUNDS: lambda: _build_sounds(models, folder)},
    )


def through(
    models: Models, names: Sequence[str], read: Callable[[Tokenizer], Given]
) -> dict[str, tuple[Tokenizer, Rebuilt]]:
    """By name what tokenizers make of what `read` reads for each, at its own size or rate. `ValueError` for
    none."""
    if not names:
        raise ValueError("no tokenizer is chosen; choose one or more")
    return {name: (tok := models.tokenizer(name), rebuild(tok, read(tok))) for name in names}


def table_of(done: Mapping[str, tuple[Tokenizer, Rebuilt]]) -> str:
    """What they keep in one table, a column for each."""
    found = {name: measures(*pair) for name, pair in done.items()}
    keys = list(dict.fromkeys(key for column in found.values() for key in column))
    return table(("", *found), [[key, *(column.get(key, "") for column in found.values())] for key in keys])


def _chosen(models: Models, kind: str, elem_id: str) -> Any:
    names = models.of_kind(kind)
    return gr.CheckboxGroup(names, value=names, label="tokenizers", elem_id=elem_id)


def _build_pictures(models: Models, folder: Folder) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            given = picture_input("Your picture", "compare-picture")
            names = _chosen(models, PICTURES, "compare-picture-tokenizers")
            start = gr.Button("Compare", variant="primary", elem_id="compare-picture-start")
        with gr.Column(scale=3, min_width=280):
            shown = gr.Gallery(
                label="Original and rebuilt",
                elem_id="compare-picture-shown",
                elem_classes=["pixels"],
                columns=4,
                object_fit="contain",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
            )
    numbers = gr.Markdown(elem_id="compare-picture-table")

    def run(path: str | None, chosen: list[str]) -> tuple[Any, ...]:
        done = through(models, chosen, lambda tok: read_picture(path, tok))
        pictures = []
        for name, (tok, made) in done.items():
            before = (folder.picture(picture_of(made.given.x, tok), "original"), f"original for {name}")
            pictures += [before, (folder.picture(picture_of(made.x_hat, tok), "rebuilt"), name)]
        return pictures, table_of(done)

    start.click(told(run), [given, names], [shown, numbers], api_name="compare_pictures")


def _build_sounds(models: Models, folder: Folder) -> None:
    everyone = models.of_kind(SOUNDS)
    with gr.Row():
        with gr.Column(min_width=280):
            given = sound_input("Your sound", "compare-sound")
            names = _chosen(models, SOUNDS, "compare-sound-tokenizers")
            start = gr.Button("Compare", variant="primary", elem_id="compare-sound-start")
        with gr.Column(scale=2, min_width=280):
            players = [shown_sound(name, f"compare-sound-{i}") for i, name in enumerate(everyone)]
    numbers = gr.Markdown(elem_id="compare-sound-table")

    def run(path: str | None, chosen: list[str]) -> tuple[Any, ...]:
        done = through(models, chosen, lambda tok: read_sound(path, tok))
        files = {
            name: write_sound(folder.new("rebuilt.wav"), made.x_hat, tok)
            for name, (tok, made) in done.items()
        }
        return *(str(files[name]) if name in files else None for name in everyone), table_of(done)

    start.click(told(run), [given, names], [*players, numbers], api_name="compare_sounds")
