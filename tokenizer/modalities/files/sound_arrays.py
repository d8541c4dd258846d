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

_noted: set[tuple[object, ...]] = set()
_noting = threading.Lock()


class Decoder(Protocol):
    """Samples at their own `rate` (per second): `read(start, count)` → (count, channels) float32 in [-1, 1].

    `read` raises `ValueError` naming the sound for samples that cannot be had, NaN and infinity.
    """

    rate: int
    channels: int
    frames: int

    def read(self, start: int, count: int) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


class ArrayDecoder:
    """A waveform (T,) or (C, T) in memory: float, or int16 and int32, which are scaled to [-1, 1]."""

    def __init__(self, waveform: NDArray[Any] | Tensor, rate: int, name: str) -> None:
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
        if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
            raise ValueError(f"{name}: expected a sample rate in whole samples per second, got {rate!r}")
        if samples.size == 0:
            raise ValueError(f"{name}: holds no samples; remove it")
        samples = samples[None] if samples.ndim == 1 else samples
        self._samples, self._name = rearrange(samples.astype(np.float32), "c t -> t c"), name
        self.rate, (self.frames, self.channels) = int(rate), self._samples.shape

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        return in_range(self._samples[start : start + count], self._name, report=True)

    def close(self) -> None:
        pass


def in_range(samples: NDArray[np.float32], name: str, report: bool) -> NDArray[np.float32]:
    """`samples` clamped to [-1, 1], with a note if `report`. `ValueError` for NaN and infinity."""
    if samples.size == 0:
        return samples
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name}: holds NaN or infinity; repair or remove it")
    if low >= -1 and high <= 1:
        return samples
    if report:
        peak = max(-low, high)
        log_once(("clamped", name), "%s: holds values up to %g, which are clamped to [-1, 1]", name, peak)
    return samples.clip(-1, 1)


def log_once(key: tuple[object, ...], message: str, *values: object) -> None:
    """Log `message % values` the first time that this process has one for `key`."""
    with _noting:
        known = key in _noted
        _noted.add(key)
    if not known:
        logger.info(message, *values)
