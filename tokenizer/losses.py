"""Reconstruction losses by name, each a plain function of `(x_hat, x)` on data in [-1, 1].

Left out: a bottleneck's own losses (they come with its output), adversarial losses, and
`tokenizer.perceptual`.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from tokenizer.spectral import mel_distance, stft_distance

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Loss:
    """A registered loss: `function(x_hat, x) -> scalar`, for data in [-1, 1] of one `modality` (None: of
    any). Those of sound take the sample rate as a third argument."""

    modality: str | None
    function: LossFunction


LOSSES: dict[str, Loss] = {}


def loss(name: str, modality: str | None = None) -> Callable[[LossFunction], LossFunction]:
    """Enter a function `(x_hat (B, C, *size), x[, sample_rate]) -> scalar` in the registry as `name`.

    The function runs with autocast off and in at least float32 (float64 stays), and sees equal shapes only.
    """

    def register(function: LossFunction) -> LossFunction:
        @functools.wraps(function)
        def guarded(x_hat: Tensor, x: Tensor, *sample_rate: int) -> Tensor:
            if x_hat.shape != x.shape or x.numel() == 0:
                shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
                raise ValueError(f"{name}: x_hat and x must have one shape and not be empty, got {shapes}")
            dtype = torch.promote_types(torch.promote_types(x_hat.dtype, x.dtype), torch.float32)
            with torch.autocast(x.device.type, enabled=False):
                return function(x_hat.to(dtype), x.to(dtype), *sample_rate)

        if name in LOSSES:
            raise ValueError(f"there is already a loss named {name!r}")
        LOSSES[name] = Loss(modality, guarded)
        return guarded

    return register


@loss("l1")
def l1(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(x_hat, x)


@loss("l2")
def l2(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(x_hat, x)


@loss("bernoulli", modality="image")
def bernoulli(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean nats per element of x binarised at 0, with (x_hat + 1) / 2 read as the probability of 1.

    Clamped away from 0 and 1 as in `tokenizer.metrics.bernoulli_elbo`; a decoder ending in tanh stays
    inside.
    """
    p = ((x_hat + 1) / 2).clamp(1e-6, 1 - 1e-6)
    return F.binary_cross_entropy(p, (x > 0).to(p.dtype))


# Error of a colour, over data in [-1, 1], from which on more of it counts less and less.
CAUCHY_SCALE = 0.1


@loss("cauchy", modality="image")
def cauchy(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean over pixels of log(1 + |e|² / 0.1²), e the error of a colour.

    It is least near what is most likely, not near the mean of all that could be, and so keeps edges sharp
    (Barron 2019, arXiv 1701.03077, α = 0).
    """
    return torch.log1p((x_hat - x).square().sum(1) / CAUCHY_SCALE**2).mean()


# Weights of the scales, finest first (Wang, Simoncelli and Bovik 2003, "Multiscale structural similarity").
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@loss("ms_ssim", modality="image")
def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """1 - MS-SSIM of pictures (B, C, H, W), averaged over the batch; 0 for equal pictures.

    Pictures whose shorter side is at least 176 get the paper's five scales and 11-tap Gaussian window (σ
    1.5). Smaller ones get a 7-tap window (σ 6/7, about the same shape) and as many scales as hold it,
    halving each time, with the first betas rescaled to sum to 1: one scale from 7 pixels, 2 from 14, 3
    from 28, 4 from 56, 5 from 112.

    `ValueError` below 7 pixels. SSIM changes when values are shifted, so it is computed on [0, 1], as
    usual.
    """
    side = min(x.shape[-2:])
    taps, sigma = (11, 1.5) if side >= 11 * 2**4 else (7, 6 / 7)
    if side < taps:
        raise ValueError(
            f"ms_ssim: needs pictures of at least {taps} x {taps} pixels, got {tuple(x.shape[-2:])}; "
            "set its weight to 0 and use l1 or l2"
        )
    scales = min(len(MS_SSIM_BETAS), int(math.log2(side // taps)) + 1)
    betas = [beta / sum(MS_SSIM_BETAS[:scales]) for beta in MS_SSIM_BETAS[:scales]]
    a, b = (x_hat + 1) / 2, (x + 1) / 2
    similarity = torch.ones_like(x[:, 0, 0, 0])
    for scale, beta in enumerate(betas):
        luminance, structure = _ssim_terms(a, b, taps, sigma)
        term = luminance * structure if scale == scales - 1 else structure
        similarity = similarity * _above_zero(reduce(term, "b c h w -> b", "mean")) ** beta
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return 1 - similarity.mean()


def _ssim_terms(a: Tensor, b: Tensor, taps: int, sigma: float) -> tuple[Tensor, Tensor]:
    """SSIM's luminance and contrast-structure maps of pictures in [0, 1], where the window fits whole."""
    offset = torch.arange(taps, dtype=a.dtype, device=a.device) - (taps - 1) / 2
    window = torch.softmax(-0.5 * (offset / sigma) ** 2, dim=0)
    stack = torch.stack((a, b, a * a, b * b, a * b))
    flat = rearrange(stack, "s b c h w -> (s b c) 1 h w")
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_a, mean_b, aa, bb, ab = flat.view(5, *a.shape[:2], *flat.shape[-2:])
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    variances = aa - mean_a**2 + bb - mean_b**2
    return luminance, (2 * (ab - mean_a * mean_b) + c2) / (variances + c2)


def _above_zero(s: Tensor, delta: float = 0.01) -> Tensor:
    """A smooth floor: `s` to within 3e-5 when positive and not small, above 0 when not, and 1 at 1.

    With the usual relu, pictures that anti-correlate (as at the start of training) have the gradient of
    `relu(s) ** beta` at 0, which is NaN.
    """
    return (s + torch.sqrt(s * s + delta**2)) / (1 + math.sqrt(1 + delta**2))


@loss("mel", modality="audio")
def mel(x_hat: Tensor, x: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log10 mel magnitudes over six windows
    (`tokenizer.spectral.mel_distance`)."""
    return mel_distance(x_hat, x, sample_rate).mean()


@loss("stft", modality="audio")
def stft(x_hat: Tensor, x: Tensor, sample_rate: int) -> Tensor:
    """Spectral convergence and log magnitude at three resolutions (`tokenizer.spectral.stft_distance`)."""
    return stft_distance(x_hat, x).mean()


def default_weights() -> dict[str, float]:
    """Every registered loss at weight 0."""
    return dict.fromkeys(LOSSES, 0.0)


def describe_losses() -> list[str]:
    """What every registered loss is, for people: its name, its data, and the first sentence of its docs."""
    kinds = {"image": " (pictures)", "audio": " (sound)"}
    described = []
    for name, entry in LOSSES.items():
        about = re.split(r"[.;]\s", f"{entry.function.__doc__ or name} ")[0]
        about = " ".join(re.sub(r"\s\((`.*?`|B, .*?)\)", "", about).split())
        described.append(f"{name}{kinds.get(entry.modality or '', '')}: {about[:1].lower()}{about[1:]}")
    return described


def validate_weights(weights: Mapping[str, float], modality: str) -> None:
    """`ValueError` if a name is no loss of `modality`, a weight is negative or not finite, or all are 0."""
    known = sorted(name for name, entry in LOSSES.items() if entry.modality in (None, modality))
    for name, weight in weights.items():
        # A weight of 0 on another modality's loss is what `default_weights` gives.
        if name not in known and not (name in LOSSES and weight == 0):
            raise ValueError(f"unknown {modality} loss {name!r}; known: {', '.join(known)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"loss weight {name} must be finite and not negative, got {weight}; known: {', '.join(known)}"
            )
    if not any(weights.values()):
        raise ValueError(f"all loss weights are 0; give at least one of {', '.join(known)} a positive weight")


def reconstruction_losses(
    x_hat: Tensor, x: Tensor, weights: Mapping[str, float], sample_rate: int = 0
) -> dict[str, Tensor]:
    """The unweighted scalar terms whose weight is positive; the others are not computed.

    `sample_rate` in Hz is for sound. `ValueError` for an unknown name or unequal shapes.
    """
    if unknown := sorted(set(weights) - set(LOSSES)):
        raise ValueError(f"unknown loss {unknown[0]!r}; known: {', '.join(sorted(LOSSES))}")
    chosen = {name: LOSSES[name] for name, weight in weights.items() if weight > 0}
    rate = {name: (sample_rate,) if entry.modality == "audio" else () for name, entry in chosen.items()}
    return {name: entry.function(x_hat, x, *rate[name]) for name, entry in chosen.items()}
