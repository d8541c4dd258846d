"""Clips of sound of any length, from memory or read on access: whole, in blocks, or as training segments; and
a look at all of them before training.

Left out: their order and batches (batches.py), decoding (tokenizer.modalities.files.sounds).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.cache import Decoded, keys_of
from pipelines.data.config import SOUND, Source
from pipelines.data.scan import Skip, digest, listed, look_at_all, reason
from tokenizer.distributed import keyed_generator
from tokenizer.modalities import Modality
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


def scan_clips(
    source: Source, modality: Modality, cache_bytes: int, place: str = "", rules: str = ""
) -> ClipScan:
    """Decode every clip once, and keep all if they fit into `cache_bytes`: what can be decoded to its end is
    readable, however large the set is. The next start finds what was seen (`cache.py`), by `place`, which
    says where the data lie, and `rules`, which say how they are decoded.

    modality: has the `sample_rate`, the channels and the crop (its size). Raises `ValueError` if not one clip
    is readable.
    """
    keys = keys_of(source, "looking for sound")
    before = Decoded(place, f"{version('soundfile')} {cache_bytes} {rules}", keys)
    found = before.find()
    tables, reasons = found or _look_at(source, modality, cache_bytes)
    if found is None:
        before.keep(tables, reasons, always="x" not in tables)
    rows = np.delete(np.arange(len(source)), list(reasons))
    _report(source, rows, reasons, tables["peaks"].numpy(), tables["loudest"].numpy())
    lengths, digests = tables["lengths"].numpy(), tables["digests"].numpy().view(np.uint64)
    skipped = tuple((source.id(i), reasons[i]) for i in sorted(reasons))
    return ClipScan(
        *(source, modality.sample_rate, modality.channels, modality.size[0]),
        *(lengths, _starts(lengths, modality.channels), tables.get("x")),
        *(rows, digests[rows], skipped),
    )


def _starts(lengths: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Where clips of these `lengths` (n,) begin, end to end."""
    starts: NDArray[np.int64] = np.cumsum(lengths * channels) - lengths * channels
    return starts


def _look_at(
    source: Source, modality: Modality, cache_bytes: int
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Of every clip, (n,): `lengths` in samples, `digests`, the `loudest` value of its file, and the peak of
    what was decoded; `x`, all samples end to end, if they fit. And why some cannot be read."""
    count, rate, channels = len(source), modality.sample_rate, modality.channels
    lengths, digests = np.zeros(count, np.int64), np.zeros(count, np.uint64)
    reasons: dict[int, str] = {}
    peaks, loudest = np.ones(count, np.float32), np.zeros(count, np.float32)

    def look(i: int) -> None:
        try:
            raw = source.raw(i)
            digests[i] = digest(raw)
            with Sound(raw, rate, channels, source.id(i), report=False) as sound:
                sound.check()
                lengths[i], loudest[i] = sound.length, sound.peak
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    look_at_all(look, range(count), "looking at sound")
    starts, total = _starts(lengths, channels), int(lengths.sum()) * channels
    cache = torch.empty(total) if total * 4 <= cache_bytes else None

    def decode(i: int) -> None:
        try:
            with Sound(source.raw(i), rate, channels, source.id(i), report=False) as sound:
                x = torch.from_numpy(sound.read())
            if x.shape[1] != lengths[i]:
                raise ValueError("changed while it was looked at; leave the data alone while they are used")
            cache[starts[i] : starts[i] + x.numel()] = x.flatten()
            peaks[i] = x.abs().max()
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    def listen(i: int) -> None:
        try:
            with Sound(source.raw(i), rate, channels, source.id(i), report=False) as sound:
                sound.check(whole=True)
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    # What cannot be decoded to its end is left out, whether or not the samples are kept.
    readable = [i for i in range(count) if i not in reasons]
    look_at_all(listen if cache is None else decode, readable, "reading sound")
    arrays = {"lengths": lengths, "digests": digests.view(np.int64), "peaks": peaks, "loudest": loudest}
    tables = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return tables if cache is None else tables | {"x": cache}, reasons


def _report(
    source: Source,
    rows: NDArray[np.int64],
    reasons: Mapping[int, str],
    peaks: NDArray[np.float32],
    loudest: NDArray[np.float32],
) -> None:
    """Say what is skipped, silent or too loud; `ValueError` if no clip is left."""
    count, skipped = len(source), [(source.id(i), reasons[i]) for i in sorted(reasons)]
    if not len(rows):
        raise ValueError(
            f"no sound can be read; {listed(skipped, count, SOUND)}"
            if skipped
            else "the split has no examples; check --data.split and --data.path"
        )
    if skipped:
        logger.warning("%s", listed(skipped, count, SOUND))
    if silent := int((peaks[rows] == 0).sum()):
        first = source.id(int(rows[peaks[rows] == 0][0]))
        logger.warning("%d of %d sound files are silent, the first is %s", silent, len(rows), first)
    if clamped := int((loudest[rows] > 1).sum()):
        most = int(rows[loudest[rows].argmax()])
        text = "%d of %d sound files hold values beyond [-1, 1], which are clamped; the largest is %g, in %s"
        logger.warning(text, clamped, len(rows), loudest[most], source.id(most))
