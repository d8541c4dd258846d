"""Pictures and sound made by numpy, each file its own: what loading much of either is measured with.

Left out: anything to learn from them, and loading them (`memory.py`).
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from einops import repeat
from numpy.typing import NDArray
from PIL import Image

SIDE, CLASSES = 32, 10
SECONDS = 10
# Files of a folder in turn: as the models want it, and what has to be resampled and mixed.
SOUNDS = ((".wav", 16000, 1), (".flac", 24000, 2))
GROUP = 1000  # pictures made, and rows written, at a time


def pngs(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` pictures of 32 × 32 colour pixels, about 1 KB each: coarse patches under fine noise."""
    for start in range(0, count, GROUP):
        rng = np.random.default_rng((seed, start))
        n = min(GROUP, count - start)
        coarse = repeat(rng.integers(0, 224, (n, 4, 4, 3), np.uint8), "n h w c -> n (h a) (w b) c", a=8, b=8)
        for pixels in coarse + rng.integers(0, 4, (n, SIDE, SIDE, 1), np.uint8):
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            yield file.getvalue()


def picture_files(root: Path, count: int) -> None:
    """PNG files in ten sub-folders."""
    for c in range(CLASSES):
        (root / f"class-{c}").mkdir(parents=True)
    for i, png in enumerate(pngs(count)):
        (root / f"class-{i % CLASSES}" / f"picture-{i:07}.png").write_bytes(png)


def picture_table(root: Path, count: int) -> None:
    """The same pictures and labels in a Parquet file, as `datasets` writes them."""
    root.mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    made = pngs(count)
    with pq.ParquetWriter(root / "train.parquet", schema) as writer:
        for start in range(0, count, GROUP):
            rows = range(start, min(start + GROUP, count))
            cells = [{"bytes": next(made), "path": None} for _ in rows]
            labels = [i % CLASSES for i in rows]
            writer.write_table(pa.table({"image": cells, "label": labels}, schema))


def sound_files(root: Path, count: int) -> None:
    """Sounds of ten seconds: two tones under noise, WAV and FLAC in turn (`SOUNDS`)."""
    root.mkdir(parents=True)
    for i in range(count):
        suffix, rate, channels = SOUNDS[i % len(SOUNDS)]
        soundfile.write(root / f"sound-{i:06}{suffix}", _tones(i, rate, channels), rate)


def _tones(seed: int, rate: int, channels: int) -> NDArray[np.float32]:
    """(samples, channels) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(SECONDS * rate, dtype=np.float32)[:, None] / rate
    low, high = rng.uniform(80, 800, (2, 1, channels)).astype(np.float32)
    noise = rng.standard_normal((len(time), channels), np.float32)
    x: NDArray[np.float32] = 0.3 * np.sin(6.2832 * low * time) + 0.3 * np.sin(6.2832 * high * time)
    return x + 0.02 * noise


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "pictures in files": picture_files,
    "pictures in Parquet": picture_table,
    "sound in files": sound_files,
}
