"""Series of several channels over time, in files of `numpy.save`, as a kind of data.

Left out: clips by number (clips.py), and reading (tokenizer.modalities.files.series).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.data.clip_scan import scan_clips
from pipelines.data.clips import ClipScan
from pipelines.data.config import DataConfig, Source, warn_ignored
from pipelines.data.kinds import Kind, enter
from tokenizer.modalities.files.series import SERIES_SUFFIXES, SERIES_UNREADABLE, Series
from tokenizer.modalities.series import SeriesModality


@dataclass(frozen=True)
class OpenSeries:
    """Opens a series of so many channels, scaled."""

    channels: int
    scale: tuple[float, ...]

    def __call__(self, raw: bytes | str, name: str) -> Series:
        return Series(raw, self.channels, self.scale, name)


def scan_series(
    source: Source, modality: SeriesModality, config: DataConfig, cache_bytes: int, place: str
) -> ClipScan:
    """`scan_clips` of series."""
    warn_ignored(config, "series", "max_megapixels")
    rules = f"{np.__version__} {type(modality).__qualname__} {modality.preprocessor_config()}"
    open_series = OpenSeries(modality.channels, modality.scale)
    return scan_clips(source, modality, SERIES, open_series, cache_bytes, place, rules)


SERIES = enter(
    "series",
    Kind(
        one="series",
        many="series",
        suffixes=tuple(sorted(SERIES_SUFFIXES)),
        unreadable=SERIES_UNREADABLE,
        feature="",
        columns=("series",),
        scan=scan_series,
        block=36_000,
    ),
)
