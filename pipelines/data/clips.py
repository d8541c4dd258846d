"""Clips of any length, from memory or read on access: whole, in blocks, as training segments, or as codes.

Left out: what they are of (sounds.py, series.py) and how they are opened, which their modality knows, a look
at all of them (clip_scan.py), and their order and batches (batches.py).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.config import Source
from pipelines.data.kinds import PLAIN, CodeLayout, Encoded, FixedViews, Kind, Skip
from pipelines.data.scan import Readable
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator
from tokenizer.modalities.files.spans import Signal
from tokenizer.modalities.signals import SignalModality

logger = logging.getLogger(__name__)

# Samples that are read at once for encoding. Longer clips are measured in equal pieces of at most so many
# seconds, each of which counts as a clip.
BLOCK, PIECE_SECONDS = 1 << 18, 30


class Clips(Readable):
    """A `Split` of clips by number: `x(i)` (C, T) float32. No file stays open, so that loader processes can
    share clips."""

    def __init__(
        self,
        kind: Kind,
        source: Source,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        skipped: Sequence[Skip],
        modality: SignalModality,
        lengths: NDArray[np.int64],
        cache: Tensor | None,
    ) -> None:
        """As a `Readable`, opened by `modality`. Of every row of the source, `lengths` in samples, and, if
        there is a `cache`, all samples in it, end to end."""
        super().__init__(kind, source, rows, digests, skipped)
        self.sample_rate, self.channels, self.crop = modality.sample_rate, modality.channels, modality.size[0]
        self._modality, self._cache, self._lengths = modality, cache, lengths
        self._starts = starts_of(lengths, self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes that all clips share."""
        return (self.channels,)

    @property
    def amount(self) -> str:
        """The length of all clips, which may differ much."""
        return in_time(int(self._lengths[self._rows].sum()) / self.sample_rate)

    def samples(self, i: int) -> int:
        """Clip i's length T in samples at `sample_rate`."""
        return int(self._lengths[self._rows[i]])

    def x(self, i: int) -> Tensor:
        """Clip i, whole: (C, T) float32."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[Tensor, int]:
        """Clip i and its number; the next readable one and its number if i can no longer be read."""
        return self.next_readable(i, lambda j: self._span(j, 0, self.samples(j)))

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

        return self.next_readable(i, cut)

    def training(self, augment: Augment = NO_VIEWS) -> "Segments":
        """What is trained on: crops. There are no views of them."""
        return Segments(self, self.crop)

    def inputs(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """This rank's share, clip by clip: `pieces` (1, C, T), and its number (1,)."""
        for i in range(rank, len(self), world):
            for piece in self.pieces(i):
                yield piece[None], np.array([i])

    def pieces(self, i: int) -> Iterator[Tensor]:
        """Clip i in equal pieces (C, T) of at most `PIECE_SECONDS`; none from where it cannot be read, and a
        line in the log."""
        samples = self.samples(i)
        pieces = math.ceil(samples / (PIECE_SECONDS * self.sample_rate))
        try:
            yield from self.blocks(i, math.ceil(samples / pieces))
        except (ValueError, OSError) as error:
            logger.warning("left out a %s that can no longer be read: %s", self.kind.one, error)

    def ranges(self, size: int) -> Iterator[range]:
        """All clips in ranges of `size` seconds; a clip belongs to the range in which it begins."""
        samples = np.array([self.samples(i) for i in range(len(self))], np.int64)
        block = (np.cumsum(samples) - samples) // (size * self.sample_rate)
        edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(self)]
        yield from map(range, edges[:-1], edges[1:])

    def layout(self, tok: Tokenizer) -> CodeLayout:
        """Frames of codes in any number."""
        rate = self.sample_rate
        return CodeLayout((), (self.channels,), rate / tok.stride, rate, tok.stride)

    def codes(
        self, tok: Tokenizer, which: range, batch_size: int, views: FixedViews = PLAIN
    ) -> Iterator[Encoded]:
        """Codes of clip after clip, each alone and in chunks, so that they depend on nothing else and a clip
        may be longer than memory.

        The views of a clip but the first leave out its first samples, fewer than a frame has, a random number
        by (seed, view, clip): frames fall elsewhere, which gives other codes of the same clip.
        """
        for i in which:
            codes = []
            try:
                for view in range(views.number):
                    skip = skipped_samples(min(tok.stride, self.samples(i)), view, i, views.seed)
                    blocks = (
                        block[None].to(tok.device) for block in without_first(self.blocks(i, BLOCK), skip)
                    )
                    codes.append(torch.cat([part.cpu() for part in tok.encode_stream(blocks)], dim=2)[0])
            except (ValueError, OSError) as error:
                logger.warning("left out a %s that can no longer be read: %s", self.kind.one, error)
                continue
            yield Encoded(codes, [-1 if self.labels is None else int(self.labels[i])], [self.id(i)], 1)

    def _span(self, i: int, start: int, count: int) -> Tensor:
        """Samples `start : start + count` of clip i, (C, count)."""
        if self._cache is not None:
            first = int(self._starts[self._rows[i]])
            whole = self._cache[first : first + self.channels * self.samples(i)]
            return whole.view(self.channels, -1)[:, start : start + count]
        with self._opened(i) as sound:
            return torch.from_numpy(sound.read(start, count))

    def _opened(self, i: int) -> Signal:
        sound = self._modality.open(self.raw(i), self.id(i), report=False)
        if sound.length != self.samples(i):
            sound.close()
            raise ValueError(
                f"{self.id(i)}: has {sound.length} samples, had {self.samples(i)} when the run began; "
                "leave the data alone while they are used"
            )
        return sound


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
        return torch.stack([r[0] for r in read]), self.clips.labels_of(index), torch.from_numpy(index)


@lru_cache(maxsize=2)
def _uniform(count: int, seed: int, epoch: int) -> Tensor:
    """A uniform number in [0, 1) for every item of an epoch."""
    return torch.rand(count, dtype=torch.float64, generator=keyed_generator(seed, epoch, "crop"))


def starts_of(lengths: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Where clips of these `lengths` (n,) begin, end to end."""
    starts: NDArray[np.int64] = np.cumsum(lengths * channels) - lengths * channels
    return starts


def in_time(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def skipped_samples(most: int, view: int, clip: int, seed: int) -> int:
    """How many samples a view of a clip leaves out: fewer than `most`, none for view 0, else 1 or more."""
    if view == 0 or most < 2:
        return 0
    return int(torch.randint(1, most, (), generator=keyed_generator(seed, view, clip, "view")))


def without_first(blocks: Iterator[Tensor], skip: int) -> Iterator[Tensor]:
    """Blocks (C, t) of a sound without its first `skip` samples, which the first block has."""
    for block in blocks:
        yield block[:, skip:]
        skip = 0
