"""Where data lie: what --data.path says, looked up, and folders of picture or sound files, with labels in
metadata.csv or metadata.jsonl beside them, as `datasets` reads those.

Left out: Parquet, the Hub and embedded data (tables.py), and opening the files.
"""

import csv
import heapq
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data.config import (
    LABEL_NAMES,
    NO_LABELS,
    DataConfig,
    FoundData,
    number_labels,
    warn_ignored,
)
from pipelines.data.kinds import KINDS, Kind, wrong_kind
from pipelines.data.layouts import class_of, layout_of
from pipelines.data.scan import broken_link
from pipelines.data.tables import is_saved, read_embedded, read_hub, read_parquet, read_saved
from tokenizer.hub.embedded import EMBEDDED

logger = logging.getLogger(__name__)

# So many files that are left out are named; of more only their number is said.
FEW = 3
_UNPACK = "unpack it into a folder, as by `mkdir DIR && {} FILE{}`, and give that"
# Archives, such as those of WebDataset, are not looked into.
ARCHIVES = {
    **dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz"), _UNPACK.format("tar -xf", " -C DIR")),
    ".zip": _UNPACK.format("unzip -d DIR", ""),
    **dict.fromkeys((".7z", ".rar"), _UNPACK.format("7z x -oDIR", "")),
}


def find_sources(config: DataConfig, kind: Kind) -> FoundData:
    """The examples of one kind at `config.path`, undecoded.

    Raises `ValueError` with the fix for what cannot be found, and for data of another kind.
    """
    if config.embedded:
        return read_embedded(config, kind)
    path = config.place
    if path.is_dir():
        if is_saved(path):
            return read_saved(config, kind, path)
        names, hidden = walk(path)
        hidden = [n for n in hidden if n.lower().endswith(kind.suffixes)]
        items = [n for n in names if n.lower().endswith(kind.suffixes)]
        tables = [n for n in names if n.lower().endswith(".parquet")]
        if items and tables:
            raise ValueError(
                f"{path}: holds {len(items)} {kind.many} and {len(tables)} Parquet files; "
                "point --data.path at a folder with one of the two"
            )
        if tables:
            return read_parquet(config, kind, path, tables)
        if not items:
            _refuse_other_kinds(kind, path, names)
            there = "; ".join(left_out(kind, "", (), [*names, *hidden])) or "nothing"
            raise ValueError(
                f"{path}: no {kind.many} and no .parquet files in this folder; it holds {there}; "
                "check --data.path"
            )
        taken = set(items)
        others = [n for n in names if n not in taken]
        return read_folder(config, kind, path, items, [*others, *hidden])
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            fix = ARCHIVES.get(path.suffix.lower(), "give its folder")
            raise ValueError(f"{path}: is one file, expected a folder or a .parquet file; {fix}")
        return read_parquet(config, kind, path.parent, [path.name])
    if target := broken_link(path):
        raise ValueError(f"{path}: is a link to {target}, which is not there; check --data.path")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", config.path):
        return read_hub(config, kind)
    raise ValueError(
        f"{config.path}: no such file or folder, and not a Hub name (user/name) or {EMBEDDED}NAME; "
        "check --data.path"
    )


def _refuse_other_kinds(kind: Kind, path: Path, names: Sequence[str]) -> None:
    """`ValueError` for a folder that holds no data of `kind`, but of another."""
    for other in KINDS.all().values():
        if count := sum(n.lower().endswith(other.suffixes) for n in names):
            raise ValueError(f"{path}: holds {count} {other.many}, {wrong_kind(kind, other)}")


class Names:
    """Names of files by number, end to end in one array of bytes.

    A list of strings takes more than twice as much, and that once more in every loader process:
    Python counts references within each string, so that reading a list copies the pages that were shared.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # No name of a file holds a zero.
        self._bytes = np.frombuffer(os.fsencode("".join(f"{name}\0" for name in names)), np.uint8)
        self._ends = np.flatnonzero(self._bytes == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        start = self._ends[i - 1] + 1 if i else 0
        return os.fsdecode(self._bytes[start : self._ends[i]].tobytes())


@dataclass(frozen=True)
class Files:
    """Files `names` under `root`."""

    root: Path
    names: Names
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.names)

    def id(self, i: int) -> str:
        return shown(self.names[i])

    def raw(self, i: int) -> str:
        # No Path: that interns every part of it, and the table of those grows in steps of megabytes.
        return os.path.join(self.root, self.names[i])


def walk(root: Path) -> tuple[list[str], list[str]]:
    """Sorted relative paths of all files under `root`: those that are shown, and hidden ones, but for what
    lies in hidden folders.

    Links to folders are followed, but each folder is read once: in its own place if that is under `root`,
    else by the first link to it in the order of names. A link to a folder above itself is left out.
    `ValueError` for a folder that cannot be listed.
    """
    found, hidden = list[str](), list[str]()
    seen, links, waiting = set[str](), list[str](), [""]
    while waiting or links:
        # Links come last, so that they do not take a folder from its own place.
        below = waiting.pop() if waiting else heapq.heappop(links)
        folder = os.path.realpath(root / below)
        if folder in seen:
            continue
        seen.add(folder)
        start = f"{below}/" if below else ""
        try:
            with os.scandir(folder) as entries:
                every = list(entries)
        except OSError as error:
            reason = f"cannot be listed ({error.strerror}); check its permissions"
            raise ValueError(f"{root / below}: {reason}") from error
        for entry in every:
            if entry.name[0] == ".":
                if entry.is_file(follow_symlinks=False):
                    hidden.append(start + entry.name)
                continue
            # Not is_dir(), which raises for a link to itself.
            linked = entry.is_symlink() and os.path.isdir(entry.path)
            if not linked and not entry.is_dir(follow_symlinks=False):
                found.append(start + entry.name)
                # One to a missing file is found when that is read.
                if "." not in entry.name and (target := broken_link(entry.path)):
                    logger.warning(
                        "%s: is a link to %s, which is not there", root / below / entry.name, target
                    )
            elif not linked:
                waiting.append(start + entry.name)
            elif not Path(folder).is_relative_to(os.path.realpath(entry.path)):
                heapq.heappush(links, start + entry.name)
    return sorted(found), sorted(hidden)


def read_folder(
    config: DataConfig, kind: Kind, root: Path, names: list[str], others: Sequence[str]
) -> FoundData:
    """Files `names` of one kind under `root`, in splits and classes as `layout_of` finds them; labels of
    metadata.csv and metadata.jsonl, if these are among the `others`, come before sub-folders.

    There are classes if every file lies in a sub-folder of its split; the first level counts.
    """
    warn_ignored(config, f"a folder of {kind.many}", "config", "column", "streaming")
    metadata = read_metadata(config, root, others) if config.label_column != NO_LABELS else None
    if config.label_column != NO_LABELS and metadata is None:
        warn_ignored(config, f"a folder of {kind.many}", "label_column")
    layout = layout_of(config, names, root)
    parts = [layout.train, layout.held_out] if layout.held_out else [layout.train]
    prefixes = [layout.prefixes(part) or (layout.base,) for part in parts]
    every = [[n for n in names if n.startswith(start)] for start in prefixes]
    groups = [group[: config.limit] for group in every]
    labels: list[NDArray[np.int64] | None] = [None] * len(groups)
    class_names: tuple[str, ...] = ()
    if config.label_column != NO_LABELS:
        given = metadata.labels if metadata is not None else {}
        _report_unmatched(root, given, names)
        classes = [
            [given.get(n) for n in group] if given else [_class_of(n, start) for n in group]
            for group, start in zip(groups, prefixes, strict=True)
        ]
        loose = sum(c is None for group in classes for c in group)
        if given or not loose:
            labels, class_names = number_labels(classes, None, str(root))
        elif loose < sum(map(len, groups)):
            text = "%s: no classes, because %d %s lie outside of its sub-folders"
            logger.warning(text, root, loose, kind.many)
    sources = [Files(root, Names(group), y) for group, y in zip(groups, labels, strict=True)]
    left = [n for n in names if not any(n.startswith(start) for start in prefixes)]
    return FoundData(
        shown(root.resolve().name),
        sources[0],
        sources[1] if len(sources) > 1 else None,
        class_names,
        from_where(layout.held_out),
        left_out(kind, layout.base, left, others, metadata),
    )


def _report_unmatched(root: Path, labels: Mapping[str, str], names: Sequence[str]) -> None:
    """Say which labels of metadata are of no file, and how many of the files have none."""
    if not labels:
        return
    if lost := sorted(labels.keys() - set(names)):
        text = "%s: %d labels of metadata are of files that are not there, the first is %s"
        logger.warning(text, root, len(lost), shown(lost[0]))
    if bare := sum(name not in labels for name in names):
        logger.warning("%s: %d of %d files have no label in metadata", root, bare, len(names))


def from_where(folders: Sequence[str]) -> str:
    """Which folders are held out, for people; "" for none."""
    return f"folder{'s' * (len(folders) > 1)} {', '.join(map(shown, folders))}" if folders else ""


def left_out(
    kind: Kind, base: str, items: Sequence[str], others: Sequence[str], metadata: "Metadata | None" = None
) -> tuple[str, ...]:
    """What of a folder is not taken, in words: `items` of the kind that lie in no split, and `others`."""
    tops = Counter(n[len(base) :].split("/", 1)[0] if "/" in n[len(base) :] else "" for n in items)
    places = {top: f"in {shown(top)}/" if top else "beside the splits" for top in tops}
    words = [f"{count} {kind.many} {places[top]}" for top, count in tops.items()]
    read = metadata.files if metadata is not None and metadata.column is not None else ()
    hidden = [n for n in others if n.rpartition("/")[2].startswith(".")]
    taken = {*read, *hidden}
    rest = [n for n in others if n not in taken]
    suffixes = Counter(os.path.splitext(n)[1].lower() for n in rest)
    strange = []
    for suffix, count in suffixes.most_common():
        if fix := (kind.unreadable.get(suffix) or ARCHIVES.get(suffix)):
            words.append(f"{count} {suffix} ({fix})")
        elif count <= FEW:
            strange += [shown(n) for n in rest if os.path.splitext(n)[1].lower() == suffix]
        else:
            strange.append(f"{count} {suffix or 'without a suffix'}")
    if strange:
        words += [*strange[:-1], f"{strange[-1]} (not {kind.many})"]
    if hidden:
        few = ", ".join(map(shown, hidden[:FEW])) + (", …" if len(hidden) > FEW else "")
        words.append(f"{len(hidden)} hidden ({few}: the names begin with a dot)")
    return tuple(words)


def shown(name: str) -> str:
    """A name of a file as text: bytes that are no UTF-8 are written as \\xff is."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _class_of(name: str, starts: Sequence[str]) -> str | None:
    """The class of a file below one of `starts`, each a folder with its "/", or "" for all."""
    start = next(s for s in starts if name.startswith(s))
    found = class_of(shown(name), shown(start))
    return None if found is None else sys.intern(found)


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
                raise ValueError(
                    f"{root / name}: {file} has two labels, {labels[file]!r} and {label!r}; keep one of them"
                )
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
