"""Editing in the page: the grid of codes, and what is done with those that are chosen or in a region.

Left out: what is for pictures or sound alone (`edit.py`), and what is computed (`edits.py`, `drawing.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
from torch import Tensor

from pipelines.browser.drawing import MOST_PROPOSALS, Wish, classes_to_fill, filled
from pipelines.browser.edits import (
    Editing,
    at_every_codebook,
    moved,
    nearest_others,
    replaced,
)
from pipelines.browser.files import (
    Folder,
    Given,
    write_codes,
)
from pipelines.browser.grids import Cell, Layout, draw_grid, mask_of
from pipelines.browser.models import SOUNDS, Models
from pipelines.browser.parts import (
    Stops,
    choice_of,
    clicked,
    shown_grid,
    told,
    told_in_parts,
)
from tokenizer import Tokenizer

CHOOSE, PICK = "choose codes (again: not)", "pick up its number"
BEGIN = "There is nothing to edit yet; give a picture or a sound and begin."
NO_PRIOR = "To draw a region anew, start the page with a --prior over the codes of this tokenizer."


class Editor:
    """What both kinds share: the grid and what is done with its codes. `kind` begins the names of parts."""

    kind: str
    # Parts that `build_parts` makes: what is given, to begin with and to take codes from (so much `later` in
    # it), what marks a region, and the parts that show the result.
    given: Any
    tokenizer: Any
    start: Any
    marks: list[Any]
    other: Any
    later: Any
    move: Any
    outcomes: list[Any]

    def __init__(self, models: Models, folder: Folder, stops: Stops) -> None:
        self.models, self.folder, self.stops = models, folder, stops
        self.names = models.of_kind(self.kind)
        self.outline = models.tokenizers[self.names[0]].outline

    def build(self) -> None:
        """The parts and what they do."""
        self.state = gr.State(None, time_to_live=3600)
        self.build_parts()
        self.connect()

    def build_parts(self) -> None:
        """Place the parts."""
        raise TypeError(f"{type(self).__name__} does not define build_parts")

    def read(self, path: str | None, tok: Tokenizer) -> Given:
        """What was given."""
        raise TypeError(f"{type(self).__name__} does not define read")

    def layout(self, codes: Tensor, begin: float) -> Layout:
        """Which of the codes (1, K, *grid) stands where, if the table begins at `begin`."""
        raise TypeError(f"{type(self).__name__} does not define layout")

    def outcome(self, tok: Tokenizer, editing: Editing) -> tuple[Any, ...]:
        """What `outcomes`, the parts that show the result, are to hold."""
        raise TypeError(f"{type(self).__name__} does not define outcome")

    def proposal(self, tok: Tokenizer, editing: Editing, codes: Tensor) -> str:
        """A PNG file that shows a proposal."""
        raise TypeError(f"{type(self).__name__} does not define proposal")

    def region(self, editing: Editing, *marks: Any) -> frozenset[Cell]:
        """The cells that are meant: those chosen, and those of a region."""
        raise TypeError(f"{type(self).__name__} does not define region")

    def build_grid(self, title: str) -> None:
        """The grid of codes."""
        self.begin = self.build_begin()
        self.grid = shown_grid(title, f"edit-{self.kind}-grid")

    def build_actions(self) -> None:
        """What is done with codes that are chosen."""
        self.note = gr.Markdown(BEGIN, elem_id=f"edit-{self.kind}-note")
        self.click = gr.Radio([CHOOSE, PICK], value=CHOOSE, label="a click on a code is to")
        most = self.outline.codebook_size - 1
        self.code = gr.Number(0, label=f"number (0 to {most})", elem_id=f"edit-{self.kind}-code")
        self.by_number = gr.Button("Replace by this number", elem_id=f"edit-{self.kind}-replace")
        self.by_nearest = gr.Button("Replace by the nearest entry", elem_id=f"edit-{self.kind}-nearest")
        with gr.Row():
            self.none = gr.Button("Choose none", min_width=100)
            self.undo = gr.Button("Undo", min_width=100, elem_id=f"edit-{self.kind}-undo")
        self.files = gr.Files(label="Downloads", elem_id=f"edit-{self.kind}-files", height=150)

    def build_begin(self) -> Any:
        """What moves the part of the codes that the grid shows."""
        raise TypeError(f"{type(self).__name__} does not define build_begin")

    def build_fill(self) -> None:
        """How a prior fills a region, and its proposals."""
        priors = self.models.priors_of_kind(self.kind)
        self.prior: Any = None
        self.found = gr.State((), time_to_live=3600)
        if not priors:
            gr.Markdown(NO_PRIOR)
            return
        config = self.models.priors[priors[0]].config
        self.prior = choice_of(priors, "prior", f"edit-{self.kind}-prior")
        classes = classes_to_fill(config)
        with gr.Row():
            self.label = gr.Dropdown(classes, value=classes[0], label="class", min_width=180)
            self.count = gr.Slider(1, MOST_PROPOSALS, 4, step=1, label="proposals", min_width=180)
            self.seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=180)
        with gr.Row():
            self.temperature = gr.Slider(0, 2, 1, step=0.05, label="temperature", min_width=180)
            self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="top-p", min_width=180)
            self.guidance = gr.Slider(0, 8, 1, step=0.25, label="guidance (1: none)", min_width=180)
        with gr.Row():
            self.fill = gr.Button("Fill", variant="primary", elem_id=f"edit-{self.kind}-fill")
            self.stop = gr.Button("Stop", elem_id=f"edit-{self.kind}-stop")
        self.proposals = gr.Gallery(
            label="Proposals; choose one",
            elem_id=f"edit-{self.kind}-proposals",
            elem_classes=["plots" if self.kind == SOUNDS else "pixels"],
            columns=2,
            height=None,
            allow_preview=False,
            object_fit="contain",
            interactive=False,
            format="png",
        )

    @property
    def shown(self) -> list[Any]:
        """All parts that `show` fills."""
        return [self.state, self.grid, self.note, self.files, *self.outcomes]

    def connect(self) -> None:
        """What the parts do."""
        # One after the other: what a click makes of the state, the next one begins with.
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_id": f"edit-{self.kind}",
            "concurrency_limit": 1,
        }
        given = [self.given, self.tokenizer, self.begin]
        self.start.click(told(self.on_start), given, self.shown, api_name=f"edit_{self.kind}")
        self.given.upload(told(self.on_start), given, self.shown, api_visibility="private")
        self.tokenizer.change(self.on_tokenizer, self.tokenizer, self.code, **quiet)
        self.begin.release(told(self.on_begin), [self.state, self.begin], self.grid, **quiet)
        self.grid.select(
            told(self.on_grid),
            [self.state, self.click, self.begin],
            [self.state, self.grid, self.note, self.code],
            trigger_mode="multiple",
            **quiet,
        )
        where, marks = [self.state, self.begin], self.marks
        self.by_number.click(told(self.on_number), [*where, self.code, *marks], self.shown, **quiet)
        self.by_nearest.click(told(self.on_nearest), [*where, *marks], self.shown, **quiet)
        self.move.click(told(self.on_move), [*where, self.other, self.later, *marks], self.shown, **quiet)
        for button, action in ((self.none, self.on_none), (self.undo, self.on_undo)):
            button.click(told(action), where, self.shown, **quiet)
        if self.prior is None:
            return
        choice = [self.label, self.count, self.temperature, self.top_p, self.guidance, self.seed]
        self.fill.click(
            told_in_parts(self.on_fill),
            [self.state, self.prior, *choice, *marks],
            [self.found, self.proposals, self.note],
            api_visibility="private",
            concurrency_limit=2,
        )
        self.prior.change(self.on_prior, self.prior, self.label, **quiet)
        self.stop.click(self.stops.on_stop, None, None, queue=False, api_visibility="private")
        self.proposals.select(told(self.on_proposal), [*where, self.found], self.shown, **quiet)

    def show(self, editing: Editing, begin: float) -> tuple[Any, ...]:
        """What `shown` is to hold."""
        tok = self.models.tokenizer(editing.tokenizer)
        codes = write_codes(self.folder.new("codes.safetensors"), editing.codes, tok)
        files = [self.write(tok, editing), str(codes)]
        picture = self.draw(editing, begin)
        return editing, picture, self.words(editing), files, *self.outcome(tok, editing)

    def draw(self, editing: Editing, begin: float) -> Any:
        """The grid."""
        layout, colours = self.layout(editing.codes, begin), self.models.colours(editing.tokenizer)
        return self.folder.picture(draw_grid(editing.codes[0], layout, colours, editing.chosen), "codes")

    def words(self, editing: Editing) -> str:
        """How things stand."""
        chosen = f"{len(editing.chosen)} chosen" if editing.chosen else "none chosen"
        return f"{editing.codes.numel()} codes, {editing.changed()} of them changed, {chosen}."

    def write(self, tok: Tokenizer, editing: Editing) -> str:
        """A file of the result."""
        raise TypeError(f"{type(self).__name__} does not define write")

    def on_start(self, path: str | None, name: str, begin: float) -> tuple[Any, ...]:
        """Begin with what was given."""
        tok = self.models.tokenizer(name)
        return self.show(Editing.begun(name, tok, self.read(path, tok)), begin)

    def on_tokenizer(self, name: str) -> Any:
        """Another tokenizer has other numbers."""
        most = self.models.tokenizers[name].outline.codebook_size - 1
        return gr.update(label=f"number (0 to {most})")

    def on_begin(self, editing: Editing | None, begin: float) -> Any:
        """Show another part of the codes."""
        return gr.skip() if editing is None else self.draw(editing, begin)

    def on_grid(
        self, editing: Editing | None, click: str, begin: float, event: gr.SelectData
    ) -> tuple[Any, ...]:
        """Choose a code, or pick up its number."""
        editing = _begun(editing)
        cell = clicked(self.layout(editing.codes, begin), event)
        if cell is None:
            return (gr.skip(),) * 4
        code = int(editing.codes[0][cell])
        if click == PICK:
            return gr.skip(), gr.skip(), f"Picked up {code}.", code
        editing = editing.toggled(cell)
        return editing, self.draw(editing, begin), self.words(editing), gr.skip()

    def on_number(self, editing: Editing | None, begin: float, code: float | None, *marks: Any) -> Any:
        """Replace what is meant by a number."""
        return self.change(
            editing, begin, lambda tok, now: replaced(tok, now.codes, self.region(now, *marks), code)
        )

    def on_nearest(self, editing: Editing | None, begin: float, *marks: Any) -> Any:
        """Replace what is meant by the nearest entries."""
        return self.change(
            editing, begin, lambda tok, now: nearest_others(tok, now.codes, self.region(now, *marks))
        )

    def on_move(
        self, editing: Editing | None, begin: float, path: str | None, later: float | None, *marks: Any
    ) -> Any:
        """Take what is meant from other data."""

        def change(tok: Tokenizer, now: Editing) -> Tensor:
            cells = at_every_codebook(self.region(now, *marks), now.codes.shape[1])
            other = self.other_codes(tok, now, self.read(path, tok))
            return moved(now.codes, other, cells, round((later or 0) * tok.frame_rate))

        return self.change(editing, begin, change)

    def other_codes(self, tok: Tokenizer, editing: Editing, other: Given) -> Tensor:
        """The codes of other data."""
        return tok.encode(other.x)

    def on_none(self, editing: Editing | None, begin: float) -> Any:
        """Choose none."""
        return self.show(replace(_begun(editing), chosen=frozenset()), begin)

    def on_undo(self, editing: Editing | None, begin: float) -> Any:
        """Take back the last change."""
        now = _begun(editing)
        return self.show(now.undone(self.models.tokenizer(now.tokenizer)), begin)

    def on_prior(self, name: str) -> Any:
        """Another prior has other classes."""
        config = self.models.priors[name].config
        classes = classes_to_fill(config)
        return gr.update(choices=classes, value=classes[0])

    def on_fill(
        self,
        editing: Editing | None,
        prior_name: str,
        label: str,
        count: int,
        temperature: float,
        top_p: float,
        guidance: float,
        seed: int | None,
        request: gr.Request,
        *marks: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Proposals, one after the other."""
        now = _begun(editing)
        stopped = self.stops.begin(request.session_hash)
        tok, prior = self.models.tokenizer(now.tokenizer), self.models.prior(prior_name)
        wish = Wish(label, int(count), temperature, top_p, guidance, int(seed or 0))
        cells = at_every_codebook(self.region(now, *marks), now.codes.shape[1])
        mask = mask_of(cells, tuple(now.codes.shape[1:]))
        found = list[Tensor]()
        shown = list[str]()
        yield (), [], f"0 of {wish.num} proposals for {len(cells)} codes"
        for codes in filled(prior, tok, now.codes, mask, wish, stopped):
            found.append(codes)
            shown.append(self.proposal(tok, now, codes))
            yield (
                tuple(found),
                shown,
                f"{len(found)} of {wish.num} proposals for {len(cells)} codes; choose one.",
            )

    def on_proposal(
        self, editing: Editing | None, begin: float, found: tuple[Tensor, ...], event: gr.SelectData
    ) -> Any:
        """Take a proposal."""
        return self.change(editing, begin, lambda tok, now: found[int(event.index)])

    def change(
        self, editing: Editing | None, begin: float, to: Callable[[Tokenizer, Editing], Tensor]
    ) -> tuple[Any, ...]:
        """Show other codes."""
        now = _begun(editing)
        tok = self.models.tokenizer(now.tokenizer)
        return self.show(now.with_codes(tok, to(tok, now)), begin)


def _begun(editing: Editing | None) -> Editing:
    if editing is None:
        raise ValueError(BEGIN[0].lower() + BEGIN[1:-1])
    return editing
