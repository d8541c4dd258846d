"""What people look at of a tokenizer: what it keeps of data, and the course of its training.

Left out: what that is of a modality (`kinds.py`).
"""

from pathlib import Path

from pipelines.data.batches import Splits
from pipelines.evaluation.tokenizers import Measured
from pipelines.reports.kinds import report_of
from pipelines.reports.plots import loss_plot
from tokenizer import Tokenizer


def write_tokenizer_report(tok: Tokenizer, splits: Splits, measured: Measured, folder: Path) -> None:
    """`write_results`, and loss.png, in the `folder` of a run."""
    write_results(tok, splits, measured, folder)
    loss_plot(folder / "metrics.jsonl", folder / "loss.png")


def write_results(
    tok: Tokenizer, splits: Splits, measured: Measured, folder: Path, sample: bool = True
) -> None:
    """The files that show what a tokenizer keeps of held-out data, of which `measured` are the measures, in
    `folder`; with `sample` also those for its card."""
    source = splits.held_out if len(splits.held_out) else splits.train
    report_of(tok.modality).reconstructions(tok, source, measured, folder, splits.name, sample)
