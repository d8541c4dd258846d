"""Sound files as a kind of data.

Left out: clips by number (clips.py), and decoding (tokenizer.modalities.files.sounds).
"""

from pipelines.data.clip_scan import scan_clips
from pipelines.data.kinds import KINDS, Kind
from tokenizer.modalities.files.sound_suffixes import SOUND_SUFFIXES, SOUND_UNREADABLE

SOUND = KINDS.enter("audio")(
    Kind(
        one="sound",
        many="sound files",
        suffixes=tuple(sorted(SOUND_SUFFIXES)),
        unreadable=SOUND_UNREADABLE,
        feature="Audio",
        columns=("audio", "speech", "sound", "file"),
        scan=scan_clips,
        block=3600,
    )
)
