"""Pictures by number, from memory or decoded on access: whole, in views to train on, or as codes.

Left out: where they come from (folders.py, tables.py), a look at all of them (pictures.py), and their order
and batches (batches.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.config import Source
from pipelines.data.kinds import PLAIN, CodeLayout, Encoded, FixedViews, Kind, Skip, to_float
from pipelines.data.scan import Readable
from tokenizer import Tokenizer

Fit: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]
# From the bytes or the path of a picture, and its name.
OpenPicture: TypeAlias = Callable[[bytes | str, str], Image.Image]


class Examples(Readable):
    """A `Split` of pictures by number: `x(i)` (C, H, W) uint8."""

    def __init__(
        self,
        kind: Kind,
        source: Source,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        skipped: Sequence[Skip],
        open_: OpenPicture,
        fit: Fit,
        shape: tuple[int, ...],
        cache: Tensor | None,
    ) -> None:
        """As a `Readable`; `fit` gives what `open_` opens the `shape`. `cache` (N, C, H, W) uint8, if there
        is one, has the pixels of every row of the source."""
        super().__init__(kind, source, rows, digests, skipped)
        self.shape, self._cache, self._fit, self._open = shape, cache, fit, open_

    @property
    def amount(self) -> str:
        """Nothing: pictures are all of one size."""
        return ""

    def x(self, i: int) -> Tensor:
        """Example i, uint8 (C, H, W). Raises `ValueError` or `OSError` that names it if it can no longer be
        read."""
        if self._cache is not None:
            return self._cache[int(self._rows[i])]
        name = self.id(i)
        return torch.from_numpy(fitted(self._fit, self._open(self.raw(i), name), self.shape, name))

    def training(self, augment: Augment = NO_VIEWS) -> "Views":
        """What is trained on: the pictures in views of `augment`."""
        return Views(self, augment)

    def inputs(
        self, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """This rank's share of the pictures in batches: x (b, C, H, W) in [-1, 1], b at most `batch_size`,
        and their numbers (b,). One that can no longer be read is left out, and named in the log."""
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        mine = np.arange(len(self) * rank // world, len(self) * (rank + 1) // world)
        for start in range(0, len(mine), batch_size):
            x, _, index = self.take_readable(mine[start : start + batch_size])
            if len(x):
                yield to_float(x), index.numpy()

    def ranges(self, size: int) -> Iterator[range]:
        """All pictures in ranges of `size`."""
        edges = [0, *range(size, len(self), size), len(self)]
        yield from map(range, edges[:-1], edges[1:])

    def layout(self, tok: Tokenizer) -> CodeLayout:
        """One grid for all, that of pictures of this shape."""
        any_picture = torch.zeros((1, *self.shape), dtype=torch.uint8, device=tok.device)
        return CodeLayout(tuple(tok.encode(to_float(any_picture)).shape[2:]), self.shape)

    def codes(
        self, tok: Tokenizer, which: range, batch_size: int, views: FixedViews = PLAIN
    ) -> Iterator[Encoded]:
        """Codes of batches of pictures, the views of a picture one after the other, the plain one first. One
        that can no longer be read is left out, and named in the log."""
        for start in range(which.start, which.stop, batch_size):
            wanted = np.arange(start, min(start + batch_size, which.stop))
            x, label, index = self.take_readable(wanted)
            if not len(x):
                yield Encoded([], [], [], len(wanted))
                continue
            seen = []
            for view in range(views.number):
                y = views.augment.fixed_view(x, index.numpy(), view, len(self), views.seed)
                seen.append(tok.encode(to_float(y.to(tok.device))).cpu())
            codes = rearrange(seen, "v b ... -> (b v) ...")
            yield Encoded([codes], label.tolist(), [self.id(i) for i in index.tolist()], len(wanted))

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch to train on: examples (b, C, H, W) uint8, their labels (b,) int64 (-1 if none), and their
        numbers (b,) int64.

        The next readable example stands in for one that can no longer be read: its pixels, its label and its
        number. A batch keeps its size so, which steps and processes count on.
        """
        if self._cache is not None:
            return self._batch(self._cache[torch.from_numpy(self._rows[indices])], indices)
        found = [self.next_readable(int(i), self.x) for i in indices]
        return self._stacked(found)

    def take_readable(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """As `take`, but what can no longer be read is left out, and named in the log: for tokens and
        measures, in which no picture may count twice."""
        if self._cache is not None:
            return self.take(indices)
        read = ((self.tried(int(i), self.x), int(i)) for i in indices)
        return self._stacked([(x, i) for x, i in read if x is not None])

    def _stacked(self, found: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.empty((0, *self.shape), dtype=torch.uint8)
        x = torch.stack([x for x, _ in found]) if found else none
        return self._batch(x, np.array([i for _, i in found], dtype=np.int64))

    def _batch(self, x: Tensor, found: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        return x, self.labels_of(found), torch.from_numpy(found)


@dataclass(frozen=True)
class Views:
    """Pictures to train on, in views of `augment`."""

    examples: Examples
    augment: Augment

    def __len__(self) -> int:
        return len(self.examples)

    def take(
        self, wanted: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Examples.take`, in the views of their `epochs` (b,)."""
        x, labels, index = self.examples.take(wanted)
        return self.augment.view(x, wanted, epochs, len(self), seed), labels, index


def fitted(fit: Fit, image: Image.Image, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """The picture as `fit` gives it; `ValueError` if that has another shape than those before it."""
    pixels = fit(image)
    if pixels.shape != shape:
        raise ValueError(
            f"{name}: is {pixels.shape} (C, H, W), the pictures before it are {shape}; "
            "give all of them one size and number of channels"
        )
    return pixels
