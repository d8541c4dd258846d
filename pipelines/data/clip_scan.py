"""A look at all clips before training: what cannot be decoded to its end is left out, what fits into memory
kept decoded.

Left out: clips by number (clips.py), and how they are opened, which their modality knows.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.cache import Decoded, keys_of
from pipelines.data.clips import Clips, starts_of
from pipelines.data.config import DataConfig, Source, warn_ignored
from pipelines.data.kinds import KINDS, Kind
from pipelines.data.scan import digest, listed, look_at_all, reason
from tokenizer.modalities.signals import SignalModality

logger = logging.getLogger(__name__)


def scan_clips(
    source: Source, modality: SignalModality, config: DataConfig, cache_bytes: int, place: str
) -> Clips:
    """Decode every clip once, and keep all if they fit into `cache_bytes`: what can be decoded to its end is
    readable, however large the set is. The next start finds what was seen (`cache.py`), by `place`, which
    says where the data lie, and by what the modality does to them.

    Raises `ValueError` if not one clip is readable.
    """
    kind = KINDS.of(modality)
    warn_ignored(config, kind.one, "max_megapixels")
    rules = f"{version(modality.reader)} {type(modality).__qualname__} {modality.preprocessor_config()}"
    keys = keys_of(source, f"looking for {kind.many}")
    before = Decoded(place, f"{cache_bytes} {rules}", keys)
    found = before.find()
    tables, reasons = found or _look_at(source, modality, kind, cache_bytes)
    if found is None:
        before.keep(tables, reasons, always="x" not in tables)
    rows = np.delete(np.arange(len(source)), list(reasons))
    _report(kind, source, rows, reasons, tables["peaks"].numpy(), tables["loudest"].numpy())
    lengths, digests = tables["lengths"].numpy(), tables["digests"].numpy().view(np.uint64)
    skipped = [(source.id(i), reasons[i]) for i in sorted(reasons)]
    return Clips(kind, source, rows, digests[rows], skipped, modality, lengths, tables.get("x"))


def _look_at(
    source: Source, modality: SignalModality, kind: Kind, cache_bytes: int
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Of every clip, (n,): `lengths` in samples, `digests`, the `loudest` value of its file, and the peak of
    what was decoded; `x`, all samples end to end, if they fit. And why some cannot be read."""
    count, channels = len(source), modality.channels
    lengths, digests = np.zeros(count, np.int64), np.zeros(count, np.uint64)
    reasons: dict[int, str] = {}
    peaks, loudest = np.ones(count, np.float32), np.zeros(count, np.float32)

    def look(i: int) -> None:
        try:
            raw = source.raw(i)
            digests[i] = digest(raw)
            with modality.open(raw, source.id(i), report=False) as sound:
                sound.check()
                lengths[i], loudest[i] = sound.length, sound.peak
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    look_at_all(look, range(count), f"looking at {kind.many}")
    starts, total = starts_of(lengths, channels), int(lengths.sum()) * channels
    cache = torch.empty(total) if total * 4 <= cache_bytes else None

    def decode(i: int) -> None:
        assert cache is not None
        try:
            with modality.open(source.raw(i), source.id(i), report=False) as sound:
                x = torch.from_numpy(sound.read())
            if x.shape[1] != lengths[i]:
                raise ValueError("changed while it was looked at; leave the data alone while they are used")
            cache[starts[i] : starts[i] + x.numel()] = x.flatten()
            peaks[i] = x.abs().max()
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    def listen(i: int) -> None:
        try:
            with modality.open(source.raw(i), source.id(i), report=False) as sound:
                sound.check(whole=True)
        except (ValueError, OSError) as error:
            reasons[i] = reason(source.id(i), error)

    # What cannot be decoded to its end is left out, whether or not the samples are kept.
    readable = [i for i in range(count) if i not in reasons]
    look_at_all(listen if cache is None else decode, readable, f"reading {kind.many}")
    arrays = {"lengths": lengths, "digests": digests.view(np.int64), "peaks": peaks, "loudest": loudest}
    tables = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return tables if cache is None else tables | {"x": cache}, reasons


def _report(
    kind: Kind,
    source: Source,
    rows: NDArray[np.int64],
    reasons: Mapping[int, str],
    peaks: NDArray[np.float32],
    loudest: NDArray[np.float32],
) -> None:
    """Say what is skipped, silent, or beyond its range; `ValueError` if no clip is left."""
    count, skipped = len(source), [(source.id(i), reasons[i]) for i in sorted(reasons)]
    if not len(rows):
        raise ValueError(
            f"no {kind.one} can be read; {listed(skipped, count, kind)}"
            if skipped
            else "the split has no examples; check --data.split and --data.path"
        )
    if skipped:
        logger.warning("%s", listed(skipped, count, kind))
    if silent := int((peaks[rows] == 0).sum()):
        first = source.id(int(rows[peaks[rows] == 0][0]))
        logger.warning("%d of %d %s are silent, the first is %s", silent, len(rows), kind.many, first)
    if clamped := int((loudest[rows] > 1).sum()):
        most = int(rows[loudest[rows].argmax()])
        text = "%d of %d %s hold values beyond [-1, 1], which are clamped; the largest is %g, in %s"
        logger.warning(text, clamped, len(rows), kind.many, loudest[most], source.id(most))
