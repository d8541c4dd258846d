"""Sound files as a kind of data.

Left out: clips by number (clips.py), and decoding (tokenizer.modalities.files.sounds).
"""

from dataclasses import dataclass
from importlib.metadata import version

from pipelines.data.clip_scan import scan_clips
from pipelines.data.clips import ClipScan
from pipelines.data.config import DataConfig, Source, warn_ignored
from pipelines.data.kinds import Kind, enter
from tokenizer.modalities import Modality
from tokenizer.modalities.files.sound_suffixes import SOUND_SUFFIXES, SOUND_UNREADABLE
from tokenizer.modalities.files.sounds import Sound


@dataclass(frozen=True)
class OpenSound:
    """Opens a sound at one rate, mixed to so many channels."""

    sample_rate: int
    channels: int

    def __call__(self, raw: bytes | str, name: str) -> Sound:
        return Sound(raw, self.sample_rate, self.channels, name, report=False)


def scan_sounds(
    source: Source, modality: Modality, config: DataConfig, cache_bytes: int, place: str
) -> ClipScan:
    """`scan_clips` of sound."""
    warn_ignored(config, "sound", "max_megapixels")
    rules = f"{version('soundfile')} {type(modality).__qualname__} {modality.preprocessor_config()}"
    open_sound = OpenSound(modality.sample_rate, modality.channels)
    return scan_clips(source, modality, SOUND, open_sound, cache_bytes, place, rules)


SOUND = enter(
    "audio",
    Kind(
        one="sound",
        many="sound files",
        suffixes=tuple(sorted(SOUND_SUFFIXES)),
        unreadable=SOUND_UNREADABLE,
        feature="Audio",
        columns=("audio", "speech", "sound", "file"),
        scan=scan_sounds,
        block=3600,
    ),
)
