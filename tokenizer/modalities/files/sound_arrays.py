"""Samples of sound at their own rate: the contract of decoders, waveforms in memory, and the check of values.

Left out: files (`sound_files.py`), other rates and numbers of channels (`sounds.py`).
"""

import logging
import threading
from typing import Any, Protocol

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_CHANNELS = 64
REPLACE = "replace or remove the file"
# Magnitudes up to this are a loud mix, which is clamped; beyond they are numbers of another scale.
LOUDEST = 4.0

_noted: set[tuple[object, ...]] = set()
_noting = threading.Lock()


class AudioDecoder(Protocol):
    """Samples at their own `rate` (per second): `read(start, count)` → (count, channels) float32 in [-1, 1].

    `read` raises `ValueError` naming the sound for samples that cannot be had, NaN, infinity and magnitudes
    above `LOUDEST`. measured: the format allows for values outside of [-1, 1], and `peak` is the largest
    magnitude read so far, before it was clamped.
    """

    channels: int
    rate: int
    peak: float
    measured: bool

    @property
    def frames(self) -> int: ...

    def read(self, start: int, count: int) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


class ArrayDecoder:
    """A waveform (T,) or (C, T) in memory: float, or int16 and int32, which are scaled to [-1, 1].

    All of it is looked through at once, and `ValueError` says what it should be.
    """

    measured = True

    def __init__(self, waveform: NDArray[Any] | Tensor, rate: float, name: str) -> None:
        samples = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
        if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[0] <= MAX_CHANNELS):
            raise ValueError(
                f"{name}: expected (T,) or (C, T), at most {MAX_CHANNELS} channels first; "
                "transpose what soundfile gives, (T, C)"
            )
        if samples.dtype in (np.int16, np.int32):
            samples = samples / -float(np.iinfo(samples.dtype).min)
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(f"{name}: expected float in [-1, 1], int16 or int32, got {samples.dtype}")
        whole = isinstance(rate, int | np.integer) or (isinstance(rate, float) and rate.is_integer())
        if isinstance(rate, bool) or not whole or rate < 1:
            raise ValueError(f"{name}: expected a sample rate in whole samples per second, got {rate!r}")
        if samples.size == 0:
            raise ValueError(f"{name}: holds no samples; remove it")
        samples = samples[None] if samples.ndim == 1 else samples
        self._samples = rearrange(samples.astype(np.float32), "c t -> t c")
        self.rate, (self.frames, self.channels) = int(rate), self._samples.shape
        self._samples, self.peak = clamped(self._samples, name)
        if self.peak > LOUDEST:
            raise ValueError(too_loud(name, self.peak))

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        return self._samples[start : start + count]

    def close(self) -> None:
        pass


def clamped(samples: NDArray[np.float32], name: str) -> tuple[NDArray[np.float32], float]:
    """`samples` clamped to [-1, 1], and their largest magnitude. `ValueError` for NaN and infinity."""
    if samples.size == 0:
        return samples, 0.0
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name}: holds NaN or infinity; repair or remove it")
    return (samples if low >= -1 and high <= 1 else samples.clip(-1, 1)), max(-low, high)


def too_loud(name: str, peak: float) -> str:
    """The message on values of another scale than [-1, 1], most often whole numbers written as floats."""
    bits = next((b for b in (16, 24, 32) if peak <= 1 << b - 1), None)
    fix = f"divide them by {1 << bits - 1}, or write them as int{bits}" if bits else "scale them"
    return f"{name}: holds values up to {peak:.9g}, expected [-1, 1]; {fix}"


def log_once(key: tuple[object, ...], message: str, *values: object) -> None:
    """Log `message % values` the first time that this process has one for `key`."""
    with _noting:
        known = key in _noted
        _noted.add(key)
    if not known:
        logger.info(message, *values)
