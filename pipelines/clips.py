"""Clips of sound of any length, from memory or read on access: whole, in blocks, or as training segments.

Left out: looking them through (clip_scan.py), their order and batches (data.py), decoding
(tokenizer.modalities.files.sounds).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.scanning import Skip, reason
from pipelines.sources import Source
from tokenizer.distributed import keyed_generator
from tokenizer.modalities.files.sounds import Sound

logger = logging.getLogger(__name__)


class Clips:
    """Sound by number: `x(i)` (C, T) float32, `labels` (len,) int64 (-1: unlabelled) or None, `id(i)`,
    and the `digests` (len,) uint64 of their bytes.

    `skipped` names what was left out and why: found before training, or, where clips are decoded while
    training, by this process since. No file stays open, so that loader processes can share clips.
    """

    def __init__(self, scan: "ClipScan", rows: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        self.digests = digests
        self.sample_rate, self.channels, self.crop = scan.sample_rate, scan.channels, scan.crop
        self.labels = None if scan.source.labels is None else scan.source.labels[rows]
        self._source, self._rows, self._cache = scan.source, rows, scan.cache
        self._lengths, self._starts = scan.lengths, scan.starts
        self._skipped = dict(scan.skipped)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped.items())

    def id(self, i: int) -> str:
        """The file's path below its folder, or the split and number of its row."""
        return self._source.id(int(self._rows[i]))

    def raw(self, i: int) -> bytes | str:
        """Clip i, encoded, or the path of its file."""
        return self._source.raw(int(self._rows[i]))

    def samples(self, i: int) -> int:
        """Clip i's length T in samples at `sample_rate`."""
        return int(self._lengths[self._rows[i]])

    def x(self, i: int) -> Tensor:
        """Clip i, whole: (C, T) float32."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[Tensor, int]:
        """Clip i and its number; the next readable one and its number if i can no longer be read."""
        return self._readable(i, lambda j: self._span(j, 0, self.samples(j)))

    def blocks(self, i: int, size: int) -> Iterator[Tensor]:
        """Clip i in turn as (C, size), the last block shorter, in memory bounded by `size`.

        No other clip stands in for it: raises `ValueError` if it can no longer be read.
        """
        if self._cache is not None:
            yield from self._span(i, 0, self.samples(i)).split(size, dim=1)
            return
        with self._opened(i) as sound:
            yield from map(torch.from_numpy, sound.blocks(size))

    def segment(self, i: int, size: int, place: float) -> tuple[Tensor, int]:
        """`size` samples of clip i (C, size), and its number, or those of the next clip that can be read.

        They begin at `place`, in [0, 1), of the places where they can; a shorter clip ends in zeros.
        """

        def cut(j: int) -> Tensor:
            start = int(place * (max(0, self.samples(j) - size) + 1))
            x = self._span(j, start, min(size, self.samples(j)))
            return torch.nn.functional.pad(x, (0, size - x.shape[1]))

        return self._readable(i, cut)

    def segments(self, size: int | None = None) -> "Segments":
        """Training items of `size` samples; left out, the crop of the modality."""
        return Segments(self, self.crop if size is None else size)

    def _span(self, i: int, start: int, count: int) -> Tensor:
        """Samples `start : start + count` of clip i, (C, count)."""
        if self._cache is not None:
            first = int(self._starts[self._rows[i]])
            whole = self._cache[first : first + self.channels * self.samples(i)]
            return whole.view(self.channels, -1)[:, start : start + count]
        with self._opened(i) as sound:
            return torch.from_numpy(sound.read(start, count))

    def _opened(self, i: int) -> Sound:
        sound = Sound(self.raw(i), self.sample_rate, self.channels, self.id(i), report=False)
        if sound.length != self.samples(i):
            sound.close()
            raise ValueError(
                f"{self.id(i)}: has {sound.length} samples, had {self.samples(i)} when the run began; "
                "leave the data alone while they are used"
            )
        return sound

    def _readable(self, i: int, read: Callable[[int], Tensor]) -> tuple[Tensor, int]:
        for j in (k % len(self) for k in range(i, i + len(self))):
            try:
                return read(j), j
            except (ValueError, OSError) as error:
                name = self.id(j)
                if name not in self._skipped:
                    self._skipped[name] = reason(name, error)
                    logger.warning("skipped a sound that cannot be read: %s: %s", name, self._skipped[name])
        raise ValueError(f"none of {len(self)} sound files can be read any more; is the disk still there?")


class Segments:
    """Training items: crops of `size` samples, max(1, round(T / size)) an epoch for a clip of T samples."""

    def __init__(self, clips: Clips, size: int) -> None:
        self.clips, self.size = clips, size
        lengths = np.array([clips.samples(i) for i in range(len(clips))], dtype=np.int64)
        counts = np.maximum(1, np.rint(lengths / size).astype(np.int64))
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(
        self, wanted: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Items `wanted` (b,) in their `epochs` (b,): x (b, C, size) float32, labels (b,) int64 (-1 if none),
        and which clips they are of (b,) int64.

        Where a crop begins is a function of (seed, epoch, item) alone.
        """
        if len(wanted) == 0:
            none = torch.empty(0, dtype=torch.int64)
            return torch.empty((0, self.clips.channels, self.size)), none, none
        places = {e: _uniform(len(self), seed, e) for e in np.unique(epochs).tolist()}
        clips = np.searchsorted(self._ends, wanted, side="right")
        read = [
            self.clips.segment(int(clip), self.size, float(places[epoch][item]))
            for clip, item, epoch in zip(clips, wanted.tolist(), epochs.tolist(), strict=True)
        ]
        index = np.array([r[1] for r in read], dtype=np.int64)
        labels = self.clips.labels
        of = np.full(len(index), -1, dtype=np.int64) if labels is None else labels[index]
        return torch.stack([r[0] for r in read]), torch.from_numpy(of), torch.from_numpy(index)


@lru_cache(maxsize=2)
def _uniform(count: int, seed: int, epoch: int) -> Tensor:
    """A uniform number in [0, 1) for every item of an epoch."""
    return torch.rand(count, dtype=torch.float64, generator=keyed_generator(seed, epoch, "crop"))


@dataclass(frozen=True)
class ClipScan:
    """A source looked through: readable `rows` (n,) and their `digests` (n,) uint64.

    For every row of the source: its length in samples, and where it starts in the flat `cache`, if there is
    one.
    """

    source: Source
    sample_rate: int
    channels: int
    crop: int
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    cache: Tensor | None
    rows: NDArray[np.int64]
    digests: NDArray[np.uint64]
    skipped: tuple[Skip, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes that all clips share."""
        return (self.channels,)

    def examples(self, mask: NDArray[np.bool_] | None = None) -> Clips:
        """The readable clips, or those of them that `mask` (n,) picks."""
        every = slice(None) if mask is None else mask
        return Clips(self, self.rows[every], self.digests[every])
