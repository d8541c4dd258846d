"""Where data lie: what --data.path says, looked up, and folders of picture or sound files.

Left out: Parquet, the Hub and embedded data (table_sources.py), and opening the files.
"""

import heapq
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.scanning import broken_link
from pipelines.sources import (
    KINDS,
    NO_LABELS,
    DataConfig,
    Found,
    Kind,
    choose_splits,
    default_of,
    number_labels,
    warn_ignored,
    wrong_kind,
)
from pipelines.table_sources import EMBEDDED, read_embedded, read_hub, read_parquet

logger = logging.getLogger(__name__)


def find_sources(config: DataConfig, kind: Kind) -> Found:
    """The examples of one kind at `config.path`, undecoded.

    Raises `ValueError` with the fix for what cannot be found, and for data of another kind.
    """
    if config.path.startswith(EMBEDDED):
        return read_embedded(config, kind)
    path = Path(config.path).expanduser()
    if path.is_dir():
        names = walk(path)
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
            raise ValueError(
                f"{path}: no {kind.many} ({', '.join(kind.suffixes)}) and no .parquet files in this folder, "
                f"{len(names)} other files; check --data.path"
            )
        return read_folder(config, kind, path, items)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"{path}: is one file, expected a folder or a .parquet file; give its folder")
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
    for other in KINDS.values():
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
        return self.names[i]

    def raw(self, i: int) -> str:
        # No Path: that interns every part of it, and the table of those grows in steps of megabytes.
        return os.path.join(self.root, self.names[i])


def walk(root: Path) -> list[str]:
    """Sorted relative paths of all files under `root` but hidden ones.

    Links to folders are followed, but each folder is read once: in its own place if that is under `root`,
    else by the first link to it in the order of names. A link to a folder above itself is left out.
    `ValueError` for a folder that cannot be listed.
    """
    found: list[str] = []
    seen, links, waiting = set(), [], [""]
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
                shown = [entry for entry in entries if entry.name[0] != "."]
        except OSError as error:
            reason = f"cannot be listed ({error.strerror}); check its permissions"
            raise ValueError(f"{root / below}: {reason}") from error
        for entry in shown:
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
    return sorted(found)


def read_folder(config: DataConfig, kind: Kind, root: Path, names: list[str]) -> Found:
    """Files `names` of one kind under `root`; sub-folders are splits (train/ and test/ or valid/), then
    classes.

    There are classes if every file lies in a sub-folder; the first level counts.
    """
    warn_ignored(config, f"a folder of {kind.many}", "config", "column", "streaming")
    if config.label_column != NO_LABELS:
        warn_ignored(config, f"a folder of {kind.many}", "label_column")
    tops = {n.split("/")[0] for n in names if "/" in n}
    split, held_out = choose_splits(config, tops, root)
    if held_out and not split and config.test_split != default_of("test_split"):
        raise ValueError(f"{root}: there is {held_out}/ but no {config.split}/; name it with --data.split")
    is_split = split is not None and (held_out is not None or config.split != default_of("split"))
    parts = [s for s in (split, held_out) if s] if is_split else [""]
    groups = [[n for n in names if n.startswith(f"{p}/") or not p][: config.limit] for p in parts]
    classes = [[_class_of(n, 1 if is_split else 0) for n in group] for group in groups]
    labels: list[NDArray[np.int64] | None] = [None] * len(groups)
    class_names: tuple[str, ...] = ()
    loose = sum(c is None for group in classes for c in group)
    if 0 < loose < sum(map(len, groups)):
        text = "%s: no classes, because %d %s lie outside of its sub-folders"
        logger.warning(text, root, loose, kind.many)
    if not loose and config.label_column != NO_LABELS:
        labels, class_names = number_labels(classes, None, str(root))
    sources = [Files(root, Names(group), y) for group, y in zip(groups, labels, strict=True)]
    return Found(root.resolve().name, sources[0], sources[1] if len(sources) > 1 else None, class_names)


def _class_of(name: str, depth: int) -> str | None:
    """The sub-folder that a file lies in, `depth` levels down; None for a file outside of those."""
    parts = name.split("/", depth + 1)[depth:]
    return sys.intern(parts[0]) if len(parts) == 2 else None
