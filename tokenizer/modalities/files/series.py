"""Series: files of `numpy.save` with several channels over time, read in any spans.

Left out: rates, which such files do not know, and other formats.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.modalities.files.spans import Signal

# What is read here, and what has to be converted first.
SERIES_SUFFIXES = frozenset((".npy",))
SERIES_UNREADABLE = {
    ".npz": "save each array by itself with numpy.save",
    ".csv": "convert with numpy.save('X.npy', numpy.loadtxt('X.csv', delimiter=',').T)",
    ".mat": "load it with scipy.io.loadmat and save each array with numpy.save",
}
# Samples that are looked at in one piece.
PIECE = 1 << 18


class Series(Signal):
    """An opened series: `length` samples in `channels`, of which any span can be read.

    source: the path or the bytes of a file of numpy.save, or an array; (channels, T) of numbers, or (T,) of
    one channel. Values are divided by `scale`, one for all channels or one of each, and what lies outside of
    [-1, 1] then is clamped. `name` stands for the series in messages.

    Raises `ValueError`, naming the series and the fix, if it is missing, not of numpy.save, empty, truncated,
    of other channels, or holds objects, complex numbers, NaN or infinity. What only its samples show is
    raised by `read`.
    """

    def __init__(self, source: Any, channels: int, scale: tuple[float, ...], name: str | None = None) -> None:
        self.name = name or (str(source) if isinstance(source, str | Path) else "array")
        self._peak = 0.0
        self._scale = np.array(scale, np.float32)[:, None]
        values = _load(source, self.name)
        values = values[None] if values.ndim == 1 else values
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{self.name}: holds {values.dtype}, expected numbers; save it as float32")
        if values.ndim != 2 or len(values) != channels:
            raise ValueError(
                f"{self.name}: is {values.shape}, expected ({channels}, T): channels, then time; "
                "transpose it, or set --model.modality.channels"
            )
        if values.shape[1] < 1:
            raise ValueError(f"{self.name}: holds no samples; remove it")
        self._values, self.length = values, values.shape[1]

    @property
    def peak(self) -> float:
        return self._peak

    def close(self) -> None:
        del self._values

    def read(self, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Samples `start : start + count` (None: to the end) as (channels, count) float32 in [-1, 1]."""
        stop = self.checked_stop(start, count)
        x: NDArray[np.float32] = self._values[:, start:stop].astype(np.float32) / self._scale
        if not np.isfinite(x).all():
            raise ValueError(f"{self.name}: holds NaN or infinity; fill the gaps, or cut the series there")
        self._peak = max(self._peak, float(np.abs(x).max(initial=0)))
        return x.clip(-1, 1)

    def check(self, whole: bool = False) -> None:
        """Raise what its samples show; they are all looked at, as any of them may be NaN."""
        for _ in self.blocks(PIECE):
            pass


def _load(source: Any, name: str) -> NDArray[Any]:
    if isinstance(source, Tensor):
        source = source.numpy(force=True)
    if isinstance(source, np.ndarray):
        return source
    try:
        if isinstance(source, bytes):
            return np.lib.format.read_array(BytesIO(source))
        if isinstance(source, str | Path):
            return np.lib.format.open_memmap(source, mode="r")
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{name}: cannot be read as a file of numpy.save ({error}); save it anew, without objects"
        ) from error
    raise TypeError(
        f"expected the path or bytes of a file of numpy.save, or an array, got {type(source).__name__}"
    )
