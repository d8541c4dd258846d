"""Data sets of tokens: the items of a folder by number, in their views, and batches of them.

Left out: what the codes mean (tokens.json, `info.py`), their files (`shards.py`,
`table.py`), items of sound of any length (`clips.py`), making codes (`encode_dataset.py`) and
learning from them (`train_prior.py`).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.batches import Batch, Plan
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import SPLITS, TokenInfo, read_info
from pipelines.tokens.table import load_table
from tokenizer.distributed import keyed_generator


class TokenRows(Protocol):
    """What training and evaluation of a prior ask of a split: grids of one shape, by number.

    `rows` takes the numbers (m,) and the epoch of each, which views and windows of sound depend on, and gives
    codes (m, K, *grid) int64 and labels (m,) int64. Without epochs items are as they are, for measuring.
    """

    @property
    def unit(self) -> str:
        """What many of them are called."""
        ...

    def __len__(self) -> int: ...

    def first(self, count: int) -> Self: ...

    def rows(
        self, index: NDArray[np.int64] | slice, epochs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class TokenSplit:
    """n items as grids of one shape.

    `codes` (rows, K, *grid) unsigned, perhaps mapped from a file, hold `views` rows of each item that is
    stored, the plain one first; `labels` (n,) int64, -1 for none; `items` (n,) int64: which of those stored
    are in this split, None for all. `seed` decides which view an epoch shows.
    """

    codes: NDArray[np.unsignedinteger]
    labels: NDArray[np.int64]
    views: int = 1
    items: NDArray[np.int64] | None = None
    seed: int = 0

    @property
    def unit(self) -> str:
        return "items"

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "TokenSplit":
        """The first `count` items."""
        return dataclasses.replace(self, labels=self.labels[:count], items=self._stored(slice(count)))

    def content(self, i: int) -> bytes:
        """The plain view of item i as bytes."""
        return bytes(self.codes[self._stored(slice(i, i + 1))[0] * self.views].tobytes())

    def pick(self, mask: NDArray[np.bool_]) -> "TokenSplit":
        """The items for which `mask` (n,) holds."""
        items = self._stored(np.flatnonzero(mask))
        return dataclasses.replace(self, labels=self.labels[mask], items=items)

    def rows(
        self, index: NDArray[np.int64] | slice, epochs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]:
        """codes (m, K, *grid) int64 and labels (m,) int64 of some items, in the views of their `epochs` (m,)
        (see `view_phases`). Left out: as they are."""
        stored = self._stored(index)
        rows = stored * self.views
        if epochs is not None and self.views > 1:
            phases = view_phases(len(self.codes) // self.views, self.views, self.seed)
            rows += (phases[stored] + epochs) % self.views
        return torch.from_numpy(self.codes[rows].astype(np.int64)), torch.from_numpy(self.labels[index])

    def _stored(self, index: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Which of the items that are stored."""
        if self.items is not None:
            return self.items[index]
        return np.arange(*index.indices(len(self))) if isinstance(index, slice) else index


@dataclass(frozen=True)
class TokenItems:
    """Tokens as items to train on, in the views and windows of their epochs."""

    split: TokenRows

    def __len__(self) -> int:
        return len(self.split)

    def take(
        self, wanted: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.split.rows(wanted, epochs), torch.from_numpy(wanted)


@lru_cache(maxsize=2)
def view_phases(count: int, views: int, seed: int) -> NDArray[np.int64]:
    """The view in which each of `count` items is shown in epoch 0; in epoch e it is shown in the e-th after
    that, and after the last comes the plain one. So an epoch is every item once, `views` epochs show every
    view once, and each epoch has all views mixed. A function of (seed, item) alone: (count,)."""
    return torch.randint(views, (count,), generator=keyed_generator(seed, "views")).numpy()


def read_tokens(
    folder: Path, valid_fraction: float = 0.0
) -> tuple[TokenInfo, dict[str, TokenSplit | CodeClips]]:
    """All tokens of a folder, checked: `ValueError` names a file that is missing, broken, of another
    encoding or holds codes out of range. Items of sound of any length come as `CodeClips`.

    Without held-out items the share `valid_fraction` of the others is held out, chosen by a hash of their
    codes; never all of them: the item of the largest hash stays.
    """
    info = read_info(folder)
    splits = {name: _read_split(folder, name, info) for name in SPLITS}
    if not len(splits["train"]):
        raise ValueError(f"{folder}: no training tokens; make them anew with encode_dataset.py")
    if not len(splits["held_out"]) and valid_fraction > 0:
        train = splits["train"]
        keys = np.array(
            [
                int(torch.randint(1 << 31, (), generator=keyed_generator(train.content(i).hex())))
                for i in range(len(train))
            ]
        )
        held = keys < valid_fraction * (1 << 31)
        if held.all():
            held = keys < keys.max()
        splits = {"train": train.pick(~held), "held_out": train.pick(held)}
    return info, splits


def _read_split(folder: Path, name: str, info: TokenInfo) -> TokenSplit | CodeClips:
    codes, lengths, labels = load_table(folder, name, info)
    if info.grid:
        return TokenSplit(codes, labels, views=lengths.shape[1])
    return CodeClips.joined(codes, lengths, labels)


def token_batches(
    split: TokenRows,
    *,
    batch_size: int,
    micro_batches: int,
    rank: int,
    world: int,
    seed: int,
    start_step: int,
    stop_step: int,
) -> Iterator[Batch]:
    """Batches of codes in the order and the shares of `data.batches.batches`, made by this process itself."""
    plan = Plan(TokenItems(split), batch_size, micro_batches, rank, world, seed)
    return (plan[step, micro] for step in range(start_step, stop_step) for micro in range(micro_batches))
