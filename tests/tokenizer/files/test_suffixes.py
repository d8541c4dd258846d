"""Suffixes of sound files: each of the list is read, and those that are not have a fix.

Left out: what happens to the rest of a folder (pipelines/data/test_folders.py).
"""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.data.sounds import SOUND
from tests.helpers.sounds import silent_frames, tone
from tokenizer.modalities.files.sound_suffixes import SOUND_SUFFIXES, SOUND_UNREADABLE
from tokenizer.modalities.files.sounds import open_sound

COUNT = 8000


def by_soundfile(kind: str, subtype: str | None = None) -> Callable[[], bytes]:
    def make() -> bytes:
        file = BytesIO()
        soundfile.write(file, tone(COUNT), 16000, format=kind, subtype=subtype)
        return file.getvalue()

    return make


MADE: dict[str, Callable[[], bytes]] = {
    **dict.fromkeys((".wav", ".wave", ".bwf"), by_soundfile("WAV")),
    **{".amb": by_soundfile("WAVEX"), ".rf64": by_soundfile("RF64"), ".w64": by_soundfile("W64")},
    **dict.fromkeys((".aif", ".aiff", ".aifc"), by_soundfile("AIFF")),
    **dict.fromkeys((".au", ".snd"), by_soundfile("AU")),
    **{".caf": by_soundfile("CAF"), ".flac": by_soundfile("FLAC")},
    **dict.fromkeys((".ogg", ".oga"), by_soundfile("OGG", "VORBIS")),
    **{".opus": by_soundfile("OGG", "OPUS"), ".mp3": by_soundfile("MP3"), ".mpga": by_soundfile("MP3")},
    **{f".mp{n}": lambda n=n: silent_frames(n, 9) for n in (1, 2)},  # type: ignore[misc]
    **dict.fromkeys((".sph", ".nist"), by_soundfile("NIST")),
    **dict.fromkeys((".ircam", ".sf"), by_soundfile("IRCAM")),
    **dict.fromkeys((".8svx", ".svx"), by_soundfile("SVX")),
    **{f".{n.lower()}": by_soundfile(n) for n in ("AVR", "HTK", "PAF", "PVF", "SDS", "VOC", "WVE", "XI")},
}


@pytest.mark.parametrize("suffix", sorted(SOUND_SUFFIXES))
def test_every_suffix_of_the_list_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(MADE[suffix]())
    if suffix in (".mp1", ".mp2"):
        assert open_sound(path, 32000, 1).shape == (1, 9 * 384 if suffix == ".mp1" else 9 * 1152)
        return
    found = open_sound(path, soundfile.info(path).samplerate, 1)
    assert abs(found.shape[1] - COUNT) <= 64 and 0.1 < np.abs(found).max() < 0.8


def test_folders_are_searched_for_all_of_them() -> None:
    assert set(SOUND.suffixes) == SOUND_SUFFIXES == set(MADE)


def test_suffixes_that_are_not_read_have_a_fix() -> None:
    assert not SOUND_SUFFIXES & set(SOUND_UNREADABLE)
    for suffix, fix in SOUND_UNREADABLE.items():
        assert re.fullmatch(r"\.[a-z0-9]+", suffix) and f"ffmpeg -i X{suffix} X.wav" in fix
    assert {".m4a", ".aac", ".wma", ".webm", ".mp4", ".amr"} <= set(SOUND_UNREADABLE)
