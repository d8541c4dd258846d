"""The options of data, and the contract of a source: undecoded examples with labels.

Left out: what examples are (kinds.py), finding them (folders.py, tables.py), decoding them (pictures.py,
clips.py).
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.hub.embedded import EMBEDDED
from tokenizer.variants import require

logger = logging.getLogger(__name__)

# What splits are called, whatever the case; those to hold out in the order they are preferred in.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALID_NAMES = ("validation", "valid", "val", "dev", "development", "eval", "evaluation")
NO_LABELS = "none"
# Columns that hold labels, where none is named.
LABEL_NAMES = ("label", "labels")
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class DataConfig:
    """Which examples to train on, which to hold out, and how to read them."""

    path: str = "embedded:emoji"
    """A folder of pictures, sound files or series in .npy (class = sub-folder, if there are any), a Parquet
    file or a folder of them, the name of a Hub data set (user/name), or embedded:digits, embedded:emoji,
    embedded:speech."""
    config: str | None = None
    """The configuration of a Hub data set that has several."""
    split: str = "train"
    """The split to train on; train and test are also found as training and testing, in any case."""
    test_split: str = "test"
    """The split to hold out, if there is one; else a split called validation, valid, val, dev or eval."""
    column: str | None = None
    """The column of pictures or sound; left out, it is found by its type (Image, Audio) or its name (image,
    img; audio, speech, sound, file)."""
    label_column: str | None = None
    """The column of labels; found by its type ClassLabel or its name (label, labels) if left out; none: no
    labels."""
    streaming: bool = False
    """Read the first --data.limit examples of a Hub data set over the network, without downloading it all.
    """
    limit: int | None = None
    """Use only this many examples of each split, the first ones."""
    valid_fraction: float = 0.05
    """Where there is no test split: the fraction to hold out, chosen by a hash of each example's bytes; the
    same picture as PNG and as BMP counts as two."""
    max_megapixels: float | None = None
    """Pictures of more than this many million pixels are skipped: small files can hold so many that they fill
    the memory. Left out: 89. Each million takes 3 MB while it is read."""
    workers: int = 0
    """Loader processes for each training process, at most as many as there are CPUs; useful for data that
    are too many to keep in memory decoded, and are read while training."""

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
        require(
            self.max_megapixels is None or 0 < self.max_megapixels < float("inf"),
            f"data.max_megapixels must be more than 0, got {self.max_megapixels}",
        )
        require(self.workers >= 0, f"data.workers must be at least 0, got {self.workers}")
        require(
            self.split != self.test_split,
            f"data.split and data.test_split are both {self.split!r}; hold out another split",
        )

    def given(self, option: str) -> bool:
        """Whether an option has another value than where it is left out."""
        return bool(getattr(self, option) != next(f.default for f in fields(self) if f.name == option))

    @property
    def splits_given(self) -> dict[str, str]:
        """The names of splits that were asked for, `split` and `test_split`."""
        return {o: str(getattr(self, o)) for o in ("split", "test_split") if self.given(o)}

    @property
    def embedded(self) -> bool:
        """Whether the data come with the project."""
        return self.path.startswith(EMBEDDED)

    @property
    def place(self) -> Path:
        """Where the data lie, if they are files."""
        return Path(self.path).expanduser()

    @property
    def on_hub(self) -> bool:
        """Whether `path` is neither embedded data nor there."""
        return not self.embedded and not self.place.exists()

    def no_split(self, option: str, names: Collection[str], where: object) -> ValueError:
        """The error that none of the splits `names` is the one that `option` asks for."""
        known = ", ".join(sorted(names)) or "none"
        return ValueError(
            f"{where}: no split {getattr(self, option)!r}; there are: {known} "
            f"(--data.{option.replace('_', '-')})"
        )


class Source(Protocol):
    """Undecoded examples. `labels` (len,) int64, -1 where unlabelled, or None; `raw`, an encoded example or
    the path of its file, is for `open_picture` or `Sound` and raises `ValueError` or `OSError` if it cannot
    be had."""

    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    def __len__(self) -> int: ...
    def id(self, i: int) -> str: ...
    def raw(self, i: int) -> bytes | str: ...


@dataclass(frozen=True)
class FoundData:
    """What a `DataConfig` points at; `held_out` is None where there is no such split. `name` is for cards."""

    name: str
    train: Source
    held_out: Source | None
    class_names: tuple[str, ...]
    held_out_from: str = ""
    """Where the examples to hold out come from, in words."""
    left_out: tuple[str, ...] = ()
    """What else lies there and is not taken, in words."""


def choose_splits(config: DataConfig, names: Collection[str], where: object) -> tuple[str | None, str | None]:
    """The names of the split to train on and of the one to hold out, None for one that is not in `names`.

    Raises `ValueError` if a split that was asked for, other than by default, is not there.
    """
    for option, wanted in config.splits_given.items():
        if wanted not in names:
            raise config.no_split(option, names, where)
    folded = {name.casefold(): name for name in sorted(names)} | {name: name for name in names}
    usual = () if config.given("split") else TRAIN_NAMES
    split = next((folded[n] for n in (config.split, *usual) if n in folded), None)
    held_out = (folded[n] for n in (config.test_split, *TEST_NAMES, *VALID_NAMES) if n in folded)
    return split, next((n for n in held_out if n != split), None)


def _numbered(
    parts: Sequence[Sequence[Any]], numbers: Mapping[Any, int], where: str
) -> list[list[int | None]]:
    """Labels by their numbers; None for those that have none, which only splits to hold out have."""
    unknown = {v for part in parts for v in part if v is not None} - numbers.keys()
    if unknown:
        named = ", ".join(sorted(map(str, unknown))[:10]) + (", …" if len(unknown) > 10 else "")
        logger.warning("%s: no classes, as only the held-out examples have them: %s", where, named)
    return [[None if v is None else numbers.get(v) for v in part] for part in parts]


def in_order(classes: Collection[str]) -> list[str]:
    """Names of classes sorted: numbers by value, if all are numbers, else as text."""
    if all(re.fullmatch(r"\d+", name, re.ASCII) for name in classes):
        return sorted(classes, key=lambda name: (int(name), name))
    return sorted(classes)


def warn_ignored(config: DataConfig, kind: str, *options: str) -> None:
    """Log each of `options` that was given although `kind` of data makes no use of it."""
    for option in options:
        if config.given(option):
            logger.warning("%s: --data.%s has no effect on %s", config.path, option.replace("_", "-"), kind)


def number_labels(
    parts: Sequence[Sequence[Any]], class_names: Sequence[str] | None, where: str
) -> tuple[list[NDArray[np.int64] | None], tuple[str, ...]]:
    """Labels of several splits as numbers, -1 where there is none, and the names of the classes.

    `class_names` None: the classes are those of the first split, in the order of their numbers, or of their
    names; a label that only another split has is none, and the log says so. Raises `ValueError` for labels of
    other kinds, for numbers without a name, and for too many classes.
    """
    values = {v for part in parts for v in part if v is not None}
    kinds = {type(v) for v in values}
    if kinds == {str}:
        if class_names is not None and (unknown := sorted(values - set(class_names))):
            known = ", ".join(class_names)
            raise ValueError(f"{where}: label {unknown[0]!r} is not a class; there are: {known}")
        first = {v for v in parts[0] if v is not None}
        names = tuple(in_order(first) if class_names is None else class_names)
        parts = _numbered(parts, {name: i for i, name in enumerate(names)}, where)
    elif kinds <= {int, bool}:
        low, high = min(values, default=0), max(values, default=-1)
        occurring = sorted({v for v in parts[0] if v is not None and v != -1})
        count = len(occurring) if class_names is None else len(class_names)
        if low < -1 or count > MAX_CLASSES or (class_names is not None and high >= count):
            most = MAX_CLASSES if class_names is None else count
            raise ValueError(
                f"{where}: labels must be class numbers from 0 on, of {most} classes at most, got "
                f"{low}..{high}; choose another column, or --data.label-column {NO_LABELS}"
            )
        names = tuple(map(str, map(int, occurring)) if class_names is None else class_names)
        if class_names is None:
            parts = _numbered(parts, {number: i for i, number in enumerate(occurring)} | {-1: -1}, where)
    else:
        raise ValueError(
            f"{where}: labels must be class numbers or names, got "
            f"{', '.join(sorted(k.__name__ for k in kinds))}; choose another column, "
            f"or --data.label-column {NO_LABELS}"
        )
    return [np.array([-1 if v is None else v for v in part], dtype=np.int64) for part in parts], names
