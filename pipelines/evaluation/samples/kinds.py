"""Drawing samples to be measured, the table of what was measured, and the registry of measures.

Left out: the measures themselves, which stand in a file beside this one for each modality; a new file is
found without touching others.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipelines.data.batches import Splits
from pipelines.data.kinds import ByModality
from pipelines.run.generator import Generator
from pipelines.run.progress import progress
from pipelines.tokens.items import TokenRows
from prior import Prior
from prior.checks import UNCONDITIONAL
from prior.sampling.choice import SamplingOptions
from tokenizer import Tokenizer

# Fewer say nothing of a distance between sets.
LEAST = 4
# Whose figures stand beside each other, in this order.
SETS = ("samples", "reconstructions", "training", "held_out")


class Draw(NamedTuple):
    """Samples of one seed: codes (N, K, *grid) and the classes asked for (N,), -1 for none."""

    codes: Tensor
    labels: Tensor


class Figure(NamedTuple):
    """A mean over seeds, and its spread, the standard deviation over them: None for a single value."""

    mean: float
    spread: float | None


class Figures:
    """What was measured, by figure and by the set it was measured of, one of `SETS`."""

    def __init__(self) -> None:
        self._values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, figure: str, of: str, value: float) -> None:
        """Take in the value of a seed, or the only one."""
        assert of in SETS
        self._values[figure][of].append(value)

    def table(self) -> dict[str, dict[str, Figure]]:
        """{figure: {set: its mean and spread}}, sets in the order of `SETS`."""
        return {
            name: {of: _figure(found[of]) for of in SETS if of in found}
            for name, found in self._values.items()
        }

    def metrics(self) -> dict[str, float]:
        """By the names `SET_FIGURE`, and `SET_FIGURE_std` for the spread."""
        flat = {}
        for name, row in self.table().items():
            for of, (mean, spread) in row.items():
                flat[f"{of}_{name}"] = mean
                if spread is not None:
                    flat[f"{of}_{name}_std"] = spread
        return flat


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


class SampleMeasures(Protocol):
    """Measures of one modality. Making them raises `ValueError` for data they cannot be taken of, and for
    packages that are missing; nothing was drawn before that."""

    def __init__(self, generator: Generator, splits: Splits, count: int, batch_size: int) -> None: ...

    def measure(self, draws: Sequence[Draw], items: TokenRows | None) -> Figures:
        """Of samples, of reconstructions and of training and held-out items; `items`: the tokens that the
        prior learnt, among whose codes those of samples are looked for."""
        ...


MEASURES = ByModality[type[SampleMeasures]]("pipelines.evaluation.samples", "measures of samples")


def check_samples(prior: Prior, splits: Splits, count: int, cfg_scale: float) -> None:
    """`ValueError` for a number of samples that cannot be drawn or measured, guidance that the prior has not
    learnt, and for data of which nothing is held out."""
    classes, many = len(prior.config.class_names), splits.train.kind.many
    if count < LEAST:
        raise ValueError(f"--samples {count}: expected {LEAST} or more; some hundreds give a steady figure")
    if classes and count % classes:
        near = [n for n in (count // classes * classes, (count // classes + 1) * classes) if n >= LEAST]
        raise ValueError(
            f"--samples {count}: as many of each of the prior's {classes} classes are drawn; give "
            f"{' or '.join(map(str, near))}"
        )
    if cfg_scale != 1 and not (classes and prior.config.unconditional):
        why = "has no classes" if not classes else "knows codes of its classes only (label dropout was 0)"
        raise ValueError(f"--cfg-scale {cfg_scale}: this prior {why}; leave it out")
    if len(splits.held_out) < LEAST:
        raise ValueError(
            f"--samples compares with held-out {many}, and {len(splits.held_out)} are held out; give data "
            f"with {LEAST} or more, or raise --data.valid-fraction"
        )


def draw_samples(
    generator: Generator, count: int, seeds: int, batch_size: int, options: SamplingOptions
) -> list[Draw]:
    """`count` samples for each of the seeds 0, 1, ..., as many of each class, class after class: those that
    `sample.py` draws with that seed."""
    names = generator.prior.config.class_names
    asked = list(range(len(names))) or [UNCONDITIONAL]
    each, draws = count // len(asked), []
    with progress(seeds * each * len(asked), "sample") as bar:
        for seed in range(seeds):
            parts = list[Tensor]()
            for label in asked:
                for codes in generator.draw(label, each, None, None, seed, batch_size, **options):
                    parts.append(codes.cpu())
                    bar.update(len(codes))
            draws.append(Draw(torch.cat(parts), torch.tensor(asked).repeat_interleave(each)))
    return draws


@torch.no_grad()
def decoded(generator: Generator, draw: Draw, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples of a draw x (b, C, *size), on the tokenizer's device, and their labels (b,), in batches."""
    for codes, labels in zip(draw.codes.split(batch_size), draw.labels.split(batch_size), strict=True):
        yield generator.decode(codes).float().clamp(-1, 1), labels


@torch.no_grad()
def rebuilt(tok: Tokenizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, C, *size) rebuilt, and its codes (b, K, *grid) on the CPU."""
    codes = tok.encode(x)
    return tok.decode(codes, tuple(x.shape[2:])).float().clamp(-1, 1), codes.cpu()
