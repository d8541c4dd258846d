"""Views of training pictures: mirrored, moved, at random by (seed, epoch, example) alone, or in fixed ones.

Left out: views that change what a picture shows, such as crops and other colours (measured on emoji: worse).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.distributed import keyed_generator


@dataclass(frozen=True)
class Augment:
    """Which views are drawn."""

    flip: bool = False
    """Mirror half of the training pictures (with --views: every second view)."""
    shift: int = 0
    """Move training pictures by up to this many pixels along each axis; what comes in repeats the edge."""

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1024:
            raise ValueError(f"shift is {self.shift}, expected 0 to 1024 pixels")

    def view(
        self, x: Tensor, wanted: NDArray[np.int64], epochs: NDArray[np.int64], count: int, seed: int
    ) -> Tensor:
        """x (b, C, H, W) uint8, the examples `wanted` (b,) of `count` in their `epochs` (b,) → their
        views."""
        if not (self.flip or self.shift):
            return x
        u = torch.empty(len(wanted), 3, dtype=torch.float32)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            u[torch.from_numpy(rows)] = _of_epoch(count, seed, epoch)[torch.from_numpy(wanted[rows])]
        if self.flip:
            x = torch.where((u[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)
        return self._shifted(x, u)

    def fixed_view(self, x: Tensor, which: NDArray[np.int64], view: int, count: int, seed: int) -> Tensor:
        """x (b, C, H, W) uint8, the examples `which` (b,) of `count` → view number `view` of each, a function
        of (seed, view, example) alone.

        View 0 is the picture as it is. With `flip` every odd view is mirrored: a coin would give the picture
        itself once more half of the time. With `shift` all but view 0 are moved as `view` moves them.
        """
        if view == 0:
            return x
        x = x.flip(-1) if self.flip and view % 2 else x
        return self._shifted(x, _of_view(count, seed, view)[torch.from_numpy(which)]) if self.shift else x

    def _shifted(self, x: Tensor, u: Tensor) -> Tensor:
        """x (b, C, H, W) moved as the last two of the uniform numbers u (b, 3) say."""
        return _moved(x, (u[:, 1:3] * (2 * self.shift + 1)).long() - self.shift) if self.shift else x

    def require_views(self, views: int) -> None:
        """`ValueError` if some of so many fixed views of a picture would always be equal."""
        distinct = 2 if self.flip else 1
        if views > distinct and not self.shift:
            raise ValueError(
                f"--views {views}: there are only {distinct} different without a random part; add "
                f"--augment.shift 2 (pixels){'' if self.flip else ' or --augment.flip'}, or give --views "
                f"{distinct}"
            )


NO_VIEWS = Augment()


def _uniform(count: int, seed: int, epoch: int) -> Tensor:
    """Three uniform numbers for every example of an epoch: (count, 3)."""
    return torch.rand((count, 3), generator=keyed_generator(seed, epoch, "augment"), dtype=torch.float32)


# A million pictures have tables of 12 MB, once in every loader process: training keeps no more of them than a
# batch that crosses from one epoch to the next needs. Encoding takes the views of every batch in turn.
_of_epoch = lru_cache(maxsize=2)(_uniform)
_of_view = lru_cache(maxsize=8)(_uniform)


def _moved(x: Tensor, by: Tensor) -> Tensor:
    """x (b, C, H, W) moved by `by` (b, 2) rows and columns, edges repeated."""
    b, _, height, width = x.shape
    rows = (torch.arange(height) - by[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - by[:, 1:]).clamp(0, width - 1)
    moved = x[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return rearrange(moved, "b h w c -> b c h w")
