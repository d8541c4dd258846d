"""Series of several channels over time, in files of `numpy.save`, as a kind of data.

Left out: clips by number (clips.py), and reading (tokenizer.modalities.files.series).
"""

from pipelines.data.clip_scan import scan_clips
from pipelines.data.kinds import KINDS, Kind
from tokenizer.modalities.files.series import SERIES_SUFFIXES, SERIES_UNREADABLE

SERIES = KINDS.enter("series")(
    Kind(
        one="series",
        many="series",
        suffixes=tuple(sorted(SERIES_SUFFIXES)),
        unreadable=SERIES_UNREADABLE,
        feature="",
        columns=("series",),
        scan=scan_clips,
        block=36_000,
    )
)
