"""How likely codes are to a prior: in all, and by position and codebook.

Left out: the likelihood itself (`Prior.likelihood`), and plots.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.evaluation.tokenizers import EVAL_BATCH
from pipelines.run.processes import sum_over_processes
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenRows
from prior import Prior

NAME = "prior-positions"
# Random orders that a prior of every order is measured in.
ORDERS = 4


@dataclass(frozen=True)
class Positions:
    """Means over items, in bits, (K, *grid): `bits` that codes took, and `entropy` of their predictions."""

    bits: Tensor
    entropy: Tensor

    def by_codebook(self) -> dict[str, float]:
        """bits_per_code_1, ...: of each codebook, if there are several."""
        means = self.bits.flatten(1).mean(1).tolist() if len(self.bits) > 1 else []
        return {f"bits_per_code_{k + 1}": value for k, value in enumerate(means)}


def measure_positions(
    prior: Prior, split: TokenRows, accelerator: Accelerator, batch_size: int = EVAL_BATCH
) -> Positions:
    """Of all items of `split`, given their labels, each counted once over all processes. `ValueError` if
    there are none."""
    if not len(split):
        raise ValueError("split: expected an item or more to measure, got none; give data with items")
    config = prior.config
    totals = torch.zeros(2, config.num_codebooks, *config.grid, dtype=torch.float64)
    for codes, labels in code_batches(split, accelerator, batch_size):
        totals += torch.stack(prior.likelihood(codes, labels)).double().sum(1).cpu()
    bits, entropy = sum_over_processes(accelerator, totals) / math.log(2) / len(split)
    return Positions(bits, entropy)


def code_batches(
    split: TokenRows, accelerator: Accelerator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of codes, in batches, with their labels (b,)."""
    count, rank, world = len(split), accelerator.process_index, accelerator.num_processes
    mine = np.arange(count * rank // world, count * (rank + 1) // world)
    for start in range(0, len(mine), batch_size):
        codes, labels = split.rows(mine[start : start + batch_size])
        yield codes.to(accelerator.device), labels.to(accelerator.device)


@torch.no_grad()
def evaluate_prior(
    prior: Prior, info: TokenInfo, split: TokenRows, accelerator: Accelerator, batch_size: int = EVAL_BATCH
) -> dict[str, float]:
    """Exact likelihoods, each item counted once over all processes; {} if there are none.

    bits_per_code with the items' labels, bits_per_code_unconditional without (if the prior learnt that), and
    bits_per_pixel: the bits of an item's codes over its pixels, which is lossy, so not comparable with
    lossless models. For sound, instead, bits_per_second: the bits of a window over its seconds. Of a prior of
    every order bits_per_code_random_order too: the mean over `ORDERS` random orders, always the same ones,
    and the standard deviation over them; all else is in raster order.
    """
    both = bool(info.class_names) and prior.config.unconditional
    orders = ORDERS if prior.config.order == "any" else 0
    totals = torch.zeros(2 + orders, dtype=torch.float64)
    for codes, labels in code_batches(split, accelerator, batch_size):
        totals[0] += prior.nll(codes, labels).double().sum().cpu()
        if both:
            totals[1] += prior.nll(codes).double().sum().cpu()
        if orders:
            totals[2:] += prior.nll_over_orders(codes, labels, orders, 0).double().sum(1).cpu()
    totals = sum_over_processes(accelerator, totals)
    if not len(split):
        return {}
    labelled, unlabelled, *ordered = (totals / math.log(2) / len(split)).tolist()
    metrics = {"bits_per_code": labelled / info.codes_per_item}
    if both:
        metrics["bits_per_code_unconditional"] = unlabelled / info.codes_per_item
    if ordered:
        per_code = [bits / info.codes_per_item for bits in ordered]
        metrics["bits_per_code_random_order"] = statistics.fmean(per_code)
        metrics["bits_per_code_random_order_std"] = statistics.stdev(per_code)
    if info.frame_rate:
        metrics["bits_per_second"] = labelled / (info.grid[0] / info.frame_rate)
    else:
        metrics["bits_per_pixel"] = labelled / math.prod(info.item_shape[1:])
    return metrics
