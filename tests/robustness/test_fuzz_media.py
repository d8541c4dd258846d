"""Pictures and sound that are broken: PNG and WAV, and what else Pillow and libsndfile read.

Left out: what single breakages are called (tokenizer/files/test_pictures.py, test_broken_sounds.py).
"""

import logging
import random
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from tests.helpers.broken_media import PNG, broken_png, broken_wav, png_chunk, png_chunks
from tests.helpers.fuzzing import ERROR, RESULT, Make, Subject, fuzz, shares
from tests.helpers.mutators import broken_bytes
from tests.helpers.sounds import check_sound
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.files.pictures import fit_picture, open_picture
from tokenizer.modalities.files.sounds import Sound, open_sound
from tokenizer.modalities.image import ImageConfig

NAMED = ("input",)
SIDE, RATE = 8, 8000
# Inputs that lie in a folder together, with one good file, and are read as data for training.
TOGETHER = 20
Broken = Callable[[bytes, random.Random], bytes]


def saved(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    file = BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pngs() -> list[bytes]:
    """Small ones of every type of colour, and one with all parts that readers look into."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey, rgb, rgba = noise(9, 7), noise(9, 7, 3), noise(9, 7, 4)
    made = [
        *(saved(grey), saved(grey > 99), saved(rgb), saved(rgba), saved(grey.astype(np.uint16) * 257)),
        *(saved(rgb, mode="P"), saved(rgb, mode="P", transparency=3), saved(rgb, mode="P", bits=4)),
        *(saved(grey, transparency=7), saved(rgba, mode="LA"), saved(rgb, exif=exif, dpi=(72, 72))),
        saved(rgb, icc_profile=b"x" * 200),
    ]
    chunks = png_chunks(made[2])
    adam7 = chunks[0][0], chunks[0][1][:-1] + b"\1"
    return [*made, PNG + b"".join(png_chunk(*c) for c in (adam7, *chunks[1:]))]


def other_pictures() -> list[bytes]:
    rgb = noise(9, 7, 3)
    kinds = ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    return [saved(rgb, k) for k in kinds] + [
        saved(rgb, "TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    ]


def wavs() -> list[bytes]:
    """Short ones of every subtype, of one and of two channels."""
    t = np.arange(300) / RATE
    x = 0.5 * np.sin(2 * np.pi * 440 * t)
    made = []
    for subtype in ("PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "GSM610"):
        made.append(sound(x, "WAV", subtype))
    made += [sound(np.stack([x, -x], 1), k, "PCM_16") for k in ("WAV", "WAVEX", "RF64")]
    return [*made, sound(x, "WAV", "PCM_16", 22_050), sound(x, "WAVEX", "FLOAT", 16_000)]


def other_sounds() -> list[bytes]:
    x = 0.5 * np.sin(np.arange(3000) / 9)
    kinds = {"FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "AIFF": "PCM_16", "AU": "PCM_16"}
    made = [sound(x, k, s, 16_000) for k, s in kinds.items()]
    return [*made, sound(x, "OGG", "OPUS", 16_000), sound(x, "W64", "PCM_16"), sound(x, "CAF", "ALAC_16")]


def sound(x: np.ndarray, kind: str, subtype: str, rate: int = RATE) -> bytes:
    file = BytesIO()
    soundfile.write(file, x, rate, format=kind, subtype=subtype)
    return file.getvalue()


def read_picture(data: bytes) -> None:
    pixels = fit_picture(open_picture(data, "input"), (SIDE, SIDE), 3)
    assert pixels.shape == (3, SIDE, SIDE) and pixels.dtype == np.uint8


def read_sound(data: bytes) -> None:
    """Whole and in blocks, which are the same samples, as many as are told before they are read."""
    x = open_sound(data, RATE, 1, "input")
    assert x.ndim == 2 and len(x) == 1 and x.dtype == np.float32 and x.size
    assert np.isfinite(x).all() and np.abs(x).max() <= 1
    assert check_sound(data, RATE, 1, "input") == x.shape[1]
    with Sound(data, RATE, 1, "input") as opened:
        blocks = np.concatenate(list(opened.blocks(100_000)), axis=1)
    assert np.array_equal(x, blocks)


class Collected:
    """Reads inputs one by one, and whenever there are enough, as the files of a folder: those that were
    refused are the ones that are skipped."""

    def __init__(self, folder: Path, suffix: str, good: bytes, read: Callable[[bytes], None]) -> None:
        self.folder, self.suffix, self.read = folder / "data", suffix, read
        self.folder.mkdir()
        (self.folder / f"good{suffix}").write_bytes(good)
        self.files: dict[str, bool] = {}
        self.counts: Counter[str] = Counter()
        small = {"strides": (2,), "widths": (4,), "blocks": (0,)}
        picture = ImageConfig(size=(SIDE, SIDE), **small)
        self.modality = (picture if suffix == ".png" else AudioConfig(sample_rate=RATE, **small)).build()
        # Of what is left out the log would say nothing but that, a thousand times.
        logging.disable()

    def __call__(self, data: bytes) -> None:
        name = f"{len(self.files):03}{self.suffix}"
        (self.folder / name).write_bytes(data)
        try:
            self.read(data)
            self.files[name] = True
        except ValueError:
            self.files[name] = False
            raise
        finally:
            if len(self.files) == TOGETHER:
                self.read_folder()

    def read_folder(self) -> None:
        splits = load_splits(DataConfig(path=str(self.folder), valid_fraction=0.3), self.modality)
        skipped = {name for name, _ in splits.train.skipped}
        assert skipped == {name for name, is_read in self.files.items() if not is_read}
        kept = [e.x(i) for e in (splits.train, splits.held_out) for i in range(len(e))]
        assert len(kept) + len(skipped) == TOGETHER + 1
        assert all(x.isfinite().all() for x in kept)
        self.counts["skipped in folders"] += len(skipped)
        for name in self.files:
            (self.folder / name).unlink()
        self.files.clear()


def subject(folder: Path, wholes: list[bytes], broken: Broken, suffix: str) -> Subject:
    read = Collected(folder, suffix, wholes[0], read_picture if suffix == ".png" else read_sound)
    return Subject(lambda rng: read(broken(rng.choice(wholes), rng)), NAMED, read.counts)


def png_files(folder: Path) -> Subject:
    return subject(folder, pngs(), broken_png, ".png")


def wav_files(folder: Path) -> Subject:
    return subject(folder, wavs(), broken_wav, ".wav")


def other_pictures_as_png(folder: Path) -> Subject:
    """JPEG, GIF, BMP, TIFF, WebP and PPM, which Pillow finds by their first bytes."""
    return subject(folder, [*pngs()[:1], *other_pictures()], broken_bytes, ".png")


def other_sounds_as_wav(folder: Path) -> Subject:
    """FLAC, Vorbis, Opus, MP3, AIFF, AU, W64 and ALAC, which libsndfile finds by their first bytes."""
    return subject(folder, [*wavs()[:1], *other_sounds()], broken_bytes, ".wav")


SUBJECTS = {png_files: 2000, wav_files: 2000, other_pictures_as_png: 800, other_sounds_as_wav: 800}


@shares
@pytest.mark.parametrize("make", SUBJECTS)
def test_broken_files_are_refused_or_right(make: Make, share: int, tmp_path: Path) -> None:
    report = fuzz(make, range(SUBJECTS[make] // share), tmp_path)
    assert report.ends[ERROR] > 100 // share and report.ends[RESULT] > 50 // share
    assert len(report.refusals) > 8
    assert report.ends[ERROR] - report.counts["skipped in folders"] < TOGETHER


@pytest.mark.soak
@pytest.mark.parametrize("make", SUBJECTS)
def test_many_more_broken_files(make: Make, tmp_path: Path) -> None:
    fuzz(make, range(10_000, 14_000), tmp_path)
