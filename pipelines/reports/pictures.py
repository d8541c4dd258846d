"""What people look at of pictures: sheets of reconstructions and samples, and plots of a codebook.

Left out: drawing (`sheets.py`, `plots.py`).
"""

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.examples import Examples
from pipelines.data.kinds import to_float
from pipelines.evaluation.tokenizers import EVAL_BATCH, Measured
from pipelines.reports.kinds import REPORTS, Drawn, Report, spread_out
from pipelines.reports.plots import codebook_plot
from pipelines.reports.sheets import reconstruction_sheet, sample_sheet
from tokenizer import Tokenizer
from tokenizer.metrics import CodeUsage

# Pictures on the sheet of reconstructions, and those whose encoder outputs lie behind the codebook.
SHEET, CLOUD = 24, 64
# Pictures in a line of the sheet of samples; a class with more takes several lines.
COLUMNS = 12


@REPORTS.enter("image")
class PictureReport(Report):
    """Sheets of pictures, and every sample as a PNG."""

    each, pairs = 8, 96

    @torch.no_grad()
    def reconstructions(
        self, tok: Tokenizer, examples: Examples, measured: Measured, folder: Path, name: str, sample: bool
    ) -> None:
        """reconstructions.png, some pictures, spread over the examples, above what the tokenizer makes of
        them, and codebook.png if there are codes."""
        x = some_pictures(examples, SHEET).to(tok.device)
        reconstruction_sheet(x.cpu(), tok.eval()(x).x_hat.cpu(), folder / "reconstructions.png")
        if tok.bottleneck.num_codebooks:
            write_codebook(tok, examples, folder / "codebook.png")
        if sample:
            shutil.copyfile(folder / "reconstructions.png", folder / "sample.png")

    def samples(self, tok: Tokenizer, rows: list[Drawn], folder: Path) -> Path:
        """Every picture as a PNG, and samples.png with a row per class."""
        lines = [
            (row.name if i == 0 else "", part) for row in rows for i, part in enumerate(row.x.split(COLUMNS))
        ]
        used = set[str]()
        for row, (name, x, *_) in enumerate(rows):
            stem = re.sub(r"[^\w-]+", "-", name)
            stem = f"{stem}-{row}" if stem in used else stem
            used.add(stem)
            for i, picture in enumerate(tok.postprocess(x)):
                picture.save(folder / f"{stem}-{i:04d}.png")
        sample_sheet(lines, folder / "samples.png")
        return folder / "samples.png"

    def card_sample(self, tok: Tokenizer, rows: list[tuple[str, Tensor]], folder: Path) -> None:
        """sample.png, a row per class."""
        sample_sheet(rows, folder / "sample.png")

    def neighbours(
        self, tok: Tokenizer, names: list[str], samples: Tensor, nearest: Tensor, folder: Path
    ) -> Path:
        """neighbours.png, pairs of pictures."""
        reconstruction_sheet(samples, nearest, folder / "neighbours.png", names=("sample", "nearest"))
        return folder / "neighbours.png"


def some_pictures(examples: Examples, some: int) -> Tensor:
    """`some` pictures, or all, spread evenly over the examples: (b, C, H, W) in [-1, 1]."""
    return to_float(examples.take_readable(np.array(spread_out(len(examples), some)))[0])


def write_codebook(tok: Tokenizer, examples: Examples, path: Path) -> None:
    """How often each code occurs in the examples, and where the codebook's entries lie among what the encoder
    gives for some of them."""
    usage = CodeUsage(tok.num_codebooks, tok.codebook_size, device=tok.device)
    for x, _ in examples.inputs(EVAL_BATCH):
        usage.update(tok.encode(x.to(tok.device)))
    x = some_pictures(examples, CLOUD).to(tok.device)
    outputs = tok.bottleneck.compared(tok(x).z_e)
    codebook_plot(usage.counts.cpu(), path, tok.bottleneck.codebook_vectors(), outputs)
