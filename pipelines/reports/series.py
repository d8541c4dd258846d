"""What people look at of series: their channels as curves, and every sample as a file of `numpy.save`.

Left out: the figures' look (`plots.py`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.clips import Clips
from pipelines.evaluation.tokenizers import Measured
from pipelines.reports.kinds import REPORTS, Drawn, Report, spread_out
from pipelines.reports.plots import BLUE, ORANGE, codebook_plot, panel_figure, save_figure
from tokenizer import Tokenizer
from tokenizer.hub.files import write_atomically

# Series on a sheet, seconds of each, and channels.
SHOWN, SECONDS, CHANNELS = 6, 20, 4
STYLES = ((BLUE, "-"), (ORANGE, "--"))


@REPORTS.enter("series")
class SeriesReport(Report):
    """Curves of channels over seconds."""

    each, pairs = 2, SHOWN

    def reconstructions(
        self, tok: Tokenizer, examples: Clips, measured: Measured, folder: Path, name: str, sample: bool
    ) -> None:
        """reconstructions.png of some series, and codebook.png if there are codes."""
        rows = reconstructions(tok, examples)
        write_curves(rows, tok, folder / "reconstructions.png")
        if measured.counts is not None:
            codebook_plot(measured.counts, folder / "codebook.png", tok.bottleneck.codebook_vectors(), None)
        if sample:
            write_curves(rows[:1], tok, folder / "sample.png")

    def samples(self, tok: Tokenizer, rows: list[Drawn], folder: Path) -> Path:
        """Every sample as a file of numpy.save in the units of the data, and samples.png of the first
        ones."""
        for number, series in enumerate(series for row in rows for series in tok.postprocess(row.x)):
            save = partial(np.save, arr=series, allow_pickle=False)
            write_atomically(folder / f"{number:03d}.npy", save)
        each = max(1, SHOWN // len(rows))
        shown = [(f"{row.name} {i + 1}", {"": x}) for row in rows for i, x in enumerate(row.x[:each])]
        write_curves(shown[:SHOWN], tok, folder / "samples.png")
        return folder / "samples.png"

    def card_sample(self, tok: Tokenizer, rows: list[tuple[str, Tensor]], folder: Path) -> None:
        """sample.png, curves of the first sample of each class."""
        write_curves([(name, {"": x[0]}) for name, x in rows[:SHOWN]], tok, folder / "sample.png")

    def neighbours(
        self, tok: Tokenizer, names: list[str], samples: Tensor, nearest: Tensor, folder: Path
    ) -> Path:
        """neighbours.png, samples and the training items nearest to them."""
        pairs = zip(names, samples, nearest, strict=False)
        rows = [(name, {"sample": a, "nearest in training": b}) for name, a, b in pairs]
        write_curves(rows, tok, folder / "neighbours.png")
        return folder / "neighbours.png"


@torch.no_grad()
def reconstructions(tok: Tokenizer, clips: Clips) -> list[tuple[str, dict[str, Tensor]]]:
    """Names of some series, spread over all, with them and what the tokenizer makes of them, (C, T)."""
    tok.eval()
    rows = []
    for i in spread_out(len(clips), SHOWN):
        x = next(clips.pieces(i), None)
        if x is not None:
            x = x[:, : SECONDS * clips.sample_rate].to(tok.device)
            x_hat = tok(x[None]).x_hat[0].clamp(-1, 1)
            rows.append((clips.id(i), {"original": x.cpu(), "rebuilt": x_hat.cpu()}))
    if not rows:
        raise ValueError("no series can be read any more; is the disk still there?")
    return rows


def write_curves(rows: Sequence[tuple[str, Mapping[str, Tensor]]], tok: Tokenizer, path: Path) -> None:
    """A picture with a line of panels for each row, a panel for each of the first channels; the series (C, T)
    of a row, by what they are called, lie over each other."""
    channels = min(CHANNELS, tok.modality.channels)
    figure, axes = panel_figure(channels * len(rows), columns=channels)
    for i, (name, series) in enumerate(rows):
        for (what, x), (color, style) in zip(series.items(), STYLES, strict=False):
            values = tok.postprocess(x[None])[0]
            seconds = np.arange(x.shape[1]) / tok.modality.sample_rate
            for c in range(channels):
                ax = axes[i * channels + c]
                ax.plot(seconds, values[c], color=color, ls=style, lw=1.2, label=what or None)
                ax.set(title=f"{name}, channel {c + 1}", xlabel="seconds")
        if len(series) > 1:
            axes[i * channels].legend(frameon=False)
    save_figure(figure, path)
