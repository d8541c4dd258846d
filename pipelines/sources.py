"""The options of data, the contract of a source (undecoded examples with labels), and folders of pictures.

Left out: Parquet and the Hub (table_sources.py), decoding and the split by content (examples.py), and
sound.
"""

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.config import require

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT_SPLITS = ("validation", "valid", "val")
NO_LABELS = "none"
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class DataConfig:
    """Which examples to train on, which to hold out, and how to read them."""

    path: str = "embedded:emoji"
    """A folder of pictures (class = sub-folder, if there are any), a Parquet file or a folder of them, the
    name of a Hub data set (user/name), or embedded:digits, embedded:emoji, embedded:speech."""
    config: str | None = None
    """The configuration of a Hub data set that has several."""
    split: str = "train"
    """The split to train on."""
    test_split: str = "test"
    """The split to hold out, if there is one; else a split called validation, valid or val."""
    column: str | None = None
    """The column of pictures; found by its type Image or its name (image, img) if left out."""
    label_column: str | None = None
    """The column of labels; found by its type ClassLabel or its name (label, labels) if left out; none: no
    labels."""
    streaming: bool = False
    """Read the first --data.limit examples of a Hub data set over the network, without downloading it all.
    """
    limit: int | None = None
    """Use only the first so many examples of each split."""
    valid_fraction: float = 0.05
    """Where there is no test split: the fraction to hold out, chosen by a hash of each example's content.
    """
    workers: int = 0
    """Loader processes for each training process; useful where pictures are decoded while training."""

    def __post_init__(self) -> None:
        require(
            bool(self.path), "data.path is empty; give a folder, a Parquet file, a Hub name or embedded:NAME"
        )
        require(
            0 <= self.valid_fraction < 1,
            f"data.valid_fraction must be in [0, 1) (a part of 1, not percent), got {self.valid_fraction}",
        )
        require(self.limit is None or self.limit >= 1, f"data.limit must be at least 1, got {self.limit}")
        require(not self.streaming or self.limit is not None, "data.streaming needs data.limit; say how many")
        require(self.workers >= 0, f"data.workers must be at least 0, got {self.workers}")
        require(
            self.split != self.test_split,
            f"data.split and data.test_split are both {self.split!r}; hold out another split",
        )


class Source(Protocol):
    """Undecoded examples. `labels` (len,) int64, -1 where unlabelled, or None; `raw` is for `open_picture`
    and raises `ValueError` or `OSError` if it cannot be had."""

    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    def __len__(self) -> int: ...
    def id(self, i: int) -> str: ...
    def raw(self, i: int) -> bytes | Path: ...


@dataclass(frozen=True)
class Files:
    """Picture files `names` under `root`."""

    root: Path
    names: Sequence[str]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.names)

    def id(self, i: int) -> str:
        return self.names[i]

    def raw(self, i: int) -> Path:
        return self.root / self.names[i]


@dataclass(frozen=True)
class Found:
    """What a `DataConfig` points at; `held_out` is None where there is no such split. `name` is for cards."""

    name: str
    train: Source
    held_out: Source | None
    class_names: tuple[str, ...]


def choose_splits(config: DataConfig, names: Collection[str], where: object) -> tuple[str | None, str | None]:
    """The names of the split to train on and of the one to hold out, None for one that is not in `names`.

    Raises `ValueError` if a split that was asked for, other than by default, is not there.
    """
    for option in ("split", "test_split"):
        wanted = getattr(config, option)
        if wanted != default_of(option) and wanted not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ValueError(
                f"{where}: no split {wanted!r}; there are: {known} (--data.{option.replace('_', '-')})"
            )
    held_out = (n for n in (config.test_split, *HELD_OUT_SPLITS) if n in names and n != config.split)
    return (config.split if config.split in names else None), next(held_out, None)


def default_of(option: str) -> Any:
    """The value of an option that was left out."""
    return next(f.default for f in fields(DataConfig) if f.name == option)


def warn_ignored(config: DataConfig, kind: str, *options: str) -> None:
    """Log each of `options` that was given although `kind` of data makes no use of it."""
    for option in options:
        if getattr(config, option) != default_of(option):
            logger.warning("%s: --data.%s has no effect on %s", config.path, option.replace("_", "-"), kind)


def walk(root: Path) -> list[str]:
    """Sorted relative paths of all files under `root` but hidden ones; links to folders are followed."""
    found = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder).resolve()
        # A link to a folder above itself would be walked until the path is too long.
        below[:] = [d for d in below if d[0] != "." and not here.is_relative_to((here / d).resolve())]
        relative = Path(folder).relative_to(root)
        found += [(relative / n).as_posix() for n in names if n[0] != "."]
    return sorted(found)


def read_folder(config: DataConfig, root: Path, names: list[str]) -> Found:
    """Picture files `names` under `root`; sub-folders are splits (train/ and test/ or valid/), then
    classes.

    There are classes if every picture lies in a sub-folder; the first level counts.
    """
    warn_ignored(config, "a folder of pictures", "config", "column", "streaming")
    if config.label_column != NO_LABELS:
        warn_ignored(config, "a folder of pictures", "label_column")
    tops = {n.split("/")[0] for n in names if "/" in n}
    split, held_out = choose_splits(config, tops, root)
    if held_out and not split and config.test_split != default_of("test_split"):
        raise ValueError(f"{root}: there is {held_out}/ but no {config.split}/; name it with --data.split")
    is_split = split is not None and (held_out is not None or config.split != default_of("split"))
    parts = [s for s in (split, held_out) if s] if is_split else [""]
    groups = [[n for n in names if n.startswith(f"{p}/") or not p][: config.limit] for p in parts]
    depth = 1 if is_split else 0
    folders = [[n.split("/")[depth:-1] for n in group] for group in groups]
    labels: list[NDArray[np.int64] | None] = [None] * len(groups)
    class_names: tuple[str, ...] = ()
    loose = sum(not f for group in folders for f in group)
    if loose and any(f for group in folders for f in group):
        logger.warning("%s: no classes, because %d pictures lie outside of its sub-folders", root, loose)
    if not loose and config.label_column != NO_LABELS:
        labels, class_names = number_labels([[f[0] for f in group] for group in folders], None, str(root))
    sources = [Files(root, group, y) for group, y in zip(groups, labels, strict=True)]
    return Found(root.resolve().name, sources[0], sources[1] if len(sources) > 1 else None, class_names)


def number_labels(
    parts: Sequence[Sequence[Any]], class_names: Sequence[str] | None, where: str
) -> tuple[list[NDArray[np.int64] | None], tuple[str, ...]]:
    """Labels of several splits as numbers, -1 where there is none, and the names of the classes.

    `class_names` None: names (str) are numbered in sorted order; numbers are named by themselves. Raises
    `ValueError` for labels of other kinds, and for numbers without a name.
    """
    values = [v for part in parts for v in part if v is not None]
    kinds = {type(v) for v in values}
    if kinds == {str}:
        names = tuple(sorted(set(values)) if class_names is None else class_names)
        numbers = {name: i for i, name in enumerate(names)}
        if unknown := sorted(set(values) - numbers.keys()):
            raise ValueError(f"{where}: label {unknown[0]!r} is not a class; there are: {', '.join(names)}")
        parts = [[None if v is None else numbers[v] for v in part] for part in parts]
    elif kinds <= {int, bool}:
        low, high = min(values, default=0), max(values, default=-1)
        count = min(high + 1, MAX_CLASSES) if class_names is None else len(class_names)
        if low < -1 or high >= count:
            raise ValueError(
                f"{where}: labels must be class numbers from 0 to {count - 1}, got {low}..{high}; "
                f"choose another column, or --data.label-column {NO_LABELS}"
            )
        names = tuple(map(str, range(count)) if class_names is None else class_names)
    else:
        raise ValueError(
            f"{where}: labels must be class numbers or names, got "
            f"{', '.join(sorted(k.__name__ for k in kinds))}; choose another column, "
            f"or --data.label-column {NO_LABELS}"
        )
    return [np.array([-1 if v is None else v for v in part], dtype=np.int64) for part in parts], names
