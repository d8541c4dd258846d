"""Measures of reconstructions, codes and likelihoods: plain functions, and a counter of codes.

Left out: feature networks (`kid` takes features), and writing reports.
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from tokenizer.distributed import all_reduce_sum

MAX_PSNR = 100.0  # dB, in place of infinity for equal data


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each item, (B, ...) in [-1, 1] → (B,) in dB; higher is better.

    Values are clamped to [-1, 1], the peak is 2. Equal items would be infinite and give 100 dB, the cap.
    """
    x_hat, x = _pair(x_hat, x)
    return psnr_from_mse(reduce((x_hat.clamp(-1, 1) - x.clamp(-1, 1)) ** 2, "b ... -> b", "mean"))


def psnr_from_mse(mse: Tensor) -> Tensor:
    """PSNR in dB, 10 log10(2² / mse), of mean squared errors on data in [-1, 1]; capped at 100 dB."""
    return (10 * torch.log10(4 / mse)).clamp(max=MAX_PSNR)


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of each picture, (B, C, H, W) in [-1, 1] → (B,); 1 is equal, higher is better.

    Computed on [0, 1] with the usual 11-tap Gaussian window (σ 1.5); on pictures below 11 pixels with the
    largest odd window that fits and σ = (taps - 1) / 7. `ValueError` below 3 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x_hat, x = _pair(x_hat, x)
    side = min(x.shape[2:]) if x.ndim == 4 else 0
    if side < 3:
        raise ValueError(f"ssim: needs pictures (B, C, H, W) of at least 3 x 3 pixels, got {tuple(x.shape)}")
    taps = min(11, side - 1 + side % 2)
    # E[x²] - E[x]² in float32 puts flat regions off by 3e-4; MPS has no float64.
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    a, b = ((p.to(dtype).clamp(-1, 1) + 1) / 2 for p in (x_hat, x))
    # torchmetrics makes a window of 2 · int(3.5 σ + 0.5) + 1 taps.
    sigma = 1.5 if taps == 11 else (taps - 1) / 7
    with torch.autocast(x.device.type, enabled=False):
        value = structural_similarity_index_measure(
            a,
            b,
            sigma=sigma,
            kernel_size=taps,
            reduction="none",
            data_range=1.0,
        )
    if isinstance(value, tuple):
        raise RuntimeError("torchmetrics returned the full SSIM map unasked")
    return value.to(x.dtype)


class CodeUsage:
    """Counts how often each codebook entry is used: `counts` is (K, N) int64.

    `reduce` adds up the counts of all processes; until the next `update`, all values are of the sum. What is
    computed from the counts is float64 on the CPU.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, device: torch.device | str = "cpu") -> None:
        self._local = torch.zeros(num_codebooks, codebook_size, dtype=torch.int64, device=device)
        self._total: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """(K, N) int64: of all processes after `reduce`, else of this one."""
        return self._local if self._total is None else self._total

    def update(self, codes: Tensor) -> None:
        """Count codes (B, K, *grid) of any integer type; `ValueError` if K or a code is out of range."""
        k, n = self._local.shape
        if codes.ndim < 2 or codes.shape[1] != k or codes.is_floating_point():
            raise ValueError(
                f"expected integer codes (B, {k}, *grid), got {codes.dtype} of shape {tuple(codes.shape)}"
            )
        rows = rearrange(codes.to(torch.int64), "b k ... -> k (b ...)")
        if rows.numel() and (rows.min() < 0 or rows.max() >= n):
            raise ValueError(f"codes must lie in [0, {n}), got [{int(rows.min())}, {int(rows.max())}]")
        offsets = torch.arange(k, device=rows.device)[:, None] * n
        counts = torch.bincount((rows + offsets).flatten(), minlength=k * n)
        self._local += counts.view(k, n).to(self._local.device)
        self._total = None

    def reduce(self) -> Self:
        """Sum the counts over all processes; each must call it, and calling it twice changes nothing."""
        self._total = all_reduce_sum(self._local.clone())
        return self

    def usage(self) -> Tensor:
        """(K,) share of entries that are used at all, in [0, 1]."""
        return (self._shares() > 0).double().mean(1)

    def entropy_bits(self) -> Tensor:
        """(K,) entropy of the codes in bits; log2(N) when all entries are used equally."""
        nats: Tensor = torch.special.entr(self._shares()).sum(1)
        return nats / math.log(2)

    def perplexity(self) -> Tensor:
        """(K,) 2^entropy, the number of equally used entries that would have this entropy; in [1, N]."""
        return torch.exp2(self.entropy_bits())

    def _shares(self) -> Tensor:
        counts = self.counts.cpu().double()
        totals = counts.sum(1, keepdim=True)
        if not bool((totals > 0).all()):
            raise ValueError("no codes were counted; call update(codes) first")
        return counts / totals


def gaussian_elbo(x_hat: Tensor, x: Tensor, kl: Tensor, sigma: float) -> Tensor:
    """ELBO in nats, Σ log N(x; x_hat, σ²) - kl, of x_hat, x (B, ...) in [-1, 1] and kl (B,) → (B,).

    It bounds the log density of x from below. σ is fixed, in units of x; `ValueError` unless it is positive
    and finite.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    x_hat, x = _pair(x_hat, x)
    per_value = -0.5 * ((x - x_hat) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    return reduce(per_value, "b ... -> b", "sum") - _per_item(kl, x)


def bits_per_dim(elbo: Tensor, dims: int) -> Tensor:
    """Bits per value of 8-bit data from an ELBO (B,) in nats on the density of `dims` values in [-1, 1].

    256 levels on [-1, 1] are 2/255 apart, and the mass of a level is about the density times that step:
    bits/dim = -(elbo / dims + log(2/255)) / log 2. The approximation needs a σ of at least about a step; at
    a smaller one the "mass" can exceed 1. Not for `bernoulli_elbo`, which is a mass already.
    """
    if dims < 1:
        raise ValueError(f"dims must be the number of values of one item (C · H · W), got {dims}")
    return -(elbo / dims + math.log(2 / 255)) / math.log(2)


def bernoulli_elbo(x_hat: Tensor, x: Tensor, kl: Tensor) -> Tensor:
    """ELBO in nats of grey pictures binarised at 0: x_hat, x (B, 1, H, W) in [-1, 1] and kl (B,) → (B,).

    A pixel is 1 where x > 0, with probability (x_hat + 1) / 2 clamped to [1e-6, 1 - 1e-6].
    """
    x_hat, x = _pair(x_hat, x)
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"bernoulli_elbo: needs grey pictures (B, 1, H, W), got {tuple(x.shape)}")
    probability = ((x_hat + 1) / 2).clamp(1e-6, 1 - 1e-6)
    target = (x > 0).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        nll = F.binary_cross_entropy(probability, target, reduction="none")
    return -reduce(nll, "b ... -> b", "sum") - _per_item(kl, x)


def kid(
    features_a: Tensor,
    features_b: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Kernel inception distance (Bińkowski et al. 2018, arXiv 1801.01401) of features (n, d) and (m, d).

    The unbiased MMD² with the kernel (a·b / d + 1)³, as (mean, standard deviation) over `subsets` random
    pairs of `subset_size` rows, drawn without replacement with `generator` (CPU). About 0, also below, for
    equal distributions. `ValueError` if shapes do not fit or there are fewer than `subset_size` rows.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"kid: needs (n, d) and (m, d), got {tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    rows = min(len(features_a), len(features_b))
    if subsets < 1 or not 2 <= subset_size <= rows:
        raise ValueError(
            f"kid: needs subsets >= 1 and a subset_size in [2, {rows}] (the rows there are), got {subsets} "
            f"and {subset_size}"
        )
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        a, b = (f[_draw(f, subset_size, generator)] for f in (features_a, features_b))
        values[i] = mmd2(a, b)
    return values.mean().item(), values.std(correction=0).item()


def _draw(features: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(len(features), generator=generator)[:size].to(features.device)


def mmd2(
    features_a: Tensor,
    features_b: Tensor,
    weights_a: Tensor | None = None,
    weights_b: Tensor | None = None,
    paired: bool = False,
) -> float:
    """Unbiased MMD² of all rows (n, d) and (m, d) with the kernel of `kid`, which is its mean over subsets.

    `weights_a` (n,) and `weights_b` (m,) say how much rows count (left out: all alike). A row is not compared
    with itself, nor, with `paired`, row i of one set with row i of the other, which was made of it:
    reconstructions would else come out too near to their originals. `ValueError` for shapes that do not fit.
    """
    a, b = features_a.double(), features_b.double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"mmd2: needs (n, d) and (m, d), 2 rows or more, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if paired and len(a) != len(b):
        raise ValueError(f"mmd2: paired rows must be equally many, got {len(a)} and {len(b)}")
    u, v = (torch.ones_like(f[:, 0]) if w is None else w.to(f) for f, w in ((a, weights_a), (b, weights_b)))
    return _kernel(a, a, u, u, True) + _kernel(b, b, v, v, True) - 2 * _kernel(a, b, u, v, paired)


def _kernel(a: Tensor, b: Tensor, u: Tensor, v: Tensor, apart: bool) -> float:
    """Weighted mean of the kernel over pairs of rows; `apart`: without those of equal number."""
    values, weights = (a @ b.T / a.shape[1] + 1) ** 3, torch.outer(u, v)
    if apart:
        weights.fill_diagonal_(0)
    return float((values * weights).sum() / weights.sum())


def _pair(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least float32; `ValueError` for unequal shapes, no items or integers."""
    if x_hat.shape != x.shape or x.ndim < 2 or x.numel() == 0:
        shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
        raise ValueError(f"x_hat and x must have one shape (B, ...) and not be empty, got {shapes}")
    if not (x_hat.is_floating_point() and x.is_floating_point()):
        raise ValueError(f"x_hat and x must be floats in [-1, 1], got {x_hat.dtype} and {x.dtype}")
    dtype = torch.promote_types(torch.promote_types(x_hat.dtype, x.dtype), torch.float32)
    return x_hat.to(dtype), x.to(dtype)


def _per_item(kl: Tensor, x: Tensor) -> Tensor:
    if kl.shape != x.shape[:1]:
        raise ValueError(f"kl must be one value per item, ({len(x)},), got {tuple(kl.shape)}")
    return kl.to(x.dtype)
