"""Folders of small pictures for tests of data, and loading them.

Left out: tests.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from tokenizer.modalities.files.pictures import fit_picture
from tokenizer.modalities.image import ImageConfig, ImageModality

PICTURES_4 = ImageConfig(size=(4, 4)).build()
FIT = PICTURES_4.fit


class AnySize(ImageModality):
    """Pictures as they are."""

    def fit(self, item: Image.Image) -> np.ndarray:
        return fit_picture(item, None, self.channels)


ANY_SIZE = AnySize(ImageConfig())


def png(seed: int, size: tuple[int, int] = (4, 4)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(root: Path, names: list[str], first: int = 0) -> Path:
    """Pictures `names` under `root`, each of its own content."""
    for seed, name in enumerate(names, start=first):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def load(path: Path | str, cache_bytes: int = 1 << 30, **options: object):
    return load_splits(DataConfig(path=str(path), **options), PICTURES_4, cache_bytes)  # type: ignore[arg-type]


def contents(examples: Examples) -> set[bytes]:
    return {examples.x(i).numpy().tobytes() for i in range(len(examples))}


def folder_of(tmp_path: Path, count: int = 20) -> Path:
    return write(tmp_path / "pictures", [f"{i:03}.png" for i in range(count)])
