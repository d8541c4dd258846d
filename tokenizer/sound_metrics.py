"""Measures of rebuilt sound: how near its waveform is, how intelligible and how good speech sounds; bitrate.

Left out: distances of spectrograms (`tokenizer.spectral`), DNSMOS's network (`tokenizer.dnsmos`), and means
over a data set (`pipelines`).
"""

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from tokenizer import dnsmos as dnsmos_network
from tokenizer.installation import import_torchaudio, install_extra

MAX_SI_SDR = 100.0  # dB, in place of infinity for equal sounds; its negative for a silent x_hat
SILENCE = 1e-4  # RMS, 80 dB below full scale
_PACKAGES = {"stoi": "pystoi", "pesq": "pesq", "dnsmos": dnsmos_network.PACKAGE}
INSTALL = install_extra("metrics")

STOI_RATE = 10_000  # Hz, at which STOI works
STOI_SAMPLES = 30 * 128 + 256  # at that rate: pystoi needs one more, even where nothing is silent
# PESQ writes beyond its tables, and may crash, at more than 50 utterances; each takes 0.4 s or more with the
# pause after it. ITU-T P.862.3 advises speech of 8 to 30 s.
PESQ_SECONDS = 15.0
LOWEST_PESQ = 1.0  # MOS
SHORTEST = 0.25  # seconds that PESQ and DNSMOS are taken of


class Scores(NamedTuple):
    """A measure that some items do not allow: `values` (B,), 0 where `measured` (B,) bool is False.

    The mean over many batches is the sum of `values` over the sum of `measured`.
    """

    values: Tensor
    measured: Tensor

    def mean(self) -> float | None:
        """Mean of the items that were measured; None if none was."""
        return float(self.values.sum() / self.measured.sum()) if bool(self.measured.any()) else None


def is_silent(x: Tensor) -> Tensor:
    """x (B, C, T) in [-1, 1] → (B,) bool: RMS, less each channel's mean, more than 80 dB below full scale."""
    return reduce(_centred(x.float()).square(), "b c t -> b", "mean").sqrt() < SILENCE


def si_sdr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, (B, C, T) in [-1, 1] twice → (B,) in dB; higher is better.

    Le Roux et al. 2019 (arXiv 1811.02508), equation 5, on channels less their means, with one scale for all
    channels of an item. Values lie in [-100, 100]: equal sounds give 100, a silent x_hat -100. A silent
    reference (`is_silent`) has no ratio and gives 0, so that the mean over the others is
    `si_sdr(x_hat, x).sum() / (~is_silent(x)).sum()`. `ValueError` for unequal shapes, NaN or infinity.
    """
    _check_pair(x_hat, x)
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    a, b = (rearrange(_centred(y.to(dtype)), "b c t -> b (c t)") for y in (x_hat, x))
    target = (a * b).sum(1, keepdim=True) / b.square().sum(1, keepdim=True).clamp(min=1e-30) * b
    ratio = 10 * torch.log10(target.square().sum(1) / (a - target).square().sum(1))
    # 0 / 0 is NaN: nothing of the reference in a silent x_hat.
    ratio = ratio.nan_to_num(nan=-MAX_SI_SDR).clamp(-MAX_SI_SDR, MAX_SI_SDR)
    return torch.where(is_silent(x), 0.0, ratio).to(torch.promote_types(x.dtype, torch.float32))


def stoi(x_hat: Tensor, x: Tensor, sample_rate: int) -> Scores:
    """Short-time objective intelligibility of speech (Taal et al. 2011), (B, C, T) in [-1, 1] twice; 1 is
    equal, about 0 unintelligible.

    Channels are mixed to one. Not measured: items with a silent reference, and those with less than 0.4 s
    above a level 40 dB below their loudest part. `ValueError` without the package pystoi, or for unequal
    shapes, NaN or infinity.
    """
    package = _package("stoi")

    def measure(x_hat: Tensor, x: Tensor) -> float | None:
        if x.shape[-1] * STOI_RATE / sample_rate <= STOI_SAMPLES:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
            try:
                return float(package.stoi(x.double().numpy(), x_hat.double().numpy(), sample_rate))
            except RuntimeWarning:
                return None

    return _scores(measure, x_hat, x)


def pesq(x_hat: Tensor, x: Tensor, sample_rate: int) -> Scores:
    """Perceptual evaluation of speech quality as a mean opinion score, (B, C, T) in [-1, 1] twice; 1 is bad,
    about 4.6 equal.

    ITU-T P.862 (narrow band) at 8 kHz, else P.862.2 (wide band) at 16 kHz, to which other rates are
    resampled; scores of the two do not compare. Channels are mixed to one. Clips above 15 s are cut into
    equal parts, of which the mean is taken. A silent x_hat scores 1. Not measured: items with a silent
    reference, those below 0.25 s, and those in which PESQ finds no speech. `ValueError` without the package
    pesq, or for unequal shapes, NaN or infinity.
    """
    package = _package("pesq")
    rate, mode = (8000, "nb") if sample_rate == 8000 else (16000, "wb")

    def measure_part(x_hat: Tensor, x: Tensor) -> float | None:
        if len(x) < rate * SHORTEST or bool(is_silent(x[None, None])):
            return None
        if float(x_hat.abs().max()) < 2**-16:  # silent in 16 bits; PESQ would divide by its level
            return LOWEST_PESQ
        try:
            return float(package.pesq(rate, x.numpy(), x_hat.numpy(), mode))
        except (package.NoUtterancesError, package.BufferTooShortError):
            return None

    def measure(x_hat: Tensor, x: Tensor) -> float | None:
        both = torch.stack([x_hat, x])
        if sample_rate != rate:
            both = import_torchaudio().functional.resample(both, sample_rate, rate)
        parts = both.tensor_split(math.ceil(both.shape[-1] / rate / PESQ_SECONDS), dim=-1)
        found = [score for part in parts if (score := measure_part(*part)) is not None]
        return sum(found) / len(found) if found else None

    return _scores(measure, x_hat, x)


def dnsmos(x_hat: Tensor, x: Tensor, sample_rate: int) -> Scores:
    """Mean opinion score of the whole of speech and background that a network hears (DNSMOS P.835, OVRL),
    (B, C, T) in [-1, 1] twice; about 1 is bad, 4 good.

    It has no reference: x only says which items to leave out, and `dnsmos(x, x, sample_rate)` is the score of
    the data. Channels are mixed to one, rates other than 16 kHz are resampled. Takes 0.4 s of a CPU core for
    9 s and for less, to which 0.4 s come with each second up to 16, and beyond 33. Not measured: items with a
    silent reference, and those below 0.25 s. `ValueError` without the packages speechmos and
    onnxruntime, or for unequal shapes, NaN or infinity.
    """
    _package("dnsmos")
    rate = dnsmos_network.RATE

    def measure(x_hat: Tensor, x: Tensor) -> float | None:
        if len(x) < sample_rate * SHORTEST:
            return None
        if sample_rate != rate:
            x_hat = import_torchaudio().functional.resample(x_hat, sample_rate, rate)
        return dnsmos_network.overall_score(x_hat)

    return _scores(measure, x_hat, x)


def available() -> tuple[str, ...]:
    """Which of "stoi", "pesq" and "dnsmos" can be measured here; the others need `INSTALL`."""
    return tuple(name for name in _PACKAGES if _import(name) is not None)


def bitrate(num_codebooks: int, bits_per_code: float, stride: int, sample_rate: int) -> float:
    """Bits per second of codes: `num_codebooks` of `bits_per_code` bits for every `stride` samples."""
    if min(num_codebooks, bits_per_code, stride, sample_rate) <= 0:
        got = f"{num_codebooks}, {bits_per_code}, {stride} and {sample_rate}"
        raise ValueError(f"num_codebooks, bits_per_code, stride and sample_rate must be positive, got {got}")
    return num_codebooks * bits_per_code * sample_rate / stride


def _import(measure: str) -> Any:
    """The package that computes a measure, or the file of its network; None if it is missing or does not
    load."""
    if measure == "dnsmos":
        return dnsmos_network.weights_file()
    try:
        return importlib.import_module(_PACKAGES[measure])
    except ImportError:
        return None


def _package(measure: str) -> Any:
    package = _import(measure)
    if package is None:
        raise ValueError(f"{measure} needs the package {_PACKAGES[measure]}; {INSTALL}")
    return package


def _scores(measure: Callable[[Tensor, Tensor], float | None], x_hat: Tensor, x: Tensor) -> Scores:
    """`measure(x_hat (T,), x (T,))` on the CPU of each item, mixed to mono, that has a sounding reference."""
    _check_pair(x_hat, x)
    mono = [reduce(y.detach().cpu().float().clamp(-1, 1), "b c t -> b t", "mean") for y in (x_hat, x)]
    silent = is_silent(rearrange(mono[1], "b t -> b 1 t")).tolist()
    pairs = zip(*mono, silent, strict=True)
    found = [None if skip else measure(one_hat, one) for one_hat, one, skip in pairs]
    values = torch.tensor([0.0 if value is None else value for value in found], device=x.device)
    return Scores(values, torch.tensor([value is not None for value in found], device=x.device))


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _check_pair(x_hat: Tensor, x: Tensor) -> None:
    """`ValueError` unless both are finite floats of one shape (B, C, T), not empty."""
    if x_hat.shape != x.shape or x.ndim != 3 or x.numel() == 0:
        shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
        raise ValueError(f"x_hat and x must have one shape (B, C, T) and not be empty, got {shapes}")
    for name, y in (("x_hat", x_hat), ("x", x)):
        if not y.is_floating_point() or not bool(y.isfinite().all()):
            what = "NaN or infinity; has the model diverged?" if y.is_floating_point() else f"{y.dtype}"
            raise ValueError(f"{name} must be finite floats in [-1, 1], got {what}")
