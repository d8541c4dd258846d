"""Batches of pictures or sound, split into training and held out, in an order of seed and epoch alone.

Left out: finding data (folders.py, tables.py), looking it through (pictures.py, sounds.py),
decoding (pictures.py, sounds.py), moving batches to devices.
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

from pipelines.data.augment import Augment
from pipelines.data.config import KINDS, SOUND, DataConfig, Found, Kind, Source, default_of, warn_ignored
from pipelines.data.folders import find_sources
from pipelines.data.pictures import Examples, Scan, scan
from pipelines.data.scan import held_out_mask
from pipelines.data.sounds import Clips, ClipScan, Segments, scan_clips
from pipelines.run.signals import ignore_requests
from tokenizer.distributed import keyed_generator
from tokenizer.modalities import Modality

logger = logging.getLogger(__name__)

NO_VIEWS = Augment()
# So many classes are named in the summary of the data.
NAMED = 12


@dataclass(frozen=True)
class Splits:
    """Pictures (`Examples`) or sound (`Clips`) to train on and to hold out (perhaps none of these).

    `name` of the data set is for reports.
    """

    name: str
    train: Examples | Clips
    held_out: Examples | Clips
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

    `x` (b, C, H, W) uint8 or (b, C, crop) float32; `labels` (b,) int64, -1 where there is none; `index` (b,)
    int64: which examples or clips.
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
    kind = KINDS.get(modality.name)
    if kind is None:
        raise ValueError(f"there are no data for modality {modality.name!r}; known: {', '.join(KINDS)}")

    def look(source: Source) -> Scan | ClipScan:
        path = os.path.abspath(os.path.expanduser(config.path))
        place = path if os.path.exists(path) else config.path  # the name of embedded data, or of the Hub's
        place += "" if source is found.train else " (held out)"
        rules = f"{type(modality).__qualname__} {modality.preprocessor_config()}"
        if kind is SOUND:
            warn_ignored(config, "sound", "max_megapixels")
            return scan_clips(source, modality, cache_bytes, place, rules)
        return scan(source, modality.fit, cache_bytes, place, rules, config.max_megapixels)

    found = find_sources(config, kind)
    by_content = found.held_out is None and config.valid_fraction > 0
    train = look(found.train)
    if found.held_out is not None:
        if config.valid_fraction != default_of("valid_fraction"):
            logger.warning("%s: has a split to hold out; --data.valid-fraction has no effect", config.path)
        held_out = look(found.held_out)
        if held_out.shape != train.shape:
            raise ValueError(
                f"{config.path}: held-out pictures are {held_out.shape} (C, H, W), the others {train.shape}; "
                "give all of them one size and number of channels"
            )
        logger.info("%s", summary(kind, found, len(train.rows), len(held_out.rows)))
        return Splits(found.name, train.examples(), held_out.examples(), found.class_names)
    mask = held_out_mask(train.digests, config.valid_fraction)
    if by_content and not mask.any():
        which = f"all {kind.many} are equal" if len(train.rows) > 1 else f"there is one {kind.one}"
        logger.warning("%s: %s, so none is held out", config.path, which)
    logger.info("%s", summary(kind, found, int((~mask).sum()), int(mask.sum())))
    return Splits(found.name, train.examples(~mask), train.examples(mask), found.class_names)


def summary(kind: Kind, found: Found, train: int, held_out: int) -> str:
    """What was found, in one line: how many examples of which classes, how many of them are held out and why
    these, and what was left out."""
    names = found.class_names
    listed = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    classes = f" of {len(names)} class{'es' * (len(names) > 1)} ({listed})" if names else ""
    what = kind.one if train == 1 else kind.many
    held = f"{held_out} held out ({found.held_out_from or 'by content'})" if held_out else "none held out"
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
class _Plan(Dataset[Batch]):
    """This rank's batches by (step, micro), each computed from its place alone."""

    examples: Examples | Segments
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
        epochs = np.arange(start, start + rows) // len(self.examples)
        if isinstance(self.examples, Segments):
            x, labels, index = self.examples.take(wanted, epochs, self.seed)
        else:
            x, labels, index = self.examples.take(wanted)
            x = self.augment.view(x, wanted, epochs, len(self.examples), self.seed)
        return Batch(x, labels, step, micro, offset, index)


def batches(
    examples: Examples | Clips,
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
    a step do not depend on ranks, micro-batches or where a run began. Items are pictures, in the views of
    `augment`, or the segments of clips. Raises `ValueError` unless A·world divides B.
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
    if isinstance(examples, Clips) and augment != NO_VIEWS:
        logger.warning("--augment.* has no effect on sound: flips and shifts are for pictures")
    items = examples.segments() if isinstance(examples, Clips) else examples
    if batch_size > len(items):
        logger.warning("a batch of %d repeats examples: there are only %d", batch_size, len(items))
    plan = _Plan(items, batch_size, micro_batches, rank, world, seed, augment)
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


def held_out_batches(examples: Examples, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """This rank's part of every picture once, in order; `batch_size` counts all ranks. A picture that can no
    longer be read is left out, and named in the log.

    Every rank gets the same number of batches, the last ones perhaps of 0 rows, so collectives stay
    aligned.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}")
    low, high = rank * batch_size // world, (rank + 1) * batch_size // world
    for step, start in enumerate(range(0, len(examples), batch_size)):
        wanted = np.arange(min(start + low, len(examples)), min(start + high, len(examples)))
        x, labels, index = examples.take_readable(wanted)
        yield Batch(x, labels, step, 0, low, index)


def to_float(x: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]; sound is that already."""
    return x if x.is_floating_point() else x.float() / 127.5 - 1
