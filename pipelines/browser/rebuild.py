"""The tab Rebuild: a picture or a sound beside what its codes keep of it, and what every code stands for.

Left out: what is computed (`rebuilt.py`, `grids.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.browser.files import (
    Folder,
    Given,
    picture_of,
    read_picture,
    read_sound,
    write_codes,
    write_png,
    write_sound,
)
from pipelines.browser.grids import Cell, Layout, draw_grid, frames_shown, picture_layout, sound_layout, where
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
CHOOSE_PATCH = "Choose a code to see the patch that it stands for."
CHOOSE_MOMENT = "Choose a code to hear the moment that it stands for."
# Of what comes at once.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


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
        {
            PICTURES: lambda: PictureRebuilder(models, folder).build(),
            SOUNDS: lambda: SoundRebuilder(models, folder).build(),
        },
    )


class Rebuilder:
    """What both kinds share."""

    def __init__(self, models: Models, folder: Folder, kind: str) -> None:
        self.models, self.folder = models, folder
        self.names = models.of_kind(kind)
        self.outline = models.tokenizers[self.names[0]].outline

    def table_of(self, shown: Shown, *chosen: Cell) -> str:
        """The picture of the codes, as a file."""
        colours = self.models.colours(shown.tokenizer)
        return self.folder.picture(draw_grid(shown.done.codes[0], shown.layout, colours, chosen), "codes")

    def rebuilt(self, name: str, given: Given, count: int) -> Rebuilt:
        """What was given, from the first so many codebooks if they decode alone."""
        tok = self.models.tokenizer(name)
        return rebuild(tok, given, count if variable(tok) else None)

    def other(self, shown: Shown, count: int, begin: int) -> Shown:
        """The same with another number of codebooks, or from elsewhere in the codes on."""
        tok, done = self.models.tokenizer(shown.tokenizer), shown.done
        if variable(tok) and count != done.used:
            done = decoded(tok, done.given, done.codes, count)
        return Shown(shown.tokenizer, done, max(0, begin))

    def files_of(self, shown: Shown, result: Path) -> list[str]:
        """Downloads: the result, and its codes."""
        tok, done = self.models.tokenizer(shown.tokenizer), shown.done
        codes = write_codes(self.folder.new("codes.safetensors"), done.codes[:, : done.used], tok)
        return [str(result), str(codes)]

    def used_of(self, name: str) -> Any:
        """The slider over the codebooks of a tokenizer."""
        outline = self.models.tokenizers[name].outline
        most = outline.num_codebooks
        return gr.update(maximum=max(2, most), value=most, visible=variable(outline))

    def used_slider(self, elem_id: str) -> Any:
        """The same, of the first one, to be placed."""
        most = self.outline.num_codebooks
        label = "codebooks that are used"
        shown = variable(self.outline)
        return gr.Slider(1, max(2, most), most, step=1, label=label, elem_id=elem_id, visible=shown)


class PictureRebuilder(Rebuilder):
    """For pictures."""

    def __init__(self, models: Models, folder: Folder) -> None:
        super().__init__(models, folder, PICTURES)

    def build(self) -> None:
        """Place the parts, and connect them."""
        most = self.outline.num_codebooks
        state = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                given = picture_input("Your picture", "rebuild-picture")
                tokenizer = choice_of(self.names, "tokenizer", "rebuild-picture-tokenizer")
                size = gr.Radio([AS_TRAINED, OWN_SIZE], value=AS_TRAINED, label="brought to the size")
                used = self.used_slider("rebuild-picture-books")
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
                        note = gr.Markdown(CHOOSE_PATCH, elem_id="rebuild-picture-note")
                        part = shown_picture("Its patch: original, rebuilt", "rebuild-picture-patch", 260)
                        numbers = gr.Markdown(elem_id="rebuild-picture-measures")
                        files = gr.Files(label="Downloads", elem_id="rebuild-picture-files", height=150)
        outputs = [state, original, rebuilt, gap, numbers, grid, part, files]
        inputs = [given, tokenizer, size, used, book]
        start.click(told(self.on_start), inputs, outputs, api_name="rebuild_picture", concurrency_limit=2)
        given.upload(told(self.on_start), inputs, outputs, api_visibility="private", concurrency_limit=2)
        for event in (used.release, book.release):
            event(told(self.on_slider), [state, used, book], outputs, **QUIET)
        tokenizer.change(self.on_tokenizer, tokenizer, [used, book], **QUIET)
        grid.select(told(self.on_grid), state, [note, part, grid], **QUIET)

    def show(self, shown: Shown) -> tuple[Any, ...]:
        """What the outputs are to hold."""
        tok, done, folder = self.models.tokenizer(shown.tokenizer), shown.done, self.folder
        return (
            shown,
            folder.picture(picture_of(done.given.x, tok), "original"),
            folder.picture(picture_of(done.x_hat, tok), "rebuilt"),
            folder.picture(difference(done.x_hat, done.given.x), "difference"),
            table(("measure", "value"), list(measures(tok, done).items())),
            self.table_of(shown),
            None,
            self.files_of(shown, write_png(folder.new("rebuilt.png"), done.x_hat, tok)),
        )

    def on_start(self, path: str | None, name: str, size: str, count: int, book: int) -> tuple[Any, ...]:
        """Rebuild what was given."""
        given = read_picture(path, self.models.tokenizer(name), keep=size == OWN_SIZE)
        return self.show(Shown(name, self.rebuilt(name, given, count), book - 1))

    def on_slider(self, shown: Shown | None, count: int, book: int) -> tuple[Any, ...]:
        """From fewer codebooks, or with the codes of another one."""
        return (gr.skip(),) * 8 if shown is None else self.show(self.other(shown, count, book - 1))

    def on_tokenizer(self, name: str) -> tuple[Any, Any]:
        """Another tokenizer has other codebooks."""
        most = self.models.tokenizers[name].outline.num_codebooks
        return self.used_of(name), gr.update(maximum=max(2, most), value=1, visible=most > 1)

    def on_grid(self, shown: Shown | None, event: gr.SelectData) -> tuple[Any, ...]:
        """Show the patch of a code."""
        if shown is None or (cell := clicked(shown.layout, event)) is None:
            return gr.skip(), gr.skip(), gr.skip()
        tok = self.models.tokenizer(shown.tokenizer)
        text = f"Code **{int(shown.done.codes[0][cell])}** at {where(cell, tok)}."
        return text, self.folder.picture(patch(tok, shown.done, cell), "patch"), self.table_of(shown, cell)


class SoundRebuilder(Rebuilder):
    """For sound."""

    def __init__(self, models: Models, folder: Folder) -> None:
        super().__init__(models, folder, SOUNDS)

    def build(self) -> None:
        """Place the parts, and connect them."""
        state = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                given = sound_input("Your sound", "rebuild-sound")
                tokenizer = choice_of(self.names, "tokenizer", "rebuild-sound-tokenizer")
                used = self.used_slider("rebuild-sound-books")
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
                        label = "codes from second"
                        begin = gr.Slider(0, 1, 0, step=0.1, label=label, elem_id="rebuild-sound-begin")
                        grid = shown_grid("Codes, a row for each codebook; choose one", "rebuild-sound-grid")
                    with gr.Column(scale=2, min_width=280):
                        note = gr.Markdown(CHOOSE_MOMENT, elem_id="rebuild-sound-note")
                        part = shown_sound("Its moment: original, rebuilt", "rebuild-sound-moment")
                        numbers = gr.Markdown(elem_id="rebuild-sound-measures")
                        files = gr.Files(label="Downloads", elem_id="rebuild-sound-files", height=150)
        outputs = [state, original, rebuilt, seen, seen_again, numbers, grid, part, files, begin]
        inputs = [given, tokenizer, used]
        start.click(told(self.on_start), inputs, outputs, api_name="rebuild_sound", concurrency_limit=2)
        for event in (given.upload, given.stop_recording):
            event(told(self.on_start), inputs, outputs, api_visibility="private", concurrency_limit=2)
        used.release(told(self.on_slider), [state, used], outputs, api_visibility="private")
        begin.release(told(self.on_begin), [state, begin], [state, grid], **QUIET)
        tokenizer.change(self.used_of, tokenizer, used, **QUIET)
        grid.select(told(self.on_grid), state, [note, part, grid], **QUIET)

    def show(self, shown: Shown) -> tuple[Any, ...]:
        """What the outputs are to hold."""
        tok, done = self.models.tokenizer(shown.tokenizer), shown.done
        result = write_sound(self.folder.new("rebuilt.wav"), done.x_hat, tok)
        return (
            shown,
            str(write_sound(self.folder.new("original.wav"), done.given.x, tok)),
            str(result),
            *spectrograms(tok, done, self.folder),
            table(("measure", "value"), list(measures(tok, done).items())),
            self.table_of(shown),
            None,
            self.files_of(shown, result),
            gr.update(maximum=last_second(tok, done), value=shown.begin / tok.frame_rate),
        )

    def on_start(self, path: str | None, name: str, count: int) -> tuple[Any, ...]:
        """Rebuild what was given."""
        given = read_sound(path, self.models.tokenizer(name))
        return self.show(Shown(name, self.rebuilt(name, given, count)))

    def on_slider(self, shown: Shown | None, count: int) -> tuple[Any, ...]:
        """From fewer codebooks."""
        return (gr.skip(),) * 10 if shown is None else self.show(self.other(shown, count, shown.begin))

    def on_begin(self, shown: Shown | None, second: float) -> tuple[Any, ...]:
        """Show other codes."""
        if shown is None:
            return gr.skip(), gr.skip()
        rate = self.models.tokenizer(shown.tokenizer).frame_rate
        moved = Shown(shown.tokenizer, shown.done, round(second * rate))
        return moved, self.table_of(moved)

    def on_grid(self, shown: Shown | None, event: gr.SelectData) -> tuple[Any, ...]:
        """Let the moment of a code be heard."""
        if shown is None or (cell := clicked(shown.layout, event)) is None:
            return gr.skip(), gr.skip(), gr.skip()
        tok = self.models.tokenizer(shown.tokenizer)
        x, first, last = moment(tok, shown.done, cell)
        code = int(shown.done.codes[0][cell])
        text = f"Code **{code}** at {where(cell, tok)}: {first:.2f} to {last:.2f} s."
        file = write_sound(self.folder.new("moment.wav"), x, tok)
        return text, str(file), self.table_of(shown, cell)


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
