"""A look at all clips of sound before training: what is unreadable is skipped, what fits into memory decoded.

Left out: what is done with clips afterwards (clips.py).
"""

import logging

import numpy as np
import torch

from pipelines.clips import ClipScan
from pipelines.scanning import digest, listed, look_at_all, reason
from pipelines.sources import SOUND, Source
from tokenizer.modalities import Modality
from tokenizer.modalities.files.sounds import Sound

logger = logging.getLogger(__name__)


def scan_clips(source: Source, modality: Modality, cache_bytes: int) -> ClipScan:
    """Look at every clip once: hash its bytes, look at its header and end, and decode all if they fit into
    `cache_bytes`.

    modality: has the `sample_rate`, the channels and the crop (its size). Raises `ValueError` if not one clip
    is readable.
    """
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
    starts = np.cumsum(lengths * channels) - lengths * channels
    total = int(lengths.sum()) * channels
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

    if cache is not None:
        look_at_all(decode, [i for i in range(count) if i not in reasons], "reading sound")
    rows = np.delete(np.arange(count), list(reasons))
    skipped = tuple((source.id(i), reasons[i]) for i in sorted(reasons))
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
    return ClipScan(
        source, rate, channels, modality.size[0], lengths, starts, cache, rows, digests[rows], skipped
    )
