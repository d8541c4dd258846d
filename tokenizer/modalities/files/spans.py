"""An opened signal over time, of which any span can be read: what sounds and series have in common.

Left out: opening and reading them (`sounds.py`, `series.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray


class Signal(ABC):
    """`length` samples; `name` stands for it in messages. What cannot be read is a `ValueError` or
    `OSError`."""

    name: str
    length: int

    @property
    @abstractmethod
    def peak(self) -> float:
        """The largest magnitude read so far, before clamping."""

    @abstractmethod
    def read(self, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Samples `start : start + count` (None: to the end) as (channels, count) float32 in [-1, 1]."""

    @abstractmethod
    def check(self, whole: bool = False) -> None:
        """Raise what its begin and end show, or all of it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Nothing can be read any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All of it in turn as (channels, `size`), the last one shorter; memory is bounded by `size`."""
        if size < 1:
            raise ValueError(f"expected blocks of at least 1 sample, got {size}")
        for start in range(0, self.length, size):
            yield self.read(start, min(size, self.length - start))

    def checked_stop(self, start: int, count: int | None) -> int:
        """Where a span ends; `ValueError` for one that is not within the signal."""
        stop = self.length if count is None else start + count
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"{self.name}: no samples {start} to {stop}, it has {self.length}")
        return stop
