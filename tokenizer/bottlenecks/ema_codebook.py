"""The codebook of moving averages, and the k-means that codebooks start from.

Left out: statistics and revival (`codebook.py`), codebooks learnt by gradient (`learnt_codebooks.py`).
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.bottlenecks.codebook import Codebook
from tokenizer.distributed import Step, broadcast
from tokenizer.search import nearest

KMEANS_ITERATIONS = 10


class EMACodebook(Codebook):
    """Entries (N, D) that follow the mean of the vectors assigned to them (van den Oord et al. 2017, arXiv
    1711.00937, appendix A.1)."""

    sums: ClassVar[bool] = True

    entries: Tensor
    ema_sum: Tensor

    def _make(self) -> None:
        self.register_buffer("entries", self.on_sphere(torch.randn(self.size, self.dim)))
        self.register_buffer("ema_sum", self.entries.clone())

    @property
    def vectors(self) -> Tensor:
        return self.entries

    def _learn(self, total: Tensor, share: float) -> None:
        self.ema_sum.lerp_(total[:, :-1], share)
        # An entry whose count has vanished stays where it is instead of becoming 0 / 0.
        used = self.ema_count > 1e-6
        mean = self.on_sphere(self.ema_sum / self.ema_count.clamp(min=1e-6)[:, None])
        self.entries.copy_(torch.where(used[:, None], mean, self.entries))

    def _begin(self, reservoir: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
        entries, counts = kmeans(reservoir, self.size, generator, self.spherical)
        self.entries.copy_(broadcast(entries))
        return counts, f"k-means placed {self.size} entries among"

    def _start(self, step: Step, rows: float) -> None:
        super()._start(step, rows)
        self.ema_sum.copy_(self.entries * self.ema_count[:, None])

    def _move(self, index: Tensor, dead: Tensor, vectors: Tensor) -> None:
        self.entries[index] = torch.where(dead[:, None], vectors, self.entries[index])
        fresh = vectors * self.ema_count[index][:, None]
        self.ema_sum[index] = torch.where(dead[:, None], fresh, self.ema_sum[index])


@torch.no_grad()
def kmeans(
    x: Tensor, size: int, generator: torch.Generator, spherical: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random rows of x (M, D), M ≥ size → centres (size, D), counts (size,).

    A centre that loses all its rows moves to a random row; ten rounds suffice for a start that training
    refines. `spherical`: x lies on the unit sphere, and so do the centres.
    """
    centres = x[torch.randperm(x.shape[0], generator=generator)[:size].to(x.device)].clone()
    counts = x.new_zeros(size)
    for _ in range(KMEANS_ITERATIONS):
        codes = nearest(x, centres)
        counts = torch.bincount(codes, minlength=size).to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        means = F.normalize(sums) if spherical else sums / counts.clamp(min=1)[:, None]
        random_rows = x[torch.randint(x.shape[0], (size,), generator=generator).to(x.device)]
        centres = torch.where(counts[:, None] > 0, means, random_rows)
    return centres, counts
