"""Data sets of tokens: Parquet shards of codes, labels and ids, read whole, and batches of them.

Left out: what the codes mean (tokens.json, `token_info.py`), items of sound of any length (`token_clips.py`),
making codes (`encode_dataset.py`) and learning from them (`train_prior.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data import order
from pipelines.token_clips import CodeClips, clips_column, read_clips
from pipelines.token_info import TOKENS_FILE, TokenInfo, read_info, write_info
from tokenizer.distributed import keyed_generator
from tokenizer.files import write_atomically

SPLITS = ("train", "held_out")

__all__ = [
    "TOKENS_FILE",
    "Rows",
    "TokenBatch",
    "TokenInfo",
    "TokenSplit",
    "read_info",
    "read_tokens",
    "token_batches",
    "write_info",
    "write_shard",
]


class Rows(Protocol):
    """What training and evaluation of a prior ask of a split: grids of one shape, by number.

    `rows` takes the numbers (m,) and the epoch of each, which only windows of sound heed, and gives codes
    (m, K, *grid) int64 and labels (m,) int64.
    """

    def __len__(self) -> int: ...

    def first(self, count: int) -> Self: ...

    def rows(
        self, index: NDArray[np.int64] | slice, epochs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class TokenSplit:
    """codes (n, K, *grid) unsigned, labels (n,) int64 with -1 for none."""

    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def first(self, count: int) -> "TokenSplit":
        """The first `count` items."""
        return TokenSplit(self.codes[:count], self.labels[:count])

    def content(self, i: int) -> bytes:
        """The codes of item i as bytes."""
        return self.codes[i].tobytes()

    def pick(self, mask: NDArray[np.bool_]) -> "TokenSplit":
        """The items for which `mask` (n,) holds."""
        return TokenSplit(self.codes[mask], self.labels[mask])

    def rows(
        self, index: NDArray[np.int64] | slice, epochs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]:
        """codes (m, K, *grid) int64 and labels (m,) int64 of some items, in every epoch the same."""
        return torch.from_numpy(self.codes[index].astype(np.int64)), torch.from_numpy(self.labels[index])


class TokenBatch(NamedTuple):
    """This process's rows of one accumulation step; `offset` is its first row in the global batch."""

    codes: Tensor
    labels: Tensor
    step: int
    micro: int
    offset: int


def write_shard(
    folder: Path,
    split: str,
    shard: int,
    shards: int,
    info: TokenInfo,
    codes: Tensor | Sequence[Tensor],
    labels: NDArray[np.int64],
    ids: Sequence[str],
) -> Path:
    """Write codes of one process as `SPLIT-00000-of-00001.parquet`, whole or not at all.

    codes: (n, K, *grid), or for sound of any length (info.grid is ()) n tensors (K, t_i), which become lists
    in frame-major order (see `clips_column`).
    """
    width = pa.uint16() if info.codebook_size <= 1 << 16 else pa.uint32()
    if info.grid:
        codes = codes if isinstance(codes, Tensor) else torch.stack(list(codes))
        flat = pa.array(codes.reshape(-1).to(torch.int64).numpy()).cast(width)
        column = pa.FixedSizeListArray.from_arrays(flat, info.codes_per_item)
    else:
        column = clips_column(codes, width)
    names = pa.array(list(ids), pa.string())
    table = pa.table({"codes": column, "label": pa.array(labels), "id": names})
    path = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
    write_atomically(path, lambda p: pq.write_table(table, p))
    return path


def read_tokens(
    folder: Path, valid_fraction: float = 0.0
) -> tuple[TokenInfo, dict[str, TokenSplit] | dict[str, CodeClips]]:
    """All tokens of a folder, checked: `ValueError` names a file that is broken or holds codes out of
    range. Items of sound of any length come as `CodeClips`.

    Without a held-out file the share `valid_fraction` of the items is held out, chosen by a hash of their
    codes.
    """
    info = read_info(folder)
    splits = {name: _read_split(folder, name, info) for name in SPLITS}
    if not len(splits["train"]):
        raise ValueError(f"{folder}: no training tokens; make them anew with encode_dataset.py")
    if not len(splits["held_out"]) and valid_fraction > 0:
        train = splits["train"]
        keys = [
            int(torch.randint(1 << 31, (), generator=keyed_generator(train.content(i).hex())))
            for i in range(len(train))
        ]
        held = np.array(keys) < valid_fraction * (1 << 31)
        splits = {"train": train.pick(~held), "held_out": train.pick(held)}
    return info, splits


def _read_split(folder: Path, name: str, info: TokenInfo) -> TokenSplit | CodeClips:
    parts = [_read_shard(path, info) for path in _shards(folder, name)]
    if not info.grid:
        return CodeClips.join(parts, info.num_codebooks)
    if not parts:
        empty = np.zeros((0, info.num_codebooks, *info.grid), np.uint16)
        return TokenSplit(empty, np.zeros(0, np.int64))
    return TokenSplit(np.concatenate([p.codes for p in parts]), np.concatenate([p.labels for p in parts]))


def _read_shard(path: Path, info: TokenInfo) -> TokenSplit | CodeClips:
    part: TokenSplit | CodeClips
    try:
        table = pq.read_table(path, columns=["codes", "label"], memory_map=True).combine_chunks()
        column = table["codes"].combine_chunks()
        labels = table["label"].to_numpy().astype(np.int64)
        if info.grid:
            flat = column.flatten().to_numpy(zero_copy_only=False)
            part = TokenSplit(flat.reshape(-1, info.num_codebooks, *info.grid), labels)
        else:
            part = read_clips(column, labels, info.num_codebooks)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as tokens ({error}); make them anew") from error
    if len(part) != len(labels) or (part.codes.size and int(part.codes.max()) >= info.codebook_size):
        raise ValueError(
            f"{path}: holds codes beyond the codebook's {info.codebook_size} entries; make them anew"
        )
    if labels.size and (labels.min() < -1 or labels.max() >= len(info.class_names)):
        raise ValueError(f"{path}: holds labels beyond the {len(info.class_names)} classes; make them anew")
    return part


def _shards(folder: Path, name: str) -> list[Path]:
    """The split's shards in order; `ValueError` if one is missing or two encodings are mixed."""
    found = sorted(folder.glob(f"{name}-*-of-*.parquet"))
    counts = {path.stem.rpartition("-of-")[2] for path in found}
    if len(counts) > 1:
        both = f"{found[0].name} and {found[-1].name}"
        raise ValueError(f"{folder}: shards of two encodings ({both}); delete the folder and make them anew")
    wanted = [folder / f"{name}-{i:05d}-of-{total}.parquet" for total in counts for i in range(int(total))]
    for path in wanted:
        if not path.exists():
            raise ValueError(f"{path}: this shard is missing; make the tokens anew with encode_dataset.py")
    return wanted


def token_batches(
    split: Rows,
    *,
    batch_size: int,
    micro_batches: int,
    rank: int,
    world: int,
    seed: int,
    start_step: int,
    stop_step: int,
) -> Iterator[TokenBatch]:
    """Batches in the endless order of `pipelines.data.order`; see `pipelines.data.batches` for who gets
    which rows."""
    per_micro, share = batch_size // micro_batches, batch_size // micro_batches // world
    for step in range(start_step, stop_step):
        index = order(len(split), seed, step * batch_size, batch_size)
        for micro in range(micro_batches):
            offset = micro * per_micro + rank * share
            epochs = (step * batch_size + offset + np.arange(share)) // len(split)
            codes, labels = split.rows(index[offset : offset + share], epochs)
            yield TokenBatch(codes, labels, step, micro, offset)
