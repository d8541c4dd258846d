"""Decoded pictures: checked before training starts, cached where they fit into memory, split by content.

Left out: where examples come from (sources.py, table_sources.py), their order and batches (data.py), sound
(clips.py).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.scanning import Skip, digest, listed, look_at_all, reason
from pipelines.sources import PICTURES, Source
from tokenizer.modalities.files.pictures import check_picture, open_picture

logger = logging.getLogger(__name__)

Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]


class Examples:
    """Pictures by number: `x(i)` (C, H, W) uint8, `labels` (len,) int64 (-1: unlabelled) or None, `id(i)`.

    `skipped` names what was left out and why: found before training, or, where pictures are decoded while
    training, by this process since.
    """

    def __init__(
        self,
        source: Source,
        fit: Fit,
        rows: NDArray[np.int64],
        shape: tuple[int, ...],
        cache: Tensor | None,
        skipped: tuple[Skip, ...],
    ) -> None:
        self.shape = shape
        self.labels = None if source.labels is None else source.labels[rows]
        self._source, self._fit, self._rows, self._cache = source, fit, rows, cache
        self._skipped = dict(skipped)

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
        """Example i, uint8 (C, H, W)."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[Tensor, int]:
        """Example i and its number; the next readable one and its number if i can no longer be read."""
        if self._cache is not None:
            return self._cache[int(self._rows[i])], i
        for j in (k % len(self) for k in range(i, i + len(self))):
            name = self.id(j)
            try:
                image = open_picture(self.raw(j), name)
            except (ValueError, OSError) as error:
                if name not in self._skipped:
                    self._skipped[name] = reason(name, error)
                    logger.warning("skipped a picture that cannot be read: %s: %s", name, self._skipped[name])
                continue
            return torch.from_numpy(_fitted(self._fit, image, self.shape, name)), j
        raise ValueError(f"none of {len(self)} pictures can be read any more; is the disk still there?")

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Examples (b, C, H, W) uint8, their labels (b,) int64 (-1 if none), and their numbers (b,) int64."""
        if self._cache is not None:
            x, found = self._cache[torch.from_numpy(self._rows[indices])], indices
        elif len(indices) == 0:
            x, found = torch.empty((0, *self.shape), dtype=torch.uint8), indices
        else:
            read = [self.read(int(i)) for i in indices]
            x, found = torch.stack([r[0] for r in read]), np.array([r[1] for r in read], dtype=np.int64)
        labels = np.full(len(found), -1, dtype=np.int64) if self.labels is None else self.labels[found]
        return x, torch.from_numpy(labels), torch.from_numpy(found)


@dataclass(frozen=True)
class Scan:
    """A source looked through: its readable `rows` (n,), their `digests` (n,) uint64, and cached pixels."""

    source: Source
    fit: Fit
    shape: tuple[int, ...]
    cache: Tensor | None
    rows: NDArray[np.int64]
    digests: NDArray[np.uint64]
    skipped: tuple[Skip, ...]

    def examples(self, mask: NDArray[np.bool_] | None = None) -> Examples:
        """The readable examples, or those of them that `mask` (n,) picks."""
        rows = self.rows if mask is None else self.rows[mask]
        return Examples(self.source, self.fit, rows, self.shape, self.cache, self.skipped)


def scan(source: Source, fit: Fit, cache_bytes: int, hashed: bool) -> Scan:
    """Look at every example once: decode it if all fit into `cache_bytes`, else check its header.

    hashed: compute digests too, which reads every byte. Raises `ValueError` if not one example is readable,
    or if `fit` gives them different shapes.
    """
    count = len(source)
    shape = _first_shape(source, fit)
    cached = count * int(np.prod(shape)) <= cache_bytes
    cache = torch.empty((count, *shape), dtype=torch.uint8) if cached else None
    digests, reasons = np.zeros(count, dtype=np.uint64), {}

    def look(i: int) -> None:
        name = source.id(i)
        try:
            raw = source.raw(i)
            if hashed and isinstance(raw, str):
                with open(raw, "rb") as file:
                    raw = file.read()
            if isinstance(raw, bytes):
                digests[i] = digest(raw)
            if cache is None:
                check_picture(raw, name)
                return
            image = open_picture(raw, name)
        except (ValueError, OSError) as error:
            reasons[i] = reason(name, error)
            return
        cache[i] = torch.from_numpy(_fitted(fit, image, shape, name))

    # Pillow finds its formats on first use, and two threads that do so at once can miss some.
    Image.init()
    look_at_all(look, range(count), "reading pictures")
    rows = np.delete(np.arange(count), list(reasons))
    skipped = tuple((source.id(i), reasons[i]) for i in sorted(reasons))
    if skipped:
        logger.warning("%s", listed(skipped, count, PICTURES))
    return Scan(source, fit, shape, cache, rows, digests[rows], skipped)


def _first_shape(source: Source, fit: Fit) -> tuple[int, ...]:
    """The shape that `fit` gives the first readable example."""
    reasons = []
    for i in range(len(source)):
        try:
            image = open_picture(source.raw(i), source.id(i))
        except (ValueError, OSError) as error:
            reasons.append((source.id(i), reason(source.id(i), error)))
            continue
        return fit(image).shape
    if not reasons:
        raise ValueError("the split has no examples; check --data.split and --data.path")
    raise ValueError(f"no picture can be read; {listed(reasons, len(source), PICTURES)}")


def _fitted(fit: Fit, image: Image.Image, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    pixels = fit(image)
    if pixels.shape != shape:
        raise ValueError(
            f"{name}: is {pixels.shape} (C, H, W), the pictures before it are {shape}; "
            "give all of them one size and number of channels"
        )
    return pixels
