"""Rows of a table as examples: bytes, or the files that they name, which must lie where the table does.

Left out: finding tables and their columns (table_sources.py).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.sources import Kind
from tokenizer.config import shortened

# Ways into archives of the Hub, which `datasets` streams as "zip://a.png::hf://datasets/user/name/a.zip".
ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")


@dataclass(frozen=True)
class Rows:
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
        cell = self.column[i].as_py()
        path = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if cell is not None:
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
