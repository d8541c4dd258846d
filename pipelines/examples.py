"""Pictures by number, from memory or decoded on access.

Left out: looking them through (picture_scan.py), where they come from (sources.py, table_sources.py), their
order and batches (data.py), sound (clips.py).
"""

import logging
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.scanning import Skip, reason
from pipelines.sources import Source
from tokenizer.modalities.files.pictures import open_picture

logger = logging.getLogger(__name__)

Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]
# From the bytes or the path of a picture, and its name.
Open: TypeAlias = Callable[[bytes | str, str], Image.Image]


class Examples:
    """Pictures by number: `x(i)` (C, H, W) uint8, `labels` (len,) int64 (-1: unlabelled) or None, `id(i)`,
    and the `digests` (len,) uint64 of their bytes.

    `skipped` names what was left out and why: found before training, or, where pictures are decoded while
    training, by this process since.
    """

    def __init__(
        self,
        source: Source,
        fit: Fit,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        shape: tuple[int, ...],
        cache: Tensor | None,
        skipped: tuple[Skip, ...],
        open_picture: Open = open_picture,
    ) -> None:
        self.shape, self.digests = shape, digests
        self.labels = None if source.labels is None else source.labels[rows]
        self._source, self._fit, self._rows, self._cache = source, fit, rows, cache
        self._skipped, self._open = dict(skipped), open_picture

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped.items())

    def id(self, i: int) -> str:
        """The file's path below its folder, or the split and number of its row."""
        return self._source.id(int(self._rows[i]))

    def raw(self, i: int) -> bytes | str:
        """Example i, encoded, or the path of its file."""
        return self._source.raw(int(self._rows[i]))

    def x(self, i: int) -> Tensor:
        """Example i, uint8 (C, H, W). Raises `ValueError` or `OSError` that names it if it can no longer be
        read."""
        if self._cache is not None:
            return self._cache[int(self._rows[i])]
        name = self.id(i)
        return torch.from_numpy(fitted(self._fit, self._open(self.raw(i), name), self.shape, name))

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch to train on: examples (b, C, H, W) uint8, their labels (b,) int64 (-1 if none), and their
        numbers (b,) int64.

        The next readable example stands in for one that can no longer be read: its pixels, its label and its
        number. A batch keeps its size so, which steps and processes count on.
        """
        if self._cache is not None:
            return self._batch(self._cache[torch.from_numpy(self._rows[indices])], indices)
        found = [self._readable(int(i)) for i in indices]
        return self._stacked(found)

    def take_readable(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """As `take`, but what can no longer be read is left out, and named in the log: for tokens and
        measures, in which no picture may count twice."""
        if self._cache is not None:
            return self.take(indices)
        read = ((self._tried(int(i)), int(i)) for i in indices)
        return self._stacked([(x, i) for x, i in read if x is not None])

    def _tried(self, i: int) -> Tensor | None:
        """Example i, or None, with a line in the log, if it can no longer be read."""
        try:
            return self.x(i)
        except (ValueError, OSError) as error:
            name = self.id(i)
            if name not in self._skipped:
                self._skipped[name] = reason(name, error)
                logger.warning("skipped a picture that cannot be read: %s: %s", name, self._skipped[name])
            return None

    def _readable(self, i: int) -> tuple[Tensor, int]:
        """Example i and its number; those of the next readable one if i can no longer be read."""
        for j in (k % len(self) for k in range(i, i + len(self))):
            if (x := self._tried(j)) is not None:
                return x, j
        raise ValueError(f"none of {len(self)} pictures can be read any more; is the disk still there?")

    def _stacked(self, found: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.empty((0, *self.shape), dtype=torch.uint8)
        x = torch.stack([x for x, _ in found]) if found else none
        return self._batch(x, np.array([i for _, i in found], dtype=np.int64))

    def _batch(self, x: Tensor, found: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        labels = np.full(len(found), -1, dtype=np.int64) if self.labels is None else self.labels[found]
        return x, torch.from_numpy(labels), torch.from_numpy(found)


def fitted(fit: Fit, image: Image.Image, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """The picture as `fit` gives it; `ValueError` if that has another shape than those before it."""
    pixels = fit(image)
    if pixels.shape != shape:
        raise ValueError(
            f"{name}: is {pixels.shape} (C, H, W), the pictures before it are {shape}; "
            "give all of them one size and number of channels"
        )
    return pixels
