"""All codes of a split as one array: in memory if they are few, else decoded once into a file that is mapped.

Parquet's pages are encoded, so they cannot be mapped themselves: a read decodes them, into several times
their size of memory, and a random item would cost its whole page.

Left out: what is in a shard (`token_shards.py`), and items by number (`tokens.py`, `token_clips.py`).
"""

import contextlib
import fcntl
import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.token_info import TokenInfo
from pipelines.token_shards import Index, count_codes, find_shards, read_shard
from tokenizer.files import write_atomically

logger = logging.getLogger(__name__)

# Bytes of codes of a split up to which every process reads them into its memory.
IN_MEMORY = 1 << 28
# Folder of the decoded files, beside the shards.
DECODED = ".decoded"


class Table(NamedTuple):
    """`codes` (rows, K, *grid), or for sound of any length (frames, K), of all shards in order, and of which
    items they are: `lengths` (n, views) and `labels` (n,) as in `Index`."""

    codes: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


def load_table(folder: Path, split: str, info: TokenInfo) -> Table:
    """A split's codes, checked.

    More than `IN_MEMORY` bytes are decoded into a file in `folder`/.decoded, which all processes map and
    later runs find again; it is made anew when a shard or tokens.json changes. Raises `ValueError` that names
    the file for a shard that is missing, broken, of another encoding or holds what cannot be, and if there is
    no room for the decoded file.
    """
    paths = find_shards(folder, split, info)
    views = info.views if split == "train" else 1
    size = sum(map(count_codes, paths)) * info.dtype.itemsize
    if size > IN_MEMORY:
        return _mapped(folder / DECODED, split, info, views, paths, size)
    parts = [_shaped(np.zeros(0, info.dtype), info)]
    index = _joined([read_shard(path, info, views, parts.append) for path in paths], views)
    return Table(np.concatenate(parts), *index)


def _mapped(folder: Path, split: str, info: TokenInfo, views: int, paths: Sequence[Path], size: int) -> Table:
    """The codes mapped from `SPLIT-KEY.codes`, `size` bytes, decoded now if that or its index, which is
    written last, is not there."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(repr((info, stats)).encode()).hexdigest()[:16]
    codes, index = folder / f"{split}-{key}.codes", folder / f"{split}-{key}.npz"

    if not _is_decoded(codes, index, size):
        with _locked(folder):
            if not _is_decoded(codes, index, size):  # by another process while this one waited
                logger.info("decoding %.1f GiB of codes into %s, once", size / 2**30, codes)
                for old in [*folder.glob(f"{split}-*"), *folder.glob(f".{split}-*")]:
                    old.unlink()
                _decode(codes, index, info, views, paths)
    with np.load(index) as saved:
        lengths, labels = saved["lengths"], saved["labels"]
    # As a plain array: the class of memmap makes every index slower.
    mapped = np.asarray(np.memmap(codes, info.dtype, mode="r"))
    return Table(_shaped(mapped, info), lengths, labels)


def _is_decoded(codes: Path, index: Path, size: int) -> bool:
    """Whether both files are whole, by their sizes and the checksums of the index."""
    if not (index.exists() and codes.exists() and codes.stat().st_size == size):
        return False
    try:
        with zipfile.ZipFile(index) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _decode(codes: Path, index: Path, info: TokenInfo, views: int, paths: Sequence[Path]) -> None:
    found: list[Index] = []

    def write_codes(path: Path) -> None:
        with path.open("wb") as file:
            for shard in paths:
                found.append(read_shard(shard, info, views, lambda part: file.write(part.tobytes())))

    def write_index(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **_joined(found, views)._asdict())

    try:
        write_atomically(codes, write_codes)
        write_atomically(index, write_index)
    except OSError as error:
        raise _no_room(codes.parent, error) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: what the first writes the others need not."""
    try:
        folder.mkdir(exist_ok=True)
        file: BinaryIO = (folder / ".lock").open("wb")
    except OSError as error:
        raise _no_room(folder, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _no_room(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{folder}: codes of more than {IN_MEMORY >> 20} MiB are decoded into this folder once, which failed "
        f"({error.strerror}); make it writable, with room, or copy the tokens to where there is"
    )


def _joined(parts: Sequence[Index], views: int) -> Index:
    lengths = [np.zeros((0, views), np.int64), *(part.lengths for part in parts)]
    labels = [np.zeros(0, np.int64), *(part.labels for part in parts)]
    return Index(np.concatenate(lengths), np.concatenate(labels))


def _shaped(flat: NDArray[np.unsignedinteger], info: TokenInfo) -> NDArray[np.unsignedinteger]:
    return flat.reshape(-1, info.num_codebooks, *info.grid)
