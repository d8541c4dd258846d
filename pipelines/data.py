"""Batches from a folder, Parquet, the Hub or embedded data, in an order that depends on seed and epoch
alone.

Left out: reading and decoding (sources.py, table_sources.py, examples.py), moving batches to devices,
sound.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.augment import Augment
from pipelines.examples import Examples, Fit, held_out_mask, scan
from pipelines.sources import SUFFIXES, DataConfig, Found, default_of, read_folder, walk
from pipelines.table_sources import EMBEDDED, read_embedded, read_hub, read_parquet
from tokenizer.distributed import keyed_generator

logger = logging.getLogger(__name__)

NO_VIEWS = Augment()

__all__ = [
    "Batch",
    "DataConfig",
    "Examples",
    "Splits",
    "batches",
    "find_sources",
    "held_out_batches",
    "load_splits",
    "order",
    "to_float",
]


@dataclass(frozen=True)
class Splits:
    """Examples to train on and to hold out (perhaps none); `name` of the data set is for reports."""

    name: str
    train: Examples
    held_out: Examples
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Rows `offset : offset + b` of the global batch of optimizer step `step`, in its micro-batch `micro`.

    `x` (b, C, H, W) uint8; `labels` (b,) int64, -1 where there is none; `index` (b,) int64: which examples.
    """

    x: Tensor
    labels: Tensor
    step: int
    micro: int
    offset: int
    index: Tensor


def load_splits(config: DataConfig, fit: Fit, cache_bytes: int = 1 << 30) -> Splits:
    """Find, check and split the data of `config`; `fit` makes a picture (C, H, W) uint8, all of one shape.

    A split whose pixels fit into `cache_bytes` is decoded now, a larger one on access. Held out is the test
    split if there is one, else `config.valid_fraction` by content. Unreadable pictures are skipped and
    reported. Raises `ValueError` with the fix for data that cannot be found or used.
    """
    found = find_sources(config)
    by_content = found.held_out is None and config.valid_fraction > 0
    train = scan(found.train, fit, cache_bytes, hashed=by_content)
    if found.held_out is not None:
        if config.valid_fraction != default_of("valid_fraction"):
            logger.warning("%s: has a split to hold out; --data.valid-fraction has no effect", config.path)
        held_out = scan(found.held_out, fit, cache_bytes, hashed=False)
        if held_out.shape != train.shape:
            raise ValueError(
                f"{config.path}: held-out pictures are {held_out.shape} (C, H, W), the others {train.shape}; "
                "give all of them one size and number of channels"
            )
        return Splits(found.name, train.examples(), held_out.examples(), found.class_names)
    mask = held_out_mask(train.digests, config.valid_fraction)
    if by_content and not mask.any():
        logger.warning("%s: all pictures are equal, so none is held out", config.path)
    return Splits(found.name, train.examples(~mask), train.examples(mask), found.class_names)


def find_sources(config: DataConfig) -> Found:
    """The examples of `config.path`, undecoded. Raises `ValueError` with the fix for what cannot be found."""
    if config.path.startswith(EMBEDDED):
        return read_embedded(config)
    path = Path(config.path).expanduser()
    if path.is_dir():
        names = walk(path)
        pictures = [n for n in names if n.lower().endswith(SUFFIXES)]
        tables = [n for n in names if n.lower().endswith(".parquet")]
        if pictures and tables:
            raise ValueError(
                f"{path}: holds {len(pictures)} pictures and {len(tables)} Parquet files; "
                "point --data.path at a folder with one of the two"
            )
        if tables:
            return read_parquet(config, path, tables)
        if not pictures:
            raise ValueError(
                f"{path}: no pictures ({', '.join(SUFFIXES)}) and no .parquet files in this folder, "
                f"{len(names)} other files; check --data.path"
            )
        return read_folder(config, path, pictures)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"{path}: is one file, expected a folder or a .parquet file; give its folder")
        return read_parquet(config, path.parent, [path.name])
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", config.path):
        return read_hub(config)
    raise ValueError(
        f"{config.path}: no such file or folder, and not a Hub name (user/name) or {EMBEDDED}NAME; "
        "check --data.path"
    )


def order(num_examples: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Items `start : start + count` of the endless sequence of epoch permutations: (count,) example
    numbers.

    Epoch e is a permutation that `(seed, e)` alone decides, so any place is reached without a walk to it.
    """
    if num_examples < 1:
        raise ValueError("there are no examples to put into an order")
    if count == 0:
        return np.empty(0, dtype=np.int64)
    first, last = start // num_examples, (start + count - 1) // num_examples
    epochs = [_permutation(num_examples, seed, e) for e in range(first, last + 1)]
    skip = start - first * num_examples
    # One epoch is cut before it is copied: a batch must not cost a copy of the whole permutation.
    if len(epochs) == 1:
        return epochs[0][skip : skip + count].copy()
    return np.concatenate(epochs)[skip : skip + count]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return torch.randperm(num_examples, generator=keyed_generator(seed, epoch, "order")).numpy()


@dataclass(frozen=True)
class _Plan(Dataset[Batch]):
    """This rank's batches by (step, micro), each computed from its place alone."""

    examples: Examples
    batch_size: int
    micro_batches: int
    rank: int
    world: int
    seed: int
    augment: Augment

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, micro = place
        rows = self.batch_size // self.micro_batches // self.world
        offset = (micro * self.world + self.rank) * rows
        start = step * self.batch_size + offset
        wanted = order(len(self.examples), self.seed, start, rows)
        x, labels, index = self.examples.take(wanted)
        epochs = np.arange(start, start + rows) // len(self.examples)
        x = self.augment.view(x, wanted, epochs, len(self.examples), self.seed)
        return Batch(x, labels, step, micro, offset, index)


def batches(
    examples: Examples,
    *,
    batch_size: int,
    micro_batches: int = 1,
    rank: int = 0,
    world: int = 1,
    seed: int,
    start_step: int = 0,
    stop_step: int,
    workers: int = 0,
    augment: Augment = NO_VIEWS,
) -> Iterator[Batch]:
    """This rank's training batches of the optimizer steps `start_step` to `stop_step`, `micro_batches`
    each.

    Step s has items [s·B, (s+1)·B) of `order`, B = `batch_size` over all ranks and micro-batches;
    micro-batch m of A has rows [m·B/A, (m+1)·B/A) of those, and each rank its equal slice. So the data of
    a step do not depend on ranks, micro-batches or where a run began. Raises `ValueError` unless A·world
    divides B.
    """
    if micro_batches < 1:
        raise ValueError(f"a step has at least 1 micro-batch (accumulation step), got {micro_batches}")
    parts = micro_batches * world
    if batch_size < 1 or batch_size % parts:
        below = batch_size // parts * parts
        raise ValueError(
            f"batch size {batch_size} cannot be split into {micro_batches} accumulation steps on {world} "
            f"processes; the nearest that can: {f'{below} or ' if below > 0 else ''}{max(below, 0) + parts}"
        )
    if len(examples) == 0:
        raise ValueError("there are no examples to train on")
    if batch_size > len(examples):
        logger.warning("a batch of %d repeats examples: there are only %d", batch_size, len(examples))
    plan = _Plan(examples, batch_size, micro_batches, rank, world, seed, augment)
    places = ((s, m) for s in range(start_step, stop_step) for m in range(micro_batches))
    if workers == 0:
        return (plan[place] for place in places)
    # batch_size None: a worker makes whole batches. A generator of its own: the loader draws a seed for its
    # workers, and the global generator must not depend on their number.
    loader = DataLoader(
        plan, batch_size=None, sampler=places, num_workers=workers, generator=torch.Generator()
    )
    return iter(loader)


def held_out_batches(examples: Examples, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """This rank's part of every example once, in order; `batch_size` counts all ranks.

    Every rank gets the same number of batches, the last ones perhaps of 0 rows, so collectives stay
    aligned.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}")
    low, high = rank * batch_size // world, (rank + 1) * batch_size // world
    for step, start in enumerate(range(0, len(examples), batch_size)):
        wanted = np.arange(min(start + low, len(examples)), min(start + high, len(examples)))
        x, labels, index = examples.take(wanted)
        yield Batch(x, labels, step, 0, low, index)


def to_float(x: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return x.float() / 127.5 - 1
