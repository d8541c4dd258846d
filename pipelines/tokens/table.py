"""All codes of a split as one array: in memory if they are few, else decoded once into a file that is mapped.

Parquet's pages are encoded, so they cannot be mapped themselves: a read decodes them, into several times
their size of memory, and a random item would cost its whole page.

Left out: what is in a shard (`shards.py`), and items by number (`items.py`, `clips.py`).
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipelines.tokens.info import TokenInfo
from pipelines.tokens.shards import Index, count_codes, find_shards, read_shard
from tokenizer.hub.files import remove_unfinished, write_atomically

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
    size = sum(count_codes(path, info) for path in paths) * info.dtype.itemsize
    if size > IN_MEMORY:
        return _mapped(folder / DECODED, split, info, views, paths, size)
    parts = [_shaped(np.zeros(0, info.dtype), info)]
    index = _joined([read_shard(path, info, views, parts.append) for path in paths], views)
    return Table(np.concatenate(parts), *index)


def _mapped(folder: Path, split: str, info: TokenInfo, views: int, paths: Sequence[Path], size: int) -> Table:
    """The codes mapped from `SPLIT-KEY.codes`, `size` bytes, decoded now if that or its index, which is
    written last, is not there."""
    stats = [path.stat() for path in paths]
    # The change of a file's entry (ctime) is the machine's own to say: decoded files that were copied here
    # with the shards are not believed.
    seen = [(p.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in zip(paths, stats, strict=True)]
    key = hashlib.sha256(repr((info, seen)).encode()).hexdigest()[:16]
    codes, index = folder / f"{split}-{key}.codes", folder / f"{split}-{key}.safetensors"

    found = _decoded_before(codes, index, size)
    if found is None:
        with _locked(folder):
            found = _decoded_before(codes, index, size)  # by another process while this one waited
            if found is None:
                logger.info("decoding %.1f GiB of codes into %s, once", size / 2**30, codes)
                remove_unfinished(folder)
                for old in folder.glob(f"{split}-*"):
                    old.unlink()
                found = _decode(codes, index, info, views, paths, size)
    # As a plain array: the class of memmap makes every index slower.
    mapped = np.asarray(np.memmap(codes, info.dtype, mode="r"))
    return Table(_shaped(mapped, info), *found)


def _decoded_before(codes: Path, index: Path, size: int) -> Index | None:
    """The index, if both files are whole by their sizes and its checksum."""
    if not (index.exists() and codes.exists() and codes.stat().st_size == size):
        return None
    try:
        with safe_open(index, "np") as file:
            # numpy raises errors of its own for some of the others.
            if {file.get_slice(name).get_dtype() for name in Index._fields} != {"I64"}:
                return None
            found = Index(file.get_tensor("lengths"), file.get_tensor("labels"))
            return found if (file.metadata() or {}).get("sha256") == _checksum(found) else None
    except (OSError, SafetensorError):
        return None


def _checksum(index: Index) -> str:
    digest = hashlib.sha256(repr((index.lengths.shape, index.labels.shape)).encode())
    digest.update(index.lengths.tobytes())
    digest.update(index.labels.tobytes())
    return digest.hexdigest()


def _decode(codes: Path, index: Path, info: TokenInfo, views: int, paths: Sequence[Path], size: int) -> Index:
    parts: list[Index] = []

    def write_codes(path: Path) -> None:
        with path.open("wb") as file:
            for shard in paths:
                parts.append(read_shard(shard, info, views, lambda part: file.write(part.tobytes())))

    try:
        if shutil.disk_usage(codes.parent).free < size:
            raise OSError(errno.ENOSPC, f"{size} bytes are needed")
        write_atomically(codes, write_codes)
        found = _joined(parts, views)
        metadata = {"sha256": _checksum(found)}
        write_atomically(index, lambda p: save_file(found._asdict(), p, metadata))
    except OSError as error:
        raise _no_room(codes.parent, error) from error
    return found


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
