"""Folders of small WAV files for tests of data of sound.

Left out: tests.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from tokenizer.modalities.audio import AudioConfig

RATE, CROP = 8000, 1000
AUDIO = AudioConfig(sample_rate=RATE, size=(CROP,)).build()


def ramp(count: int, seed: int = 0) -> np.ndarray:
    """(count,) int16, of which no two samples of one file are equal: a crop tells where it was cut."""
    return (np.arange(count) + 100 + 13 * seed).astype(np.int16)


def wav(x: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    file = BytesIO()
    soundfile.write(file, x, rate, format="WAV", **options)
    return file.getvalue()


def write(root: Path, lengths: dict[str, int]) -> Path:
    for seed, (name, count) in enumerate(lengths.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, ramp(count, seed), RATE, format="FLAC" if "flac" in name else "WAV")
    return root


def load(path: Path | str, cache_bytes: int = 1 << 30, **options: object) -> Splits:
    return load_splits(DataConfig(path=str(path), **options), AUDIO, cache_bytes)  # type: ignore[arg-type]
