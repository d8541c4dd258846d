"""The options of data, the kinds of data, and the contract of a source: undecoded examples with labels.

Left out: finding them (folders.py, table_sources.py), decoding them (examples.py, clips.py).
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer.config import require
from tokenizer.modalities.files.pictures import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)

HELD_OUT_SPLITS = ("validation", "valid", "val")
NO_LABELS = "none"
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Kind:
    """What examples are: how messages call one and many of them, and how they are told in folders and tables.

    `feature` is their type in `datasets`; `columns` are names that columns of other writers have.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]
    feature: str
    columns: tuple[str, ...]


PICTURES = Kind(
    one="picture",
    many="pictures",
    suffixes=tuple(sorted(PICTURE_SUFFIXES)),
    feature="Image",
    columns=("image", "img"),
)
SOUND = Kind(
    one="sound",
    many="sound files",
    suffixes=(
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
        *(".aiff", ".aif", ".au", ".w64", ".caf"),
    ),
    feature="Audio",
    columns=("audio", "speech", "sound", "file"),
)
# By the name of the modality that is to be trained.
KINDS = {"image": PICTURES, "audio": SOUND}


@dataclass(frozen=True)
class DataConfig:
    """Which examples to train on, which to hold out, and how to read them."""

    path: str = "embedded:emoji"
    """A folder of pictures or sound files (class = sub-folder, if there are any), a Parquet file or a folder
    of them, the name of a Hub data set (user/name), or embedded:digits, embedded:emoji, embedded:speech."""
    config: str | None = None
    """The configuration of a Hub data set that has several."""
    split: str = "train"
    """The split to train on."""
    test_split: str = "test"
    """The split to hold out, if there is one; else a split called validation, valid or val."""
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
    """Use only the first so many pictures or sound files of each split."""
    valid_fraction: float = 0.05
    """Where there is no test split: the fraction to hold out, chosen by a hash of each example's bytes; the
    same picture as PNG and as BMP counts as two."""
    max_megapixels: float | None = None
    """Pictures of more million pixels are skipped, as small files can hold so many that they fill the memory.
    Left out: 89. Each million takes 3 MB while it is read."""
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


def wrong_kind(kind: Kind, other: Kind) -> str:
    """The end of a message on data of the `other` kind than that to be trained."""
    return (
        f"expected {kind.many}; choose a preset or tokenizer of {other.many} (the first word of "
        "train_tokenizer.py; --help lists them), or check --data.path"
    )


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
