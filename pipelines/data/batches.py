"""Batches of data of any kind, split into training and held out, in an order of seed and epoch alone.

Left out: finding data (folders.py, tables.py), what is particular to a kind (kinds.py), and moving batches to
devices.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.config import DataConfig, FoundData, Source
from pipelines.data.folders import find_sources
from pipelines.data.kinds import KINDS, Items, Kind, Split
from pipelines.data.scan import held_out_mask
from pipelines.run.signals import ignore_requests
from tokenizer.distributed import keyed_generator
from tokenizer.modalities import Modality

logger = logging.getLogger(__name__)

# So many classes are named in the summary of the data.
NAMED = 12


@dataclass(frozen=True)
class Splits:
    """Examples to train on and to hold out (perhaps none of these). `name` of the data set is for reports."""

    name: str
    train: Split
    held_out: Split
    class_names: tuple[str, ...]

    def digest(self) -> str:
        """A hash of which examples there are, by content, name and label: to compare processes and runs
        by."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for examples in (self.train, self.held_out):
            digest.update(f"{len(examples)}".encode())
            digest.update(b"" if examples.labels is None else examples.labels.tobytes())
            digest.update(examples.digests.tobytes())
            for i in range(len(examples)):
                digest.update(f"{examples.id(i)}\0".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What a run keeps of its data, to know them again wherever they lie."""
        return {
            "train": len(self.train),
            "held_out": len(self.held_out),
            "class_names": list(self.class_names),
            "digest": self.digest(),
        }


@dataclass(frozen=True)
class Batch:
    """Rows `offset : offset + b` of the global batch of optimizer step `step`, in its micro-batch `micro`.

    `x` (b, C, H, W) uint8, (b, C, crop) float32, or codes (b, K, *grid) int64; `labels` (b,) int64, -1 where
    there is none; `index` (b,) int64: which examples, clips or items of tokens.
    """

    x: Tensor
    labels: Tensor
    step: int
    micro: int
    offset: int
    index: Tensor


def load_splits(config: DataConfig, modality: Modality, cache_bytes: int = 1 << 30) -> Splits:
    """Find, check and split the data of `config`: what `modality` is for, in its size, rate and channels.

    A split that fits decoded into `cache_bytes` is kept so, a larger one is decoded on access; which examples
    there are does not depend on that. Held out is the test split if there is one, else
    `config.valid_fraction` by content. What cannot be read is skipped and reported, and one line of the log
    says what was found. Raises `ValueError` with the fix for data that cannot be found or used.
    """
    kind = KINDS.of(modality)

    def look(source: Source) -> Split:
        # Or the name of embedded data, or of the Hub's.
        place = os.path.abspath(config.place) if config.place.exists() else config.path
        place += "" if source is found.train else " (held out)"
        return kind.scan(source, modality, config, cache_bytes, place)

    found = find_sources(config, kind)
    train = look(found.train)
    if found.held_out is not None:
        if config.given("valid_fraction"):
            logger.warning("%s: has a split to hold out; --data.valid-fraction has no effect", config.path)
        held_out = look(found.held_out)
        if held_out.shape != train.shape:
            raise ValueError(
                f"{config.path}: held-out {kind.many} are {held_out.shape} (C, *size), the others "
                f"{train.shape}; give all of them one size and number of channels"
            )
    else:
        mask = held_out_mask(train.digests, config.valid_fraction)
        if config.valid_fraction > 0 and not mask.any():
            which = f"all {kind.many} are equal" if len(train) > 1 else f"there is one {kind.one}"
            logger.warning("%s: %s, so none is held out", config.path, which)
        train, held_out = train.pick(~mask), train.pick(mask)
    splits = Splits(found.name, train, held_out, found.class_names)
    logger.info("%s", summary(kind, found, splits))
    return splits


def summary(kind: Kind, found: FoundData, splits: Splits) -> str:
    """What was found, in one line: how many examples of which classes, how many of them are held out and why
    these, and what was left out."""
    names = found.class_names
    listed = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    classes = f" of {len(names)} class{'es' * (len(names) > 1)} ({listed})" if names else ""
    train, held_out = len(splits.train), len(splits.held_out)
    what = kind.one if train == 1 else kind.many
    what += f" ({splits.train.amount})" if splits.train.amount else ""
    why = ", ".join(filter(None, (splits.held_out.amount, found.held_out_from or "by content")))
    held = f"{held_out} held out ({why})" if held_out else "none held out"
    left = f"; left out: {', '.join(found.left_out)}" if found.left_out else ""
    return f"{train} {what}{classes} to train on, {held}{left}"


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
class Plan(Dataset[Batch]):
    """This rank's batches by (step, micro), each computed from its place alone."""

    items: Items
    batch_size: int
    micro_batches: int
    rank: int
    world: int
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, micro = place
        rows = self.batch_size // self.micro_batches // self.world
        offset = (micro * self.world + self.rank) * rows
        start = step * self.batch_size + offset
        wanted = order(len(self.items), self.seed, start, rows)
        epochs = np.arange(start, start + rows) // len(self.items)
        x, labels, index = self.items.take(wanted, epochs, self.seed)
        return Batch(x, labels, step, micro, offset, index)


def batches(
    examples: Split,
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
    a step do not depend on ranks, micro-batches or where a run began. Items are those of
    `Split.training`, in the views of `augment`. Raises `ValueError` unless A·world divides B.
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
    if augment != NO_VIEWS and not examples.kind.augmented:
        logger.warning(
            "--augment.* has no effect on %s: flips and shifts are for pictures", examples.kind.many
        )
    items = examples.training(augment)
    if batch_size > len(items):
        logger.warning("a batch of %d repeats examples: there are only %d", batch_size, len(items))
    plan = Plan(items, batch_size, micro_batches, rank, world, seed)
    places = ((s, m) for s in range(start_step, stop_step) for m in range(micro_batches))
    if workers == 0:
        return (plan[place] for place in places)
    # batch_size None: a worker makes whole batches. A generator of its own: the loader draws a seed for its
    # workers, and the global generator must not depend on their number.
    loader = DataLoader(
        plan,
        batch_size=None,
        sampler=places,
        num_workers=min(workers, os.cpu_count() or 1),
        generator=torch.Generator(),
        worker_init_fn=ignore_requests,
    )
    return iter(loader)
