"""Files of sound that are broken, missing, or change while they are read: each is named with what mends it.

Left out: sound that can be read, and waveforms and rates that cannot be used
(tokenizer/files/test_sounds.py).
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.sounds import FORMATS, check_sound, encoded, tone
from tokenizer.modalities.files.sounds import Sound, open_sound


def cut(kind: str, part: float) -> Callable[[], bytes]:
    def make() -> bytes:
        whole = encoded(tone(40_000), kind)
        return whole[: int(len(whole) * part)]

    return make


def hole(kind: str) -> Callable[[], bytes]:
    def make() -> bytes:
        whole = bytearray(encoded(tone(150_000), kind))
        whole[len(whole) // 2 : len(whole) // 2 + 500] = bytes(500)
        return bytes(whole)

    return make


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.wav": (lambda: b"", "empty.*expected a sound file.*remove"),
    "text.wav": (lambda: b"no sound, only text\n" * 99, "libsndfile.*remove.*convert .*WAV or FLAC"),
    "text.mp3": (lambda: b"no sound, only text\n" * 99, "libsndfile.*WAV or FLAC"),
    "text.au": (lambda: b"no sound, only text\n" * 99, "libsndfile.*WAV or FLAC"),
    "none.wav": (lambda: encoded(np.zeros((0, 1))), "no samples.*remove"),
    "none.ogg": (lambda: encoded(np.zeros((0, 1)), "ogg"), "no samples.*remove"),
    "header.wav": (lambda: encoded(tone(100))[:30], "'data' chunk.*remove"),
    **{f"cut.{kind}": (cut(kind, 0.6), "(truncated|cannot be read).*remove") for kind in FORMATS},
    "slow.wav": (lambda: encoded(tone(100), rate=249), " 249 .*expected 250 .*remove"),
    "start.mp3": (cut("mp3", 0.99), "truncated.* 40000 samples, only .*remove"),
    "start.flac": (cut("flac", 0.1), "(cannot be read|truncated).*remove"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    (tmp_path / name).write_bytes(make())
    for read in (open_sound, check_sound):
        with pytest.raises(ValueError, match=f"{name}: .*({message})"):
            read(tmp_path / name, 16000, 1)
        if name not in ("text.au",):  # its suffix alone makes it a file of samples without a header
            with pytest.raises(ValueError, match=f"row 3: .*({message})"):
                read(make(), 16000, 1, name="row 3")


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus", "mp3"])
def test_holes_are_found_when_all_is_read(kind: str) -> None:
    with pytest.raises(ValueError, match=r"hole: .*(truncated|cannot be read).*remove"):
        open_sound(hole(kind)(), 16000, 1, name="hole")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.wav: .*path"):
        open_sound(tmp_path / "gone.wav", 16000, 1)
    with pytest.raises(ValueError, match=f"{tmp_path}: .*folder, expected a sound file; .* in it"):
        open_sound(tmp_path, 16000, 1)


def test_nan_is_found_where_it_is_read_and_by_a_look_at_all() -> None:
    x = tone(3000)[:, 0]
    x[1000] = np.nan
    source = encoded(x, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"odd: .*NaN.*remove"):
        open_sound(source, 8000, 1, name="odd")
    with pytest.raises(ValueError, match=r"odd: .*NaN.*remove"):
        check_sound(source, 16000, 1, name="odd")
    with Sound(source, 16000, 1) as sound:
        np.testing.assert_array_equal(sound.read(2000, 500)[0], x[2000:2500])


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "shorter": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: overwrite(path, encoded(tone(300_000))),
    "other sound": lambda path: overwrite(path, encoded(tone(200_000, seed=1))),
    "replaced": lambda path: replace(path, encoded(tone(200_000, seed=1))),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(200_000)))
    with Sound(path, 16000, 1) as sound:
        blocks = sound.blocks(70_000)
        next(blocks)
        CHANGES[change](path)
        os.utime(path, ns=(1, 1)) if path.exists() else None  # clocks of file systems may be coarse
        with pytest.raises(ValueError, match=r"a\.wav: changed .*try again"):
            list(blocks)
