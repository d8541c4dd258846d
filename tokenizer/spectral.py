"""Spectrograms of sound and how far two of them lie apart: for losses, metrics and plots.

Left out: waveform measures (`tokenizer.sound_metrics`) and drawing (`pipelines/`).
"""

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Windows of the mel distance in samples, and mel bands for each (Kumar et al. 2023, arXiv 2306.06546,
# section 3.5, less the shortest window, whose five bands say little that the waveform does not).
MEL_WINDOWS = ((64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
# FFT size, hop and window of the STFT distance (Yamamoto et al. 2020, arXiv 1910.11480, table 1).
STFT_SIZES = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))
# Magnitudes below it count as silence, so that a loss does not chase the noise of quiet passages.
FLOOR = 1e-5
# A reference below -60 dB of full scale is taken for one of that level where it is divided by: a silent clip
# would weigh 10,000 times as much as all others.
QUIET = 1e-3


def magnitude(x: Tensor, fft: int, hop: int, window: int) -> Tensor:
    """x (B, C, T) → magnitudes (B, C, fft/2 + 1, frames), Hann window, frames centred, zeros around x."""
    hann = torch.hann_window(window, device=x.device, dtype=x.dtype)
    flat = rearrange(x, "b c t -> (b c) t")
    spectrum = torch.stft(flat, fft, hop, window, hann, center=True, pad_mode="constant", return_complex=True)
    return rearrange(spectrum.abs(), "(b c) f t -> b c f t", b=x.shape[0])


def log_mel(x: Tensor, sample_rate: int, window: int = 1024, hop: int = 256, bands: int = 80) -> Tensor:
    """x (B, C, T) → log10 of mel magnitudes (B, C, bands, frames), at least -5."""
    filters = _mel_filters(window // 2 + 1, sample_rate, bands, x.device, x.dtype)
    magnitudes = torch.einsum("fm,bcft->bcmt", filters, magnitude(x, window, hop, window))
    return magnitudes.clamp(min=FLOOR).log10()


def mel_distance(x_hat: Tensor, x: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log10 mel magnitudes, (B, C, T) twice → (B,), averaged over the windows.

    `ValueError` for unequal shapes.
    """
    _check_pair(x_hat, x)
    total = x.new_zeros(len(x))
    for window, bands in MEL_WINDOWS:
        a, b = (log_mel(y, sample_rate, window, window // 4, bands) for y in (x_hat, x))
        total = total + (a - b).abs().flatten(1).mean(1)
    return total / len(MEL_WINDOWS)


def stft_distance(x_hat: Tensor, x: Tensor) -> Tensor:
    """Spectral convergence plus the mean difference of log magnitudes, (B, C, T) twice → (B,), averaged over
    three resolutions (Yamamoto et al. 2020, equations 4 to 6). `ValueError` for unequal shapes."""
    _check_pair(x_hat, x)
    total = x.new_zeros(len(x))
    for fft, hop, window in STFT_SIZES:
        a, b = (magnitude(y, fft, hop, window).flatten(1) for y in (x_hat, x))
        # Of noise of level r, the mean square under a Hann window is 3/8 · window · r².
        quiet = QUIET * math.sqrt(3 / 8 * window * b.shape[1])
        convergence = (a - b).norm(dim=1) / b.norm(dim=1).clamp(min=quiet)
        difference = (a.clamp(min=FLOOR).log() - b.clamp(min=FLOOR).log()).abs().mean(1)
        total = total + convergence + difference
    return total / len(STFT_SIZES)


def mel(hz: Tensor) -> Tensor:
    """Hz → mel after Slaney's Auditory Toolbox: linear up to 1 kHz (15 mel), logarithmic above."""
    return torch.where(hz < 1000, hz * 3 / 200, 15 + (hz.clamp(min=1000) / 1000).log() * 27 / math.log(6.4))


def mel_edges(sample_rate: int, bands: int) -> Tensor:
    """(bands + 2,) float64 in Hz, evenly spaced in mel from 0 to half the sample rate: band m rises from edge
    m, has its peak at edge m + 1 and ends at edge m + 2."""
    top = float(mel(torch.tensor(sample_rate / 2, dtype=torch.float64)))
    at = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    return torch.where(at < 15, at * 200 / 3, 1000 * ((at - 15) * math.log(6.4) / 27).exp())


def _check_pair(x_hat: Tensor, x: Tensor) -> None:
    if x_hat.shape != x.shape or x.ndim != 3:  # (B, 1, T) beside (B, 2, T) would be broadcast
        shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
        raise ValueError(f"x_hat and x must have one shape (B, C, T), got {shapes}")


@functools.lru_cache(maxsize=64)
def _mel_filters(bins: int, sample_rate: int, bands: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Triangular filters (bins, bands) with peak 1 between the edges of `mel_edges`. A band so narrow that it
    lies between two bins would be empty; it takes the bin nearest to its peak."""
    with torch.inference_mode(False):  # else a first call in inference mode caches what no gradient may pass
        edges = mel_edges(sample_rate, bands)
        hz = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)
        low, peak, high = edges[:-2], edges[1:-1], edges[2:]
        rise, fall = (hz[:, None] - low) / (peak - low), (high - hz[:, None]) / (high - peak)
        filters = torch.minimum(rise, fall).clamp(min=0)
        nearest = F.one_hot((peak / hz[1]).round().long(), bins).T
        empty = filters.amax(0) == 0
        return torch.where(empty, nearest, filters).to(device, dtype)
