"""Shards of tokens: Parquet files of codes, labels, ids and views, one for each block of items.

Left out: which items are in which shard (`plan.py`), and all shards of a split as one
(`table.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens.clips import clips_column, flat_clips
from pipelines.tokens.info import SPLITS, TokenInfo
from tokenizer.hub.files import write_atomically

# What a shard says of itself in its schema: whose codes it holds, of which encoding it is a part, and which.
FINGERPRINT, ENCODING, NAME = b"tokenloom.fingerprint", b"tokenloom.encoding", b"tokenloom.name"
# And of sound of any length, how many codes it holds.
CODES = b"tokenloom.codes"
# Rows that are decoded at once: the memory of reading does not grow with a shard.
ROWS = 4096
ANEW = "make them anew with encode_dataset.py"


class Index(NamedTuple):
    """Of n items: `lengths` (n, views) int64, how many entries of the codes each view takes, 1 for pictures
    and its frames for sound, and `labels` (n,) int64, -1 for none."""

    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


def shard_path(folder: Path, split: str, shard: int, shards: int) -> Path:
    """`SPLIT-00000-of-00001.parquet`."""
    return folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"


def write_shard(
    folder: Path,
    split: str,
    shard: int,
    shards: int,
    info: TokenInfo,
    codes: Tensor | Sequence[Tensor],
    labels: NDArray[np.int64],
    ids: Sequence[str],
    views: int = 1,
) -> Path:
    """Write n items in `views` views each, whole or not at all.

    codes: (n · views, K, *grid), the views of an item one after the other, the plain one first; or for sound
    of any length (info.grid is ()) as many tensors (K, t_i), which become lists in frame-major order (see
    `clips_column`). labels (n,) and ids are of items.
    """
    width = pa.from_numpy_dtype(info.dtype)
    if info.grid:
        grids = codes if isinstance(codes, Tensor) else torch.stack(list(codes))
        flat = pa.array(grids.reshape(-1).to(torch.int64).numpy()).cast(width)
        column = pa.FixedSizeListArray.from_arrays(flat, info.codes_per_item)
    else:
        column = clips_column(list(codes), width)
    columns = {
        "codes": column,
        "label": pa.array(np.repeat(labels, views)),
        "id": pa.array([name for name in ids for _ in range(views)], pa.string()),
        "view": pa.array(np.tile(np.arange(views, dtype=np.uint16), len(labels))),
    }
    path = shard_path(folder, split, shard, shards)
    marks = {FINGERPRINT: info.fingerprint, ENCODING: info.encoding, NAME: path.name}
    if not info.grid:
        marks[CODES] = str(len(column.values))
    table = pa.table(columns).replace_schema_metadata(marks)
    # Checksums of the pages: a damaged shard must not pass for one of other codes.
    write_atomically(path, lambda p: pq.write_table(table, p, write_page_checksum=True))
    return path


def find_shards(folder: Path, split: str, info: TokenInfo) -> list[Path]:
    """The split's shards in order; `ValueError` if one is missing or two encodings are mixed."""
    found = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    counts = {path.stem.rpartition("-of-")[2] for path in found}
    if len(counts) > 1:
        both = f"{found[0].name} and {found[-1].name}"
        raise ValueError(f"{folder}: shards of two encodings ({both}); delete the folder and {ANEW}")
    count = next(iter(counts), "0")
    shards = info.shards[SPLITS.index(split)] if info.shards else int(count) if count.isdecimal() else 1
    wanted = []
    for i in range(shards):  # which tokens.json says, so it may be any number
        wanted.append(shard_path(folder, split, i, shards))
        if not wanted[-1].exists():
            missing = f"{wanted[-1]}: this shard is missing"
            raise ValueError(f"{missing}; copy the folder again, or delete it and {ANEW}")
    return wanted


def count_codes(path: Path, info: TokenInfo) -> int:
    """How many codes a shard says that it holds; `ValueError` without a footer, as of a file cut short.

    Not asked of the footer's columns: pyarrow aborts the process if one of them is damaged.
    """
    footer = _footer(path)
    if info.grid:
        return int(footer.num_rows) * info.codes_per_item
    said = (footer.metadata or {}).get(CODES, b"")
    if not said:  # of an older release
        return sum(part.codes.size for part in _parts(path, info))
    try:
        return int(said[:20])
    except ValueError as error:
        raise _broken(path, error) from error


def read_shard(
    path: Path, info: TokenInfo, views: int, take: Callable[[NDArray[np.unsignedinteger]], object]
) -> Index:
    """Give `take` the codes of a shard, part after part, (rows, K, *grid), or for sound of any length
    (frames, K), of `info.dtype`.

    Raises `ValueError` that names the file if it is broken, of another tokenizer or encoding than tokens.json
    says, or holds codes, labels or views that cannot be.
    """
    _check_marks(path, info)
    promised = count_codes(path, info)
    sizes, labels, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in _parts(path, info):
        if part.codes.size and int(part.codes.max()) >= info.codebook_size:
            raise ValueError(
                f"{path}: holds codes beyond the codebook's {info.codebook_size} entries; {ANEW}"
            )
        promised -= part.codes.size
        if promised < 0:
            raise ValueError(f"{path}: holds more codes than its footer says; {ANEW}")
        take(part.codes)
        sizes.append(part.sizes)
        labels.append(part.labels)
        numbers.append(part.views)
    if promised:
        raise ValueError(f"{path}: holds fewer codes than its footer says; {ANEW}")
    of = np.concatenate(labels)
    if of.size and (of.min() < -1 or of.max() >= len(info.class_names)):
        raise ValueError(f"{path}: holds labels beyond the {len(info.class_names)} classes; {ANEW}")
    if len(of) % views or not np.array_equal(np.concatenate(numbers), np.arange(len(of)) % views):
        raise ValueError(f"{path}: expected {views} views of every item, one after the other; {ANEW}")
    return Index(np.concatenate(sizes).reshape(-1, views), of[::views])


class _Part(NamedTuple):
    """Some rows of a shard: their codes, how many entries of these each takes, its label and view."""

    codes: NDArray[np.unsignedinteger]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    views: NDArray[np.int64]


def _parts(path: Path, info: TokenInfo) -> Iterator[_Part]:
    done = 0
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            # An older release wrote no views.
            names = [n for n in ("codes", "label", "view") if n in file.schema_arrow.names]
            for batch in file.iter_batches(ROWS, columns=names):
                codes, sizes = _decoded(batch["codes"], info, done)
                labels = _integers(batch, "label")
                views = _integers(batch, "view") if "view" in names else np.zeros(len(labels), np.int64)
                yield _Part(codes, sizes, labels, views)
                done += len(labels)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from error


def _integers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    column = batch[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"column {name} holds {column.type} or nulls, expected integers")
    integers: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return integers


def _decoded(
    column: pa.Array, info: TokenInfo, first: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """A column's codes and the entries of each row, whose number is `first` and on. `ValueError` for others
    than `write_shard` writes."""
    if not info.grid:
        codes, sizes = flat_clips(column, info.num_codebooks, first)
        return codes.astype(info.dtype, copy=False), sizes
    wanted = f"lists of {info.codes_per_item} unsigned integers"
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != info.codes_per_item:
        raise ValueError(f"codes are {column.type}, expected {wanted}")
    flat = column.flatten()
    if not pa.types.is_unsigned_integer(flat.type) or column.null_count or flat.null_count:
        raise ValueError(f"codes are {column.type} or hold nulls, expected {wanted}")
    codes = flat.to_numpy().reshape(-1, info.num_codebooks, *info.grid)
    return codes.astype(info.dtype, copy=False), np.ones(len(codes), np.int64)


def _check_marks(path: Path, info: TokenInfo) -> None:
    """`ValueError` for a shard of another tokenizer or encoding than tokens.json says, or under a name that
    is not its own. Older releases wrote neither marks nor `info.encoding`."""
    marks = _footer(path).metadata or {}
    # They may be any bytes, and any number of them.
    fingerprint, encoding, name = (
        marks.get(m, b"")[:200].decode(errors="replace") for m in (FINGERPRINT, ENCODING, NAME)
    )
    if not (info.encoding or fingerprint):
        return
    if fingerprint != info.fingerprint:
        raise ValueError(
            f"{path}: holds codes of the tokenizer with fingerprint {fingerprint or 'unknown'}, but "
            f"{TOKENS_FILE} is of {info.fingerprint}; delete the folder and {ANEW}"
        )
    if encoding != info.encoding:
        raise ValueError(
            f"{path}: is of the encoding {encoding or 'unknown'}, but {TOKENS_FILE} of "
            f"{info.encoding or 'unknown'}; delete the folder and {ANEW}"
        )
    if name != path.name:
        raise ValueError(f"{path}: was written as {name or 'unknown'}; copy the tokens again, or {ANEW}")


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, memory_map=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: cannot be read as tokens ({error}); it is cut short or damaged: copy it again, or delete "
        f"the folder and {ANEW}"
    )
