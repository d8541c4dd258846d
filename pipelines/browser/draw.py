"""The tab Draw: new pictures or sounds from a prior, on a sheet that fills as they come.

Left out: what is computed (`drawing.py`).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from pipelines.browser.drawing import MOST_SAMPLES, MOST_SECONDS, Wish, classes_of, drawn
from pipelines.browser.files import Folder, beside, picture_of, write_codes, write_png, write_sound
from pipelines.browser.models import PICTURES, SOUNDS, Models
from pipelines.browser.parts import Stops, by_kind, choice_of, shown_sound, told, told_in_parts
from pipelines.reports.neighbours import nearest_items
from pipelines.reports.sheets import image_grid
from pipelines.reports.spectrograms import spectrogram_pngs
from pipelines.tokens.windows import rows_of
from prior import Prior
from tokenizer import Tokenizer

NEAREST = (
    " Right of each is the training item nearest to it; the share is that of the codes that are the same: "
    "100 % is a copy."
)
NO_PRIORS = (
    "There is no prior on this page. Start it with `--prior DIR`; `python -m pipelines.quickstart` makes one "
    "in minutes."
)


@dataclass
class Sheet:
    """What one person has drawn: the codes of every part, and by sample its file, what is shown of it, and
    words below."""

    codes: list[Tensor] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)


class Drawer:
    """Draws by the prior `name` and shows what it drew, as files of the folder."""

    def __init__(self, models: Models, folder: Folder, name: str) -> None:
        entry = models.priors[name]
        self.models, self.folder, self.name = models, folder, name
        self.tok: Tokenizer = models.tokenizer(entry.tokenizer)
        self.prior: Prior = models.prior(name)
        self.items = models.items(name)

    @torch.no_grad()
    def add(self, sheet: Sheet, codes: Tensor) -> None:
        """Put codes (b, K, *grid) on the sheet, each beside the training item nearest to it if these are
        known."""
        tok = self.tok
        x = tok.decode(codes, tok.modality.drawn_size).clamp(-1, 1)
        near, shares = self._nearest(codes)
        for i in range(len(codes)):
            number = len(sheet.files) + 1
            words = str(number) if near is None else f"{number}: {shares[i]:.0%}"
            pair = [x[i : i + 1]] + ([] if near is None else [near[i : i + 1]])
            if tok.modality.timed:
                file = write_sound(self.folder.new(f"sample-{number}.wav"), pair[0], tok)
                sheet.shown.append((self._spectrogram(pair), words))
            else:
                file = write_png(self.folder.new(f"sample-{number}.png"), pair[0], tok)
                shown = beside([picture_of(item, tok, 160) for item in pair])
                sheet.shown.append((self.folder.picture(shown, f"shown-{number}"), words))
            sheet.files.append(str(file))
        sheet.codes.append(codes.cpu())

    def downloads(self, sheet: Sheet) -> list[str]:
        """Files to take away: the sheet of pictures, all codes, and every sample."""
        if not sheet.codes:
            return []
        codes = torch.cat(sheet.codes)
        first = [str(write_codes(self.folder.new("codes.safetensors"), codes, self.tok))]
        if not self.tok.modality.timed:
            x = self.tok.decode(codes, self.tok.modality.drawn_size).clamp(-1, 1)
            made = image_grid(x, scale=max(1, 96 // max(x.shape[2:])))
            first = [self.folder.picture(made, "sheet"), *first]
        return [*first, *sheet.files]

    def _nearest(self, codes: Tensor) -> tuple[Tensor | None, list[float]]:
        if self.items is None:
            return None, []
        found = rows_of(self.items, codes.shape[2])
        near = found.rows(nearest_items(self.tok, codes, found).numpy())[0]
        same = (near == codes.cpu()).flatten(1).float().mean(1).tolist()
        return self.tok.decode(near, self.tok.modality.drawn_size).clamp(-1, 1), same

    def _spectrogram(self, pair: list[Tensor]) -> str:
        clips = {str(i): x[0] for i, x in enumerate(pair)}
        pngs = spectrogram_pngs(clips, self.tok.sample_rate).values()
        return self.folder.picture(beside([Image.open(io.BytesIO(png)) for png in pngs]), "spectrogram")


def build(models: Models, folder: Folder, stops: Stops) -> None:
    """The tab, within a page."""
    if not models.priors:
        gr.Markdown(NO_PRIORS)
        return
    by_kind(
        models,
        {
            PICTURES: DrawTab(models, folder, stops, PICTURES).build,
            SOUNDS: DrawTab(models, folder, stops, SOUNDS).build,
        },
    )


class DrawTab:
    """For the priors over codes of one kind."""

    def __init__(self, models: Models, folder: Folder, stops: Stops, kind: str) -> None:
        self.models, self.folder, self.stops, self.kind = models, folder, stops, kind
        self.names = models.priors_of_kind(kind)
        self.timed = kind == SOUNDS

    def build(self) -> None:
        """Place the parts, and connect them."""
        if not self.names:
            gr.Markdown(NO_PRIORS)
            return
        kind = self.kind
        with gr.Row():
            with gr.Column(min_width=280):
                prior = choice_of(self.names, "prior", f"draw-{kind}-prior")
                choice = self.build_choice()
                with gr.Row():
                    start = gr.Button("Draw", variant="primary", elem_id=f"draw-{kind}-start", min_width=100)
                    stop = gr.Button("Stop", variant="stop", elem_id=f"draw-{kind}-stop", min_width=100)
            with gr.Column(scale=3, min_width=280):
                note = gr.Markdown("Nothing drawn yet.", elem_id=f"draw-{kind}-note")
                sheet = self.build_sheet()
                player = shown_sound("The chosen one", f"draw-{kind}-player") if self.timed else None
                files = gr.Files(label="Downloads", elem_id=f"draw-{kind}-files", height=150)
        start.click(
            told_in_parts(self.on_start),
            [prior, *choice],
            [sheet, note, files],
            api_name=f"draw_{kind}",
            concurrency_limit=2,
        )
        stop.click(self.stops.on_stop, None, None, queue=False, api_visibility="private")
        prior.change(self.on_prior, prior, [choice[0], choice[-1]], api_visibility="private")
        if player is not None:
            sheet.select(told(self.on_sheet), files, player, api_visibility="private", show_progress="hidden")

    def build_choice(self) -> list[Any]:
        """What a person asks for: in the order in which `on_start` takes it."""
        kind, classes, usual = self.kind, self._classes(self.names[0]), 4 if self.timed else 16
        return [
            gr.Dropdown(classes, value=classes[0], label="class", elem_id=f"draw-{kind}-class"),
            gr.Slider(1, MOST_SAMPLES, usual, step=1, label="samples", elem_id=f"draw-{kind}-number"),
            gr.Slider(0.5, MOST_SECONDS, 2, step=0.5, label="seconds of each", visible=self.timed),
            gr.Slider(0, 2, 1, step=0.05, label="temperature (0: the likeliest codes)"),
            gr.Slider(0.05, 1, 1, step=0.05, label="top-p (1: all codes)"),
            gr.Slider(0, 8, 1, step=0.25, label="guidance (1: none)"),
            gr.Number(0, label="seed", precision=0, minimum=0, elem_id=f"draw-{kind}-seed"),
            self._steps(self.names[0]),
        ]

    def build_sheet(self) -> Any:
        """Where samples come to lie."""
        paired = any(self.models.priors[name].tokens for name in self.names)
        shape = ["plots"] if self.timed else ["pixels"]
        return gr.Gallery(
            label="Sheet",
            elem_id=f"draw-{self.kind}-sheet",
            elem_classes=[*shape, "pairs"] if paired else shape,
            columns=2 if self.timed else 4,
            height=560,
            allow_preview=not self.timed,
            object_fit="contain",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
        )

    def on_start(
        self,
        name: str,
        label: str,
        count: int,
        seconds: float,
        temperature: float,
        top_p: float,
        guidance: float,
        seed: int | None,
        steps: int,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw, and show every part as it comes."""
        stopped = self.stops.begin(request.session_hash)
        wish = Wish(label, int(count), temperature, top_p, guidance, int(seed or 0), int(steps))
        yield [], "waiting for the models…", None
        drawer, made = Drawer(self.models, self.folder, name), Sheet()
        beside_it = "" if drawer.items is None else NEAREST
        yield [], f"0 of {wish.num} drawn", None
        for codes in drawn(drawer.prior, drawer.tok, wish, seconds if self.timed else None, stopped):
            drawer.add(made, codes)
            yield made.shown, f"{len(made.files)} of {wish.num} drawn.{beside_it}", None
        end = "Stopped: " if len(made.files) < wish.num else ""
        yield made.shown, f"{end}{len(made.files)} of {wish.num} drawn.{beside_it}", drawer.downloads(made)

    def on_sheet(self, paths: list[Any] | None, event: gr.SelectData) -> str:
        """Let a sample be heard."""
        sounds = [str(path) for path in paths or [] if str(path).endswith(".wav")]
        if int(event.index) >= len(sounds):
            raise ValueError("it can be heard once the drawing has ended")
        return sounds[int(event.index)]

    def on_prior(self, name: str) -> tuple[Any, Any]:
        """Another prior has other classes, and may know other orders."""
        classes = self._classes(name)
        return gr.update(choices=classes, value=classes[0]), self._steps(name)

    def _steps(self, name: str) -> Any:
        """In how many steps a prior of every order draws; of another one nothing is asked."""
        config = self.models.priors[name].config
        return gr.Slider(
            *(0, config.num_positions, 0),
            step=1,
            label="steps, the likeliest positions first (0: one position at a time)",
            visible=config.order == "any",
        )

    def _classes(self, name: str) -> list[str]:
        config = self.models.priors[name].config
        return classes_of(config.class_names, config.unconditional)
