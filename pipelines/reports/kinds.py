"""What people look at or listen to of a modality: the contract, and the registry.

Left out: the reports themselves, which stand in a file beside this one for each modality; a new file is found
without touching others.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.data.kinds import ByModality
from pipelines.evaluation.tokenizers import Measured
from tokenizer import Tokenizer
from tokenizer.modalities import Modality

# The name of samples of no class.
UNNAMED = "samples"


class Drawn(NamedTuple):
    """Samples x (num, C, *size) in [-1, 1] of a name, and their codes (num, K, *grid), if there are some.
    `given`: how many values along time, at the beginning of each, were not drawn but given."""

    name: str
    x: Tensor
    codes: Tensor | None
    given: int = 0


def numbered(name: str, i: int) -> str:
    """What people read above sample i of a name, counted from 1."""
    return f"{'sample' if name == UNNAMED else name} {i + 1}"


def spread_out(count: int, some: int) -> list[int]:
    """`some` indices, or all, spread evenly over `count`."""
    picked: list[int] = torch.linspace(0, count - 1, min(some, count)).round().long().tolist()
    return picked


class Report:
    """Writes the files of one modality."""

    # Samples of each class on the sheet of a prior's card; samples that are shown beside their neighbours.
    each: int
    pairs: int

    def reconstructions(
        self, tok: Tokenizer, examples: Any, measured: Measured, folder: Path, name: str, sample: bool
    ) -> None:
        """What a tokenizer keeps of some `examples` of a data set of this `name`: reconstructions.* and more;
        with `sample` also sample.*, for the card."""
        raise TypeError(f"{type(self).__name__} does not define reconstructions")

    def samples(self, tok: Tokenizer, rows: list[Drawn], folder: Path) -> Path:
        """Every sample as a file of its own, and all or some of them on samples.png; returns the path of what
        to look at first. What is written last is samples.png: a folder with it is complete."""
        raise TypeError(f"{type(self).__name__} does not define samples")

    def card_sample(self, tok: Tokenizer, rows: list[tuple[str, Tensor]], folder: Path) -> None:
        """sample.* of samples (each, C, *size) by class, for a prior's card."""
        raise TypeError(f"{type(self).__name__} does not define card_sample")

    def neighbours(
        self, tok: Tokenizer, names: list[str], samples: Tensor, nearest: Tensor, folder: Path
    ) -> Path:
        """neighbours.*: samples (b, C, *size) beside the training items nearest to them; returns its path."""
        raise TypeError(f"{type(self).__name__} does not define neighbours")

    def remarks(self, measured: Measured) -> str:
        """What is printed above the table of an evaluation, if anything."""
        return ""


REPORTS = ByModality[type[Report]]("pipelines.reports", "reports")


def report_of(modality: Modality) -> Report:
    """The report of a modality; `ValueError` if there is none."""
    return REPORTS.of(modality)()
