"""The tab Edit: pictures, of which a region is painted, and sound, of which it is a span of seconds.

Left out: what both have in common (`editor.py`).
"""

from typing import Any

import gradio as gr
from torch import Tensor

from pipelines.browser.editor import Editor
from pipelines.browser.edits import (
    Editing,
    between,
    covered,
)
from pipelines.browser.files import (
    Folder,
    Given,
    brought_to,
    picture_of,
    read_picture,
    read_sound,
    write_png,
    write_sound,
)
from pipelines.browser.grids import Cell, Layout, picture_layout, sound_layout
from pipelines.browser.models import PICTURES, SOUNDS, Models
from pipelines.browser.parts import (
    Stops,
    brush,
    by_kind,
    choice_of,
    picture_input,
    shown_picture,
    shown_plot,
    shown_sound,
    sound_input,
)
from pipelines.browser.rebuild import last_second
from pipelines.reports.spectrograms import spectrogram_pngs
from tokenizer import Tokenizer


def build(models: Models, folder: Folder, stops: Stops) -> None:
    """The tab, within a page."""
    by_kind(
        models,
        {
            PICTURES: lambda: PictureEditor(models, folder, stops).build(),
            SOUNDS: lambda: SoundEditor(models, folder, stops).build(),
        },
    )


class PictureEditor(Editor):
    """For pictures: a region is painted."""

    kind = PICTURES

    def build_parts(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self.given = picture_input("Your picture", "edit-image-given")
                self.tokenizer = choice_of(self.names, "tokenizer", "edit-image-tokenizer")
                self.start = gr.Button("Begin", variant="primary", elem_id="edit-image-start")
                self.build_actions()
            with gr.Column(scale=2, min_width=280):
                with gr.Row():
                    self.original = shown_picture("Rebuilt from its own codes", "edit-image-original")
                    self.result = shown_picture("Rebuilt from the codes below", "edit-image-result")
                self.build_grid("Codes; click on some")
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("### A region\nPaint over what is to change. Codes chosen above count too.")
                painted = brush("Paint a region", "edit-image-brush")
            with gr.Column(min_width=280):
                gr.Markdown("### Fill it by a prior")
                self.build_fill()
            with gr.Column(min_width=280):
                gr.Markdown("### Or take it from another picture")
                self.other = picture_input("The other picture", "edit-image-other")
                self.later = gr.Number(0, visible=False)
                self.move = gr.Button("Move its codes here", elem_id="edit-image-move")
        self.marks = [painted]
        self.outcomes = [self.original, self.result, painted]

    def build_begin(self) -> Any:
        most = self.outline.num_codebooks
        return gr.Slider(1, max(2, most), 1, step=1, label="codebook", visible=most > 1)

    def read(self, path: str | None, tok: Tokenizer) -> Given:
        return read_picture(path, tok)

    def layout(self, codes: Tensor, begin: float) -> Layout:
        return picture_layout(tuple(codes.shape[1:]), min(int(begin), codes.shape[1]) - 1)

    def outcome(self, tok: Tokenizer, editing: Editing) -> tuple[Any, ...]:
        first = editing.past[0] if editing.past else editing.codes
        now = picture_of(editing.now.x_hat, tok)
        original = picture_of(tok.decode(first, editing.now.size).clamp(-1, 1), tok)
        files = (self.folder.picture(original, "original"), self.folder.picture(now, "edited"))
        return *files, {"background": now, "layers": [], "composite": None}

    def write(self, tok: Tokenizer, editing: Editing) -> str:
        return str(write_png(self.folder.new("edited.png"), editing.now.x_hat, tok))

    def proposal(self, tok: Tokenizer, editing: Editing, codes: Tensor) -> str:
        x_hat = tok.decode(codes, editing.now.size).clamp(-1, 1)
        return self.folder.picture(picture_of(x_hat, tok, 160), "proposal")

    def region(self, editing: Editing, *marks: Any) -> frozenset[Cell]:
        layers = (marks[0] or {}).get("layers") or []
        shape = tuple(editing.codes.shape[1:])
        found = editing.chosen
        for layer in layers:
            found = found | covered(layer, shape)
        return found

    def other_codes(self, tok: Tokenizer, editing: Editing, other: Given) -> Tensor:
        return tok.encode(brought_to(other.x, editing.now.size))


class SoundEditor(Editor):
    """For sound: a region is a span of seconds."""

    kind = SOUNDS

    def build_parts(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self.given = sound_input("Your sound", "edit-audio-given")
                self.tokenizer = choice_of(self.names, "tokenizer", "edit-audio-tokenizer")
                self.start = gr.Button("Begin", variant="primary", elem_id="edit-audio-start")
                self.build_actions()
            with gr.Column(scale=2, min_width=280):
                self.result = shown_sound("Rebuilt from the codes below", "edit-audio-result")
                self.seen = shown_plot("Its spectrogram", "edit-audio-seen")
                self.build_grid("Codes, a row for each codebook; click on some")
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("### Seconds\nWhat is to change. Codes chosen above count too.")
                with gr.Row():
                    first = gr.Number(
                        0, label="from second", minimum=0, elem_id="edit-audio-first", min_width=100
                    )
                    last = gr.Number(
                        0, label="to second", minimum=0, elem_id="edit-audio-last", min_width=100
                    )
            with gr.Column(min_width=280):
                gr.Markdown("### Fill them by a prior")
                self.build_fill()
            with gr.Column(min_width=280):
                gr.Markdown("### Or take them from another sound")
                self.other = sound_input("The other sound", "edit-audio-other")
                self.later = gr.Number(0, label="so many seconds later there", elem_id="edit-audio-later")
                self.move = gr.Button("Move its codes here", elem_id="edit-audio-move")
        self.marks = [first, last]
        self.outcomes = [self.result, self.seen, self.begin]

    def build_begin(self) -> Any:
        return gr.Slider(0, 1, 0, step=0.1, label="codes from second", elem_id="edit-audio-begin")

    def read(self, path: str | None, tok: Tokenizer) -> Given:
        return read_sound(path, tok)

    def layout(self, codes: Tensor, begin: float) -> Layout:
        return sound_layout(tuple(codes.shape[1:]), round(begin * self.outline.frame_rate))

    def outcome(self, tok: Tokenizer, editing: Editing) -> tuple[Any, ...]:
        path = self.folder.new("spectrogram.png")
        path.write_bytes(spectrogram_pngs({"": editing.now.x_hat[0]}, tok.sample_rate)[""])
        result = write_sound(self.folder.new("edited.wav"), editing.now.x_hat, tok)
        return str(result), str(path), gr.update(maximum=last_second(tok, editing.now))

    def write(self, tok: Tokenizer, editing: Editing) -> str:
        return str(write_sound(self.folder.new("edited.wav"), editing.now.x_hat, tok))

    def proposal(self, tok: Tokenizer, editing: Editing, codes: Tensor) -> str:
        path = self.folder.new("proposal.png")
        x_hat = tok.decode(codes, editing.now.size).clamp(-1, 1)
        path.write_bytes(spectrogram_pngs({"": x_hat[0]}, tok.sample_rate)[""])
        return str(path)

    def region(self, editing: Editing, *marks: Any) -> frozenset[Cell]:
        first, last = marks
        if not last and not first:
            return editing.chosen
        tok = self.models.tokenizer(editing.tokenizer)
        return editing.chosen | between(tok, editing.codes, first, last)
