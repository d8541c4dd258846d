"""Measure a tokenizer, and a prior over its codes, on held-out data: `python pipelines/evaluate.py
--tokenizer DIR`.

Left out: training curves, which the training scripts write.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.cli import parse, run
from pipelines.data import DataConfig, Examples, held_out_batches, load_splits, to_float
from pipelines.evaluation import (
    EVAL_BATCH,
    evaluate_prior,
    evaluate_tokenizer,
    write_codebook,
    write_reconstructions,
)
from pipelines.kid import evaluate_kid, load_features
from pipelines.models import load_models
from pipelines.tokens import TokenInfo, TokenSplit
from pipelines.training import quiet_logging
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.config import require
from tokenizer.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of evaluate.py."""

    tokenizer: str = ""
    """Folder or Hub id of a tokenizer; left out, the one that the prior names."""
    prior: str = ""
    """Folder or Hub id of a prior over its codes, to be measured too."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data to measure on: their held-out part, or all if none is held out."""
    output: Path = Path("runs/eval")
    """Folder for metrics.json and pictures."""
    batch_size: int = 128
    """Items per forward pass and process."""
    kid: str = ""
    """Also report the kernel inception distance of reconstructions (and of the prior's samples) in the
    features of this network, e.g. torchvision:inception_v3 or torchvision:inception_v3:WEIGHTS. Needs
    tokenloom[kid]."""
    kid_download: bool = False
    """Allow the feature network's weights to be downloaded."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected 1 or more")


def main() -> None:
    """Measure, print one table, write metrics.json and the sheet of reconstructions."""
    options = parse(EvaluateOptions, __doc__ or "")
    accelerator = Accelerator()
    quiet_logging(accelerator)
    prior, tok = load_models(options.prior, options.tokenizer, accelerator.device)
    network = load_features(options.kid, options.kid_download).to(accelerator.device) if options.kid else None
    splits = load_splits(options.data, tok.modality.fit)
    examples = splits.held_out if len(splits.held_out) else splits.train
    if not len(splits.held_out):
        logger.warning("nothing is held out in %s: measuring on all of it", options.data.path)
    metrics = {"items": float(len(examples))}
    metrics |= evaluate_tokenizer(tok, examples, accelerator, options.batch_size)
    if prior is not None:
        info, split = encode_examples(tok, examples, splits.class_names, prior)
        prior_metrics = evaluate_prior(prior, info, split, accelerator, options.batch_size)
        metrics |= {f"prior_{k}": v for k, v in prior_metrics.items()}
    if network is not None and accelerator.is_main_process:
        metrics |= evaluate_kid(network, tok, prior, examples, options.batch_size)
    if accelerator.is_main_process:
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(metrics, indent=2) + "\n"
        write_atomically(options.output / "metrics.json", lambda p: p.write_text(text, encoding="utf-8"))
        write_reconstructions(tok, examples, options.output / "reconstructions.png")
        if tok.bottleneck.num_codebooks:
            write_codebook(tok, examples, options.output / "codebook.png")
        for name, value in metrics.items():
            print(f"{name:28} {value:.6g}")
        logger.info("written to %s", options.output)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def encode_examples(
    tok: Tokenizer, examples: Examples, class_names: tuple[str, ...], prior: Prior
) -> tuple[TokenInfo, TokenSplit]:
    """The examples' codes, with labels where the data's class names are the prior's."""
    parts, found = [], []
    for batch in held_out_batches(examples, EVAL_BATCH):
        parts.append(tok.encode(to_float(batch.x.to(tok.device))).cpu())
        found.append(batch.labels.numpy())
    codes = torch.cat(parts).numpy()
    known = class_names == prior.config.class_names and examples.labels is not None
    if class_names and not known:
        logger.warning("the data's classes are not the prior's: measuring without labels")
    labels = np.concatenate(found) if known else np.full(len(codes), -1, np.int64)
    info = TokenInfo(
        tokenizer=prior.config.tokenizer_id,
        fingerprint=prior.config.tokenizer_fingerprint,
        codebook_size=tok.codebook_size,
        num_codebooks=tok.num_codebooks,
        grid=tuple(codes.shape[2:]),
        item_shape=tuple(examples.x(0).shape),
        class_names=class_names if known else (),
    )
    if info.grid != prior.config.grid:
        raise ValueError(
            f"the data give grids of {info.grid} codes, the prior was trained on {prior.config.grid}"
        )
    return info, TokenSplit(codes, labels)


if __name__ == "__main__":
    run(main)
