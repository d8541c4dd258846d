"""Measures of tokenizers of series on held-out ones."""

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data.clips import Clips
from pipelines.evaluation.clips import evaluate_clips
from pipelines.evaluation.tokenizers import MEASURES, Means, Measured
from tokenizer import Tokenizer


@MEASURES.enter("series")
def evaluate_series(
    tok: Tokenizer, clips: Clips, accelerator: Accelerator, batch_size: int, thorough: bool
) -> Measured:
    """`evaluate_clips` of l1, l2 and snr (dB, of what is not constant). `batch_size` has no effect: series go
    one by one."""
    return evaluate_clips(tok, clips, accelerator, measure_series, thorough=thorough)


def measure_series(mean: Means, x_hat: Tensor, x: Tensor, sample_rate: int) -> None:
    """Take the measures of x_hat against x, (B, C, T) both, into `mean`. snr is the variance of each channel
    over the mean square of its error, averaged over the channels that vary."""
    error = x_hat - x
    mean.add("l1", float(error.abs().flatten(1).mean(1).double().sum()), len(x))
    mean.add("l2", float(error.square().flatten(1).mean(1).double().sum()), len(x))
    variance, noise = x.double().var(dim=2, correction=0), error.double().square().mean(dim=2)
    varies = variance > 0
    ratio = 10 * torch.log10(variance / noise.clamp_min(torch.finfo(torch.float32).tiny))
    mean.add("snr", float(ratio[varies].sum()), float(varies.sum()))
