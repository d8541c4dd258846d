"""Examples from tables: Parquet files, data sets of the Hub, and the embedded sets of the project.

Left out: pictures and sound stored as nested lists of numbers.
"""

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.config import (
    LABEL_NAMES,
    NO_LABELS,
    TEST_NAMES,
    TRAIN_NAMES,
    VALID_NAMES,
    DataConfig,
    FoundData,
    choose_splits,
    number_labels,
    warn_ignored,
)
from pipelines.data.kinds import KINDS, Kind, wrong_kind
from tokenizer.hub.embedded import EMBEDDED
from tokenizer.variants import shortened

# Ways into archives of the Hub, which `datasets` streams as "zip://a.png::hf://datasets/user/name/a.zip".
ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")


@dataclass(frozen=True)
class TableRows:
    """A table's column of pictures or sound: bytes, or structs of bytes and path, as in `datasets`.

    `folders` are where files that rows name may lie, relative ones below the first; `remote`, whether they
    may be on the Hub. A table can come from anybody, and must not have other files of this machine read, or
    other machines asked.
    """

    kind: Kind
    split: str
    column: pa.ChunkedArray
    labels: NDArray[np.int64] | None
    folders: tuple[Path, ...] = ()
    remote: bool = False

    def __len__(self) -> int:
        return len(self.column)

    def id(self, i: int) -> str:
        return f"{self.split}:{i}"

    def raw(self, i: int) -> bytes | str:
        cell: Any = self.column[i].as_py()
        path: Any = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if isinstance(cell, bytes | str):
            return cell
        if path is None:
            raise ValueError(f"{self.id(i)}: the row holds no {self.kind.one}; fill it or remove it")
        *archives, place = str(path).split("::")
        if place.startswith("file://"):
            place = place.removeprefix("file://")
        elif "://" in place:
            return self._fetched(i, archives, place)
        file = Path(os.path.normpath(Path(*self.folders[:1], place)))
        if archives or not any(file.is_relative_to(folder) for folder in self.folders):
            where = " or ".join(map(str, self.folders)) or "the table"
            raise ValueError(
                f"{self.id(i)}: names the file {shortened(str(path))}, which is not in {where}; store the "
                "bytes in the table, or put the files beside it"
            )
        return str(file)

    def _fetched(self, i: int, archives: list[str], place: str) -> bytes:
        """A file of a streamed data set."""
        inside = all(a.split("://")[0] in ARCHIVES for a in archives)
        if not (self.remote and inside and place.startswith("hf://")):
            raise ValueError(
                f"{self.id(i)}: names {shortened(place)}, which is not of a data set of the Hub that is "
                "streamed; store the bytes in the table"
            )
        import fsspec

        with fsspec.open("::".join([*archives, place]), "rb") as file:
            content: bytes = file.read()
            return content


CREDIT = " The data and their licence: pipelines/embedded/LICENSES.md of tokenloom."
# Parquet files of so many bytes, uncompressed, are read into memory; `datasets` copies larger ones to its
# cache once, and maps them from there.
IN_MEMORY = 1 << 30


def credit(path: str) -> str:
    """A sentence for the cards of what is trained on `path`, if that is embedded data."""
    return CREDIT if path.startswith(EMBEDDED) else ""


def read_embedded(config: DataConfig, kind: Kind) -> FoundData:
    """`embedded:NAME`, read straight from the package."""
    warn_ignored(config, "embedded data", "config", "streaming")
    folder = files("pipelines") / "embedded"
    stems = [f.name.removesuffix(".parquet") for f in folder.iterdir() if f.name.endswith(".parquet")]
    name = config.path.removeprefix(EMBEDDED)
    splits = [stem.removeprefix(f"{name}-") for stem in stems if stem.startswith(f"{name}-")]
    if not splits:
        known = sorted({EMBEDDED + stem.rpartition("-")[0] for stem in stems})
        raise ValueError(f"{config.path}: no such embedded data set; there are: {', '.join(known)}")
    tables = list[pa.Table | None]()
    for split in choose_splits(config, splits, config.path):
        if not split:
            tables.append(None)
            continue
        # From the file: a buffer of Python's, which a thread of Arrow may free while Python ends, aborts it.
        with as_file(folder / f"{name}-{split}.parquet") as path:
            tables.append(pq.read_table(path))
    return _from_tables(config, kind, config.path, tables[0], tables[1])


def read_parquet(config: DataConfig, kind: Kind, root: Path, names: list[str]) -> FoundData:
    """Parquet files `names` under `root`; a file is of the splits that its relative path holds as words."""
    warn_ignored(config, "Parquet files", "config", "streaming")
    if len(names) == 1:
        warn_ignored(config, "a single Parquet file", "split", "test_split")
        chosen = {"train": names}
    else:
        chosen = _files_of_splits(config, root, names)
    paths = {k: [str(root / n) for n in v] for k, v in chosen.items()}
    problem = (
        f"{config.path}: cannot be read as Parquet files with the same columns; download them again, or give "
        "others with --data.path"
    )
    if _bytes_of(paths, problem) <= IN_MEMORY:
        tables = {k: _read_tables(v, problem) for k, v in paths.items()}
    else:
        splits = _load_dataset(problem, "parquet", data_files=paths)
        tables = {k: _to_table(v, config.limit, config.path) for k, v in splits.items()}
    name = Path(names[0]).stem if len(names) == 1 else root.resolve().name
    folder = Path(os.path.abspath(root))
    found = _from_tables(config, kind, name, tables["train"], tables.get("test"), (folder,))
    taken = {n for some in chosen.values() for n in some}
    return replace(found, left_out=tuple(n for n in names if n not in taken))


def _bytes_of(paths: Mapping[str, Sequence[str]], problem: str) -> int:
    """What Parquet files take in memory, by what they say themselves."""
    try:
        files = [pq.read_metadata(path) for some in paths.values() for path in some]
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{problem} ({error})") from error
    return sum(f.row_group(i).total_byte_size for f in files for i in range(f.num_row_groups))


def _read_tables(paths: Sequence[str], problem: str) -> pa.Table:
    try:
        # partitioning: a folder called a=1 makes no column. A column that a file lacks is empty there, as
        # `datasets` has it.
        tables = [pq.read_table(path, partitioning=None) for path in paths]
        return pa.concat_tables(tables, promote_options="default")
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{problem} ({error})") from error


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def read_saved(config: DataConfig, kind: Kind, root: Path) -> FoundData:
    """A folder that `save_to_disk` of `datasets` wrote, of one split or of several."""
    import datasets

    warn_ignored(config, "a saved data set", "config", "streaming")
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # as in _load_dataset
        raise ValueError(
            f"{config.path}: cannot be read as what save_to_disk wrote ({type(error).__name__}: {error}); "
            "save or download it again, or give another with --data.path"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        warn_ignored(config, "a saved data set of one split", "split", "test_split")
        table = _to_table(loaded, config.limit, config.path)
        return _from_tables(config, kind, root.resolve().name, table, None, (root.resolve(),))
    return _from_splits(config, kind, root.resolve().name, loaded, (root.resolve(),))


def _files_of_splits(config: DataConfig, root: Path, names: list[str]) -> dict[str, list[str]]:
    words = {config.split, config.test_split, *TRAIN_NAMES, *TEST_NAMES, *VALID_NAMES}
    # A word ends where letters and digits end: "train-00000-of-00002.parquet", "data/train/a.parquet".
    of = {
        n: {w for w in words if re.search(rf"(?<![a-z0-9]){re.escape(w)}(?![a-z0-9])", n.lower())}
        for n in names
    }
    split, held_out = choose_splits(config, set().union(*of.values()), root)
    train = [n for n in names if (split in of[n] if split else not of[n])]
    if not train:
        raise ValueError(f"{root}: no Parquet file for the split {config.split!r}; name it with --data.split")
    test = [n for n in names if held_out in of[n] and n not in train]
    return {"train": train, "test": test} if test else {"train": train}


def read_hub(config: DataConfig, kind: Kind) -> FoundData:
    """A data set of the Hub, or of a local folder that `datasets` can load, by its name."""
    problem = (
        f"{config.path}: no such folder or file here, and the Hub did not give a data set of this name; "
        "check the name, --data.config and the network"
    )
    splits = _load_dataset(problem, config.path, name=config.config, streaming=config.streaming)
    return _from_splits(config, kind, config.path, splits, _folders_of_hub(config), remote=True)


def _from_splits(
    config: DataConfig,
    kind: Kind,
    name: str,
    splits: Mapping[str, Any],
    folders: tuple[Path, ...],
    remote: bool = False,
) -> FoundData:
    """Those of the splits of `datasets` that are to be trained on and held out."""
    split, held_out = choose_splits(config, splits, config.path)
    if split is None:
        known = ", ".join(sorted(splits))
        raise ValueError(f"{config.path}: no split {config.split!r}; there are: {known} (--data.split)")
    tables = [_to_table(splits[s], config.limit, config.path) if s else None for s in (split, held_out)]
    found = _from_tables(config, kind, name, tables[0], tables[1], folders, remote)
    left = tuple(f"split {other}" for other in splits if other not in (split, held_out))
    return replace(found, held_out_from=f"split {held_out}" if held_out else "", left_out=left)


def _folders_of_hub(config: DataConfig) -> tuple[Path, ...]:
    """Where `datasets` keeps files of data sets: in its caches, or where they are if that is here."""
    import datasets
    from huggingface_hub import constants

    cached = (
        datasets.config.HF_DATASETS_CACHE,
        datasets.config.DOWNLOADED_DATASETS_PATH,
        constants.HF_HUB_CACHE,
    )
    here = (config.path,) if Path(config.path).is_dir() else ()
    return tuple(Path(os.path.abspath(folder)) for folder in (*here, *cached))


def _load_dataset(problem: str, path: str, **options: Any) -> dict[str, Any]:
    """The splits of `datasets.load_dataset` by name."""
    import datasets  # takes a second, so it waits for data that need it

    try:
        splits: dict[str, Any] = datasets.load_dataset(path, **options)
        return splits
    except Exception as error:
        # The libraries below raise a dozen unrelated kinds here: network, cache, schema, Parquet, name.
        cause = error.__cause__ or error
        if isinstance(cause, ImportError) and "torchcodec" in str(cause):
            raise ValueError(
                f"{path}: `datasets` cannot copy loose sound files without torchcodec; add --data.streaming "
                "--data.limit N, or download the data set and give its folder"
            ) from error
        place = " `datasets` copies it to its cache: set HF_HOME to a folder that can be written to."
        unwritable = isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC)
        raise ValueError(
            f"{problem} ({type(cause).__name__}: {cause}){'.' + place if unwritable else ''}"
        ) from error


def _to_table(split: Any, limit: int | None, where: str) -> pa.Table:
    """A split of `datasets` as stored: memory-mapped from the disk, or its first `limit` rows if streamed."""
    if hasattr(split, "num_rows"):
        return split.with_format("arrow")[:]
    try:
        tables = list(split.take(limit).with_format("arrow").iter(batch_size=256))
    except Exception as error:  # as in _load_dataset
        raise ValueError(f"{where}: streaming failed ({type(error).__name__}: {error}); try again") from error
    if not tables:
        raise ValueError(f"{where}: the split has no examples")
    return pa.concat_tables(tables)


def _from_tables(
    config: DataConfig,
    kind: Kind,
    name: str,
    train: pa.Table,
    held_out: pa.Table | None,
    folders: tuple[Path, ...] = (),
    remote: bool = False,
) -> FoundData:
    splits = {config.split: train} if held_out is None else {config.split: train, "held-out": held_out}
    column = _data_column(config, kind, train)
    label = _label_column(config, train)
    for split, table in splits.items():
        if missing := {column, label or column} - set(table.column_names):
            raise ValueError(f"{config.path}: the {split} split has no column {missing.pop()!r}")
    tables = {k: t.slice(0, config.limit) for k, t in splits.items()}
    labels: list[NDArray[np.int64] | None] = [None] * len(tables)
    class_names: tuple[str, ...] = ()
    if label is not None:
        names = [_features(t).get(label, {}).get("names") for t in tables.values()]
        if names[0] != names[-1]:
            raise ValueError(f"{config.path}: the splits name the classes of {label!r} differently")
        values = [t.column(label).to_pylist() for t in tables.values()]
        labels, class_names = number_labels(values, names[0], f"{config.path}: column {label!r}")
    rows = [
        TableRows(kind, k, t.column(column), y, folders, remote)
        for (k, t), y in zip(tables.items(), labels, strict=True)
    ]
    other = rows[1] if len(rows) > 1 else None
    return FoundData(name, rows[0], other, class_names, "a split of its own" if other else "")


def _features(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The types that `datasets` writes into the schema; columns of other writers have none."""
    stored = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features") or {}
    return {k: v for k, v in features.items() if isinstance(v, dict)}


def _data_column(config: DataConfig, kind: Kind, table: pa.Table) -> str:
    """The column of `kind`: as named by the user, else found by type, else by name, encoded ones first."""
    features = {k: v.get("_type") for k, v in _features(table).items()}
    columns = table.column_names
    typed = [c for c in columns if features.get(c) == kind.feature]
    named = [c for c in columns if c in kind.columns]
    column = config.column or next(iter(typed + sorted(named, key=lambda c: not _is_encoded(table, c))), None)
    for other in KINDS.all().values():
        others = [c for c in columns if other != kind and features.get(c) == other.feature]
        if others and (column is None or column in others):
            there = f"holds {other.many} (column {others[0]!r})"
            raise ValueError(f"{config.path}: {there}, {wrong_kind(kind, other)}")
    if column is None or column not in columns:
        wanted = f"no column {column!r}" if column else f"no column of {kind.many} found"
        raise ValueError(f"{config.path}: {wanted}; there are: {', '.join(columns)} (--data.column)")
    if not _is_encoded(table, column):
        raise ValueError(
            f"{config.path}: column {column!r} holds {table.schema.field(column).type}, expected {kind.many} "
            f"(encoded bytes); there are: {', '.join(columns)} (--data.column)"
        )
    return column


def _is_encoded(table: pa.Table, column: str) -> bool:
    """Whether a column holds bytes, or structs of bytes and path."""
    kind = table.schema.field(column).type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_bytes or (pa.types.is_struct(kind) and bool({f.name for f in kind} & {"bytes", "path"}))


def _label_column(config: DataConfig, table: pa.Table) -> str | None:
    columns, features = table.column_names, _features(table)
    if config.label_column == NO_LABELS:
        return None
    if config.label_column is not None:
        if config.label_column not in columns:
            raise ValueError(
                f"{config.path}: no column {config.label_column!r}; there are: {', '.join(columns)} "
                "(--data.label-column)"
            )
        return config.label_column
    typed = [c for c in columns if features.get(c, {}).get("_type") == "ClassLabel"]
    return next(iter(typed + [c for c in columns if c in LABEL_NAMES]), None)
