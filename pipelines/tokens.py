"""Data sets of tokens: Parquet shards of codes, labels and ids, and tokens.json, which says what the codes
mean.

Left out: making codes (`encode_dataset.py`) and learning from them (`train_prior.py`).
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data import order
from tokenizer.config import config_from_dict, require
from tokenizer.distributed import keyed_generator
from tokenizer.files import read_json, write_atomically

TOKENS_FILE = "tokens.json"
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class TokenInfo:
    """What every code of a data set of tokens means."""

    tokenizer: str
    """Folder or Hub id of the tokenizer, as it was given."""
    fingerprint: str
    """Its fingerprint."""
    codebook_size: int
    num_codebooks: int
    grid: tuple[int, ...]
    """Positions along each axis of the grid."""
    item_shape: tuple[int, ...]
    """(C, *size) of the data that one grid stands for."""
    class_names: tuple[str, ...] = ()
    source: str = ""
    """Name of the data set that was encoded."""

    def __post_init__(self) -> None:
        require(
            1 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 1 to 2^24"
        )
        require(1 <= self.num_codebooks <= 1024, f"num_codebooks is {self.num_codebooks}, expected 1 to 1024")
        require(
            bool(self.grid) and all(n >= 1 for n in self.grid),
            f"grid is {self.grid}, expected 1 or more each",
        )

    @property
    def codes_per_item(self) -> int:
        """K · positions."""
        return self.num_codebooks * int(np.prod(self.grid))


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

    def rows(self, index: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
        """codes (m, K, *grid) int64 and labels (m,) int64 of some items."""
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
    codes: Tensor,
    labels: NDArray[np.int64],
    ids: Sequence[str],
) -> Path:
    """Write codes (n, K, *grid) of one process as `SPLIT-00000-of-00001.parquet`, whole or not at all."""
    width = pa.uint16() if info.codebook_size <= 1 << 16 else pa.uint32()
    flat = pa.array(codes.reshape(-1).to(torch.int64).numpy()).cast(width)
    table = pa.table(
        {
            "codes": pa.FixedSizeListArray.from_arrays(flat, info.codes_per_item),
            "label": pa.array(labels),
            "id": pa.array(list(ids), pa.string()),
        }
    )
    path = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
    write_atomically(path, lambda p: pq.write_table(table, p))
    return path


def write_info(folder: Path, info: TokenInfo) -> None:
    """Write tokens.json, last of all: a folder with it is complete."""
    text = json.dumps(dataclasses.asdict(info), indent=2) + "\n"
    write_atomically(folder / TOKENS_FILE, lambda p: p.write_text(text, encoding="utf-8"))


def read_info(folder: Path) -> TokenInfo:
    """tokens.json of a folder. `ValueError` if it is not there or not whole."""
    if not (folder / TOKENS_FILE).exists():
        raise ValueError(
            f"{folder}: no tokens there ({TOKENS_FILE} is missing); make them with encode_dataset.py"
        )
    return config_from_dict(TokenInfo, read_json(folder / TOKENS_FILE), str(folder / TOKENS_FILE))


def read_tokens(folder: Path, valid_fraction: float = 0.0) -> tuple[TokenInfo, dict[str, TokenSplit]]:
    """All tokens of a folder, checked: `ValueError` names a file that is broken or holds codes out of
    range.

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
            int(torch.randint(1 << 31, (), generator=keyed_generator(c.tobytes().hex()))) for c in train.codes
        ]
        held = np.array(keys) < valid_fraction * (1 << 31)
        splits = {
            "train": TokenSplit(train.codes[~held], train.labels[~held]),
            "held_out": TokenSplit(train.codes[held], train.labels[held]),
        }
    return info, splits


def _read_split(folder: Path, name: str, info: TokenInfo) -> TokenSplit:
    codes, labels = [], []
    for path in _shards(folder, name):
        try:
            table = pq.read_table(path, columns=["codes", "label"], memory_map=True).combine_chunks()
            flat = table["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            part = flat.reshape(-1, info.num_codebooks, *info.grid)
            label = table["label"].to_numpy().astype(np.int64)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: cannot be read as tokens ({error}); make them anew") from error
        if len(part) != len(label) or (part.size and int(part.max()) >= info.codebook_size):
            raise ValueError(
                f"{path}: holds codes beyond the codebook's {info.codebook_size} entries; make them anew"
            )
        if label.size and (label.min() < -1 or label.max() >= len(info.class_names)):
            raise ValueError(
                f"{path}: holds labels beyond the {len(info.class_names)} classes; make them anew"
            )
        codes.append(part)
        labels.append(label)
    if not codes:
        empty = np.zeros((0, info.num_codebooks, *info.grid), np.uint16)
        return TokenSplit(empty, np.zeros(0, np.int64))
    return TokenSplit(np.concatenate(codes), np.concatenate(labels))


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
    split: TokenSplit,
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
            codes, labels = split.rows(index[offset : offset + share])
            yield TokenBatch(codes, labels, step, micro, offset)
