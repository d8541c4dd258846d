"""Labels in metadata.csv or metadata.jsonl beside the files, as `datasets` reads them for folders of files.

Left out: other columns, and metadata.parquet.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources import LABEL_NAMES, DataConfig

METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


@dataclass(frozen=True)
class Metadata:
    """Labels by file; `column` is where they stand, None if the files have no column of labels."""

    files: tuple[str, ...]
    column: str | None
    labels: dict[str, str]


def read_metadata(config: DataConfig, root: Path, names: Sequence[str]) -> Metadata | None:
    """What the metadata among the files `names` under `root` say; None if there are none.

    Labels stand in `config.label_column`, or else in a column `label` or `labels`; numbers are taken as their
    text. Raises `ValueError` with the file's name if it cannot be read, has no column `file_name` or not the
    column that was asked for, or gives one file two labels.
    """
    found = tuple(name for name in names if name.rpartition("/")[2] in METADATA)
    if not found:
        return None
    columns: set[str] = set()
    labels: dict[str, str] = {}
    for name in found:
        folder = name.rpartition("/")[0]
        for row in _rows(root / name):
            if not isinstance(row.get(FILE_NAME), str):
                raise ValueError(f"{root / name}: a row has no {FILE_NAME}; every row names its file so")
            column = config.label_column or next((c for c in LABEL_NAMES if c in row), None)
            if column is None:
                continue
            if column not in row:
                raise ValueError(
                    f"{root / name}: no column {column!r}; there are: {', '.join(map(str, row))} "
                    "(--data.label-column)"
                )
            columns.add(column)
            file = "/".join(filter(None, (folder, row[FILE_NAME].removeprefix("./"))))
            label = "" if row[column] is None else str(row[column]).strip()
            if labels.setdefault(file, label) != label:
                raise ValueError(f"{root / name}: {file} has two labels, {labels[file]!r} and {label!r}")
    known = {file: label for file, label in labels.items() if label}
    return Metadata(found, min(columns, default=None), known)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(str.strip, file):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is no object")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); correct it, or remove it") from error
