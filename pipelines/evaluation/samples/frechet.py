"""The Fréchet distance of short windows of log-mel spectrograms: how far two sets of sounds lie apart.

A window of 0.5 s is 60 numbers: 20 mel bands (log10 of magnitudes, at least -5), each averaged over the three
thirds of the window. Of few windows a covariance is noisy, so its values off the diagonal are shrunk by a
tenth, the same for every set. The distance of finite sets is above 0 all the same: compare it with that of as
many windows of real sound.
"""

from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from tokenizer.spectral import log_mel

SECONDS, BANDS, THIRDS, SHRINKAGE = 0.5, 20, 3, 0.1


class Gaussian(NamedTuple):
    """A mean (d,) and a covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor


def mel_windows(x: Tensor, sample_rate: int) -> Tensor:
    """x (B, C, T) in [-1, 1] → features (n, 60) of its whole windows of 0.5 s, channels averaged."""
    size = round(SECONDS * sample_rate)
    whole = x.shape[2] // size
    parts = rearrange(x[:, :, : whole * size].mean(1), "b (n t) -> (b n) 1 t", n=whole)
    mel = log_mel(parts, sample_rate, bands=BANDS)[:, 0]
    thirds = [reduce(part, "n m t -> n m", "mean") for part in mel.tensor_split(THIRDS, dim=2)]
    return torch.cat(thirds, dim=1)


def gaussian_of(features: Tensor, shrinkage: float = SHRINKAGE) -> Gaussian:
    """The mean and the covariance of features (n, d), n at least 2, the latter shrunk to its diagonal."""
    if len(features) < 2:
        raise ValueError(f"features: expected 2 rows or more, got {len(features)}")
    values = features.double()
    covariance = values.T.cov()
    diagonal = torch.diag(covariance.diagonal())
    return Gaussian(values.mean(0), (1 - shrinkage) * covariance + shrinkage * diagonal)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½) (Dowson and Landau 1982), exact, in the square of
    the features' unit."""
    root = _root(a.covariance)
    middle = _root(root @ b.covariance @ root)
    apart = (a.mean - b.mean).square().sum()
    return float(apart + (a.covariance + b.covariance - 2 * middle).trace())


def _root(matrix: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return root
