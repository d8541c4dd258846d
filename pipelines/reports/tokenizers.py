"""What people look at of a tokenizer: reconstructions, its codebook, the course of its training.

Left out: drawing (`sheets.py`, `plots.py`), and what is written of sound (`sounds.py`).
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.batches import Splits, held_out_batches, to_float
from pipelines.data.pictures import Examples
from pipelines.data.sounds import Clips
from pipelines.evaluation.sounds import Measured
from pipelines.evaluation.tokenizers import EVAL_BATCH
from pipelines.reports.plots import codebook_plot, loss_plot
from pipelines.reports.sheets import reconstruction_sheet
from pipelines.reports.sounds import SOUNDS, write_sound_results, write_sound_sample
from tokenizer import Tokenizer
from tokenizer.hub.files import remove_unfinished
from tokenizer.metrics import CodeUsage

# Pictures on the sheet of reconstructions, and those whose encoder outputs lie behind the codebook.
SHEET, CLOUD = 24, 64


def write_tokenizer_report(tok: Tokenizer, splits: Splits, measured: Measured | None, folder: Path) -> None:
    """`write_results`, and loss.png, in the `folder` of a run."""
    remove_unfinished(folder / SOUNDS)
    write_results(tok, splits, measured, folder)
    loss_plot(folder / "metrics.jsonl", folder / "loss.png")


def write_results(tok: Tokenizer, splits: Splits, measured: Measured | None, folder: Path) -> None:
    """The files that show what a tokenizer keeps of held-out data, in `folder`; `measured` are the measures
    of sound."""
    source = splits.held_out if len(splits.held_out) else splits.train
    if isinstance(source, Clips):
        rows = write_sound_results(tok, source, measured or Measured({}, None), folder, splits.name)
        write_sound_sample(tok, rows, folder)
    else:
        write_picture_results(tok, source, folder)
        shutil.copyfile(folder / "reconstructions.png", folder / "sample.png")


def write_picture_results(tok: Tokenizer, examples: Examples, folder: Path) -> None:
    """reconstructions.png, and codebook.png if there are codes, in `folder`."""
    write_reconstructions(tok, examples, folder / "reconstructions.png")
    if tok.bottleneck.num_codebooks:
        write_codebook(tok, examples, folder / "codebook.png")


def spread_out(count: int, some: int) -> list[int]:
    """`some` indices, or all, spread evenly over `count`."""
    picked: list[int] = torch.linspace(0, count - 1, min(some, count)).round().long().tolist()
    return picked


def some_pictures(examples: Examples, some: int) -> Tensor:
    """`some` pictures, or all, spread evenly over the examples: (b, C, H, W) in [-1, 1]."""
    return to_float(examples.take_readable(np.array(spread_out(len(examples), some)))[0])


@torch.no_grad()
def write_reconstructions(tok: Tokenizer, examples: Examples, path: Path) -> None:
    """Some pictures, spread over the examples, above what the tokenizer makes of them."""
    tok.eval()
    x = some_pictures(examples, SHEET).to(tok.device)
    reconstruction_sheet(x.cpu(), tok(x).x_hat.cpu(), path)


def write_codebook(tok: Tokenizer, examples: Examples, path: Path) -> None:
    """How often each code occurs in the examples, and where the codebook's entries lie among what the encoder
    gives for some of them."""
    usage = CodeUsage(tok.num_codebooks, tok.codebook_size, device=tok.device)
    for batch in held_out_batches(examples, EVAL_BATCH):
        if not len(batch.x):
            continue
        usage.update(tok.encode(to_float(batch.x.to(tok.device))))
    x = some_pictures(examples, CLOUD).to(tok.device)
    outputs = tok.bottleneck.compared(tok(x).z_e)
    codebook_plot(usage.counts.cpu(), path, tok.bottleneck.codebook_vectors(), outputs)
