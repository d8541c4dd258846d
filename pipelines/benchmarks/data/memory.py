"""The memory that loading much data takes: what each example costs once, and what each one that is read adds.

Left out: making the data (`made.py`), time (`speed.py`), and decoded data kept in memory: all
are read on access, as are those larger than `load_splits` keeps.
"""

import ctypes
import gc
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipelines.benchmarks.data.made import MAKERS, SECONDS
from pipelines.benchmarks.process_memory import MIB, own_memory, peak
from pipelines.benchmarks.registry import print_table
from pipelines.data.batches import batches, load_splits
from pipelines.data.clips import Clips
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from pipelines.presets import TOKENIZERS
from pipelines.run.environment import keep_freed_memory
from pipelines.run.own_process import in_own_process
from pipelines.training.options import TokenizerTraining

EPOCHS = 2
# Samples of memory in an epoch, and the part of it that a slope leaves out: what an epoch sets up once, such
# as its order, is no growth.
SAMPLES, SETTLING = 100, 0.2
WARM_UP = 128
DATA, SMALL = "data", "warm-up"
GOAL_PICTURES, GOAL_HOURS = 1_000_000, 10


class Slope(NamedTuple):
    """Bytes that each item adds, by least squares, and the standard error of that."""

    value: float
    error: float


def measure_all(pictures: int, hours: float, workers: tuple[int, ...]) -> dict[str, Any]:
    """`memory_of_loading` of all kinds of made data with so many loader processes, by kind and these; prints
    a table of each kind as soon as it is there."""
    values: dict[str, Any] = {}
    for kind in MAKERS:
        sound = kind.startswith("sound")
        count = max(1, round(hours * 3600 / SECONDS)) if sound else pictures
        rows = values[kind] = {str(n): loading_memory(kind, count, n) for n in workers}
        goal = f"{GOAL_HOURS} hours" if sound else f"{GOAL_PICTURES:,} pictures"
        what = f"{hours:g} hours of sound in {count} files" if sound else f"{count:,} {kind}"
        print_table(
            f"Two epochs of {what}, decoded on access; memory but for mapped files, of all processes;\n"
            f"A: bytes that each {'crop' if sound else 'picture'} read adds, ± standard error",
            [
                ("loader processes", "before", "per example found", "largest", "A, 2nd epoch", f"A, {goal}"),
                *(
                    (
                        n,
                        f"{row['before'] / MIB:.1f} MiB",
                        f"{row['per_example']:.0f} bytes",
                        f"+{(row['largest'] - row['before']) / MIB:.1f} MiB",
                        "{value:.1f} ± {error:.1f}".format(**row["slopes"][-1]),
                        f"{row['to_goal'] / MIB:.1f} MiB",
                    )
                    for n, row in rows.items()
                ),
            ],
        )
    return values


def loading_memory(kind: str, count: int, workers: int) -> dict[str, Any]:
    """`memory_of_loading` of `count` examples, made now, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in ((SMALL, WARM_UP), (DATA, count)):
            MAKERS[kind](Path(folder, name), size)
        caches = dict.fromkeys(("XDG_CACHE_HOME", "HF_DATASETS_CACHE"), f"{folder}/cache")
        cache = {**caches, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        threads = torch.get_num_threads()
        values: dict[str, Any] = in_own_process(
            memory_of_loading, kind, folder, workers, threads=threads, environment=cache
        )
        return values


def memory_of_loading(kind: str, place: str, workers: int) -> dict[str, Any]:
    """Bytes, while `EPOCHS` epochs of `place`/data are loaded as a training run loads them.

    `before`: after imports and whatever else happens once, for `place`/warm-up was loaded in the same way.
    `per_example`: what was added by finding and checking the data, for each of them. `slopes`: what each item
    that is read adds, in each epoch; an item is a picture or a crop of sound, of which there are `items` in
    an epoch. `to_goal`: what the slope of the last epoch comes to for `GOAL_PICTURES` or `GOAL_HOURS`.
    `largest` and `last`: while they were read. `peak`: the largest resident memory of this process alone,
    with mapped files.
    """
    keep_freed_memory()
    folder = Path(place)
    options = TOKENIZERS["audio-small" if kind.startswith("sound") else "emoji"].build()
    _stream(options, _found(options, folder / SMALL), workers)
    before = _settled()
    examples = _found(options, folder / DATA)
    loaded = _settled()
    items, goal = len(examples.training()), GOAL_PICTURES
    if kind.startswith("sound"):
        goal = round(items * GOAL_HOURS * 3600 / (SECONDS * len(examples)))
    read, memory = _stream(options, examples, workers, items)
    slopes = [slope(read, memory, items * (e + SETTLING), items * (e + 1)) for e in range(EPOCHS)]
    return {
        "examples": len(examples),
        "items": items,
        "before": before,
        "per_example": (loaded - before) / len(examples),
        "loaded": loaded,
        "to_goal": goal * slopes[-1].value,
        "largest": int(memory.max()),
        "last": int(memory[-1]),
        "slopes": [slope._asdict() for slope in slopes],
        "peak": peak(),
        "samples": [read.tolist(), memory.tolist()],
    }


def _settled() -> int:
    """`own_memory`, without what is freed but kept for later."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return own_memory()


def _found(options: TokenizerTraining, folder: Path) -> Any:
    data = DataConfig(path=str(folder), valid_fraction=0)
    return load_splits(data, options.model.modality.build(), cache_bytes=0).train


def _stream(
    options: TokenizerTraining, examples: Examples | Clips, workers: int, items: int = WARM_UP
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read `EPOCHS` epochs of `items`; how many were read, and the memory, at `SAMPLES` places of each."""
    size = options.batch_size
    steps = math.ceil(EPOCHS * items / size)
    found = batches(
        examples, batch_size=size, seed=0, stop_step=steps, workers=workers, augment=options.augment
    )
    read, memory = [], []
    every = max(1, steps // (EPOCHS * SAMPLES))
    for batch in found:
        if batch.step % every == 0:
            read.append((batch.step + 1) * size)
            memory.append(own_memory())
    return np.array(read), np.array(memory)


def slope(read: np.ndarray[Any, Any], memory: np.ndarray[Any, Any], low: float, high: float) -> Slope:
    """The least-squares slope of memory over items read, from `low` to `high` of these."""
    inside = (read >= low) & (read < high)
    x, y = read[inside].astype(float), memory[inside].astype(float)
    if len(x) < 3:
        raise ValueError(f"only {len(x)} samples of memory in an epoch, expected 3 or more; load more data")
    (value, _), covariance = np.polyfit(x - x.mean(), y, 1, cov=True)
    return Slope(float(value), float(np.sqrt(covariance[0, 0])))
