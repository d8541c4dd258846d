"""The tab Rebuild: a picture or a sound beside what its codes keep of it, and what every code stands for.

Left out: what is computed (`rebuilt.py`, `grids.py`).
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipelines.browser.files import (
    Folder,
    picture_of,
    read_picture,
    read_sound,
    write_codes,
    write_png,
    write_sound,
)
from pipelines.browser.grids import Layout, draw_grid, frames_shown, picture_layout, sound_layout, where
from pipelines.browser.models import PICTURES, SOUNDS, Models
from pipelines.browser.parts import (
    by_kind,
    choice_of,
    clicked,
    picture_input,
    shown_grid,
    shown_picture,
    shown_plot,
    shown_sound,
    sound_input,
    told,
)
from pipelines.browser.rebuilt import (
    Rebuilt,
    decoded,
    difference,
    measures,
    moment,
    patch,
    rebuild,
    table,
    variable,
)
from pipelines.reports.spectrograms import spectrogram_pngs
from tokenizer import Tokenizer

AS_TRAINED, OWN_SIZE = "as in training", "its own size (at most 256 pixels)"


@dataclass(frozen=True)
class Shown:
    """What one person sees: of which tokenizer, what it made, and where the table of codes begins: with which
    codebook of a picture, with which frame of sound."""

    tokenizer: str
    done: Rebuilt
    begin: int = 0

    @property
    def layout(self) -> Layout:
        """Which code stands where in the table."""
        shape = tuple(self.done.codes[0, : self.done.used].shape)
        if len(shape) == 3:
            return picture_layout(shape, min(self.begin, shape[0] - 1))
        return sound_layout(shape, self.begin)


def build(models: Models, folder: Folder) -> None:
    """The tab, within a page."""
    by_kind(
        models,
        {PICTURES: lambda: _build_pictures(models, folder), SOUNDS: lambda: _build_sounds(models, folder)},
    )


def table_of(models: Models, folder: Folder, shown: Shown, chosen: tuple[Any, ...] = ()) -> str:
    """The picture of the codes, as a file."""
    colours = models.colours(shown.tokenizer)
    return folder.picture(draw_grid(shown.done.codes[0], shown.layout, colours, chosen), "codes")


def books_slider(tok: Tokenizer, elem_id: str, **changes: Any) -> Any:
    """A slider over the first codebooks, hidden where they do not decode alone."""
    most = tok.num_codebooks
    shown: dict[str, Any] = {
        "minimum": 1,
        "maximum": max(2, most),
        "value": most,
        "step": 1,
        "label": "codebooks that are used",
        "elem_id": elem_id,
        "visible": variable(tok),
    }
    return gr.Slider(**{**shown, **changes})


def _build_pictures(models: Models, folder: Folder) -> None:
    names = models.of_kind(PICTURES)
    outline = models.tokenizers[names[0]].outline
    state = gr.State(None, time_to_live=3600)
    most = outline.num_codebooks
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = picture_input("Your picture", "rebuild-picture")
            tokenizer = choice_of(names, "tokenizer", "rebuild-picture-tokenizer")
            size = gr.Radio([AS_TRAINED, OWN_SIZE], value=AS_TRAINED, label="brought to the size")
            used = books_slider(outline, "rebuild-picture-books")
            start = gr.Button("Rebuild", variant="primary", elem_id="rebuild-picture-start")
        with gr.Column(scale=5, min_width=280):
            with gr.Row():
                original = shown_picture("As the tokenizer sees it", "rebuild-picture-original")
                rebuilt = shown_picture("Rebuilt from its codes", "rebuild-picture-rebuilt")
                gap = shown_picture("Difference (red: brighter)", "rebuild-picture-difference")
            with gr.Row():
                with gr.Column(scale=3, min_width=280):
                    book = gr.Slider(1, max(2, most), 1, step=1, label="codebook", visible=most > 1)
                    grid = shown_grid("Codes; choose one", "rebuild-picture-grid")
                with gr.Column(scale=2, min_width=280):
                    note = gr.Markdown(
                        "Choose a code to see the patch that it stands for.", elem_id="rebuild-picture-note"
                    )
                    part = shown_picture("Its patch: original, rebuilt", "rebuild-picture-patch", height=260)
                    numbers = gr.Markdown(elem_id="rebuild-picture-measures")
                    files = gr.Files(label="Downloads", elem_id="rebuild-picture-files", height=150)

    def show(shown: Shown) -> tuple[Any, ...]:
        tok, done = models.tokenizer(shown.tokenizer), shown.done
        paths = [
            write_png(folder.new("rebuilt.png"), done.x_hat, tok),
            write_codes(folder.new("codes.safetensors"), done.codes[:, : done.used], tok),
        ]
        rows = list(measures(tok, done).items())
        return (
            shown,
            folder.picture(picture_of(done.given.x, tok), "original"),
            folder.picture(picture_of(done.x_hat, tok), "rebuilt"),
            folder.picture(difference(done.x_hat, done.given.x), "difference"),
            table(("measure", "value"), rows),
            table_of(models, folder, shown),
            None,
            [str(path) for path in paths],
        )

    def run(path: str | None, name: str, wanted: str, count: int, first: int) -> tuple[Any, ...]:
        tok = models.tokenizer(name)
        found = read_picture(path, tok, keep=wanted == OWN_SIZE)
        return show(Shown(name, rebuild(tok, found, count if variable(tok) else None), first - 1))

    def again(shown: Shown | None, count: int, first: int) -> tuple[Any, ...]:
        if shown is None:
            return (gr.skip(),) * 8
        return show(_again(models, shown, count, first - 1))

    def choose(shown: Shown | None, event: gr.SelectData) -> tuple[Any, ...]:
        if shown is None or (cell := clicked(shown.layout, event)) is None:
            return gr.skip(), gr.skip(), gr.skip()
        tok = models.tokenizer(shown.tokenizer)
        text = f"Code **{int(shown.done.codes[0][cell])}** at {where(cell, tok)}."
        return (
            text,
            folder.picture(patch(tok, shown.done, cell), "patch"),
            table_of(models, folder, shown, (cell,)),
        )

    outputs = [state, original, rebuilt, gap, numbers, grid, part, files]
    inputs = [given, tokenizer, size, used, book]
    start.click(told(run), inputs, outputs, api_name="rebuild_picture", concurrency_limit=2)
    given.upload(told(run), inputs, outputs, api_visibility="private", concurrency_limit=2)
    for event in (used.release, book.release):
        event(told(again), [state, used, book], outputs, api_visibility="private", show_progress="hidden")
    tokenizer.change(_sliders(models), tokenizer, [used, book], api_visibility="private")
    grid.select(told(choose), state, [note, part, grid], api_visibility="private", show_progress="hidden")


def _again(models: Models, shown: Shown, count: int, begin: int) -> Shown:
    """The same with another number of codebooks, or from elsewhere in the codes on."""
    tok, done = models.tokenizer(shown.tokenizer), shown.done
    if variable(tok) and count != done.used:
        done = decoded(tok, done.given, done.codes, count)
    return Shown(shown.tokenizer, done, max(0, begin))


def _sliders(models: Models) -> Any:
    def change(name: str) -> tuple[Any, Any]:
        outline = models.tokenizers[name].outline
        most = outline.num_codebooks
        book = gr.update(maximum=max(2, most), value=1, visible=most > 1)
        return gr.update(maximum=max(2, most), value=most, visible=variable(outline)), book

    return change


def _build_sounds(models: Models, folder: Folder) -> None:
    names = models.of_kind(SOUNDS)
    state = gr.State(None, time_to_live=3600)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = sound_input("Your sound", "rebuild-sound")
            tokenizer = choice_of(names, "tokenizer", "rebuild-sound-tokenizer")
            used = books_slider(models.tokenizers[names[0]].outline, "rebuild-sound-books")
            start = gr.Button("Rebuild", variant="primary", elem_id="rebuild-sound-start")
        with gr.Column(scale=5, min_width=280):
            with gr.Row():
                with gr.Column(min_width=280):
                    original = shown_sound("As the tokenizer hears it", "rebuild-sound-original")
                    seen = shown_plot("Its spectrogram", "rebuild-sound-seen")
                with gr.Column(min_width=280):
                    rebuilt = shown_sound("Rebuilt from its codes", "rebuild-sound-rebuilt")
                    seen_again = shown_plot("Its spectrogram", "rebuild-sound-seen-again")
            with gr.Row():
                with gr.Column(scale=3, min_width=280):
                    begin = gr.Slider(
                        0, 1, 0, step=0.1, label="codes from second", elem_id="rebuild-sound-begin"
                    )
                    grid = shown_grid("Codes, a row for each codebook; choose one", "rebuild-sound-grid")
                with gr.Column(scale=2, min_width=280):
                    note = gr.Markdown(
                        "Choose a code to hear the moment that it stands for.", elem_id="rebuild-sound-note"
                    )
                    part = shown_sound("Its moment: original, rebuilt", "rebuild-sound-moment")
                    numbers = gr.Markdown(elem_id="rebuild-sound-measures")
                    files = gr.Files(label="Downloads", elem_id="rebuild-sound-files", height=150)

    def show(shown: Shown) -> tuple[Any, ...]:
        tok, done = models.tokenizer(shown.tokenizer), shown.done
        rebuilt_file = write_sound(folder.new("rebuilt.wav"), done.x_hat, tok)
        codes = write_codes(folder.new("codes.safetensors"), done.codes[:, : done.used], tok)
        return (
            shown,
            str(write_sound(folder.new("original.wav"), done.given.x, tok)),
            str(rebuilt_file),
            *spectrograms(tok, done, folder),
            table(("measure", "value"), list(measures(tok, done).items())),
            table_of(models, folder, shown),
            None,
            [str(rebuilt_file), str(codes)],
            gr.update(maximum=last_second(tok, done), value=shown.begin / tok.frame_rate),
        )

    def run(path: str | None, name: str, count: int) -> tuple[Any, ...]:
        tok = models.tokenizer(name)
        return show(Shown(name, rebuild(tok, read_sound(path, tok), count if variable(tok) else None)))

    def again(shown: Shown | None, count: int) -> tuple[Any, ...]:
        return (gr.skip(),) * 10 if shown is None else show(_again(models, shown, count, shown.begin))

    def turn(shown: Shown | None, second: float) -> tuple[Any, ...]:
        if shown is None:
            return gr.skip(), gr.skip()
        tok = models.tokenizer(shown.tokenizer)
        moved = Shown(shown.tokenizer, shown.done, round(second * tok.frame_rate))
        return moved, table_of(models, folder, moved)

    def choose(shown: Shown | None, event: gr.SelectData) -> tuple[Any, ...]:
        if shown is None or (cell := clicked(shown.layout, event)) is None:
            return gr.skip(), gr.skip(), gr.skip()
        tok = models.tokenizer(shown.tokenizer)
        x, first, last = moment(tok, shown.done, cell)
        text = (
            f"Code **{int(shown.done.codes[0][cell])}** at {where(cell, tok)}: {first:.2f} to {last:.2f} s."
        )
        return (
            text,
            str(write_sound(folder.new("moment.wav"), x, tok)),
            table_of(models, folder, shown, (cell,)),
        )

    outputs = [state, original, rebuilt, seen, seen_again, numbers, grid, part, files, begin]
    inputs = [given, tokenizer, used]
    start.click(told(run), inputs, outputs, api_name="rebuild_sound", concurrency_limit=2)
    given.upload(told(run), inputs, outputs, api_visibility="private", concurrency_limit=2)
    given.stop_recording(told(run), inputs, outputs, api_visibility="private", concurrency_limit=2)
    used.release(told(again), [state, used], outputs, api_visibility="private")
    begin.release(told(turn), [state, begin], [state, grid], api_visibility="private", show_progress="hidden")
    tokenizer.change(lambda name: _sliders(models)(name)[0], tokenizer, used, api_visibility="private")
    grid.select(told(choose), state, [note, part, grid], api_visibility="private", show_progress="hidden")


def spectrograms(tok: Tokenizer, done: Rebuilt, folder: Folder) -> list[str]:
    """PNG files of the original's and the rebuilt one's."""
    clips = {"original": done.given.x[0].clamp(-1, 1), "rebuilt": done.x_hat[0]}
    paths = []
    for name, png in spectrogram_pngs(clips, tok.sample_rate).items():
        path = folder.new(f"{name}.png")
        path.write_bytes(png)
        paths.append(str(path))
    return paths


def last_second(tok: Tokenizer, done: Rebuilt) -> float:
    """Where the last table of codes begins, for a slider."""
    hidden = done.codes.shape[2] - frames_shown(done.used)
    return max(0.1, round(hidden / tok.frame_rate, 1))
