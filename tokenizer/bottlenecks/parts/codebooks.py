"""Codebooks learnt by gradient: free entries, and SimVQ's linear map of a fixed random basis.

Left out: the losses that teach them (`vq.py`), and the upkeep that all codebooks share (`codebook.py`).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks.parts.codebook import Codebook
from tokenizer.bottlenecks.parts.health import counts_of
from tokenizer.devices import send
from tokenizer.distributed import Step, broadcast
from tokenizer.search.exact import nearest

# Of the largest squared length of a row of SimVQ's map, what is added to all when it is inverted: more than
# float64 rounds them by, and less than a map in float32 can tell from 0.
RIDGE = 1e-12


class GradientCodebook(Codebook):
    """Entries (N, D) that a loss pulls to their vectors (van den Oord et al. 2017, arXiv 1711.00937, equation
    3); only the chosen ones get a gradient."""

    learnt: ClassVar[bool] = True

    def _make(self) -> None:
        self.entries = nn.Parameter(self.on_sphere(torch.randn(self.size, self.dim)))

    @property
    def vectors(self) -> Tensor:
        # A copy, because revival moves entries before the gradient of this pass is taken.
        return self.on_sphere(self.entries.clone() if self.training else self.entries)

    def _begin(self, reservoir: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
        entries, counts = kmeans(reservoir, self.size, generator, self.spherical)
        self.entries.copy_(broadcast(entries))
        return counts, f"k-means placed {self.size} entries among"

    def _move(self, index: Tensor, dead: Tensor, vectors: Tensor) -> None:
        self.entries[index] = torch.where(dead[:, None], vectors, self.entries[index])


class SimVQCodebook(Codebook):
    """Entries b C + a: a fixed basis b (N, D) under a learnt linear map C, so that a gradient of any entry
    moves them all and none is left behind (Zhu et al. 2024, arXiv 2411.02038, section 4).

    The paper's basis is Gaussian; here k-means makes it of the first vectors, whitened, and the map gives
    their mean and covariance back. Revival moves a dead entry's row of the basis.
    """

    learnt: ClassVar[bool] = True
    # Where vectors come and go, only revival moves a single entry. Measured on emoji, 16,384 entries after
    # 400 steps: 24.1 dB and 88.9 % of entries used with 0.1, 24.2 and 91.2 with 0.2, 24.5 and 92.7 with 0.35.
    least_use: ClassVar[float] = 0.35

    basis: Tensor

    def _make(self) -> None:
        self.register_buffer("basis", torch.randn(self.size, self.dim))
        self.map = nn.Parameter(torch.eye(self.dim))
        self.shift = nn.Parameter(torch.zeros(self.dim))

    @property
    def vectors(self) -> Tensor:
        # A copy, because revival moves rows before the gradient of this pass is taken.
        basis = self.basis.clone() if self.training else self.basis
        return self.on_sphere(basis @ self.map + self.shift)

    def _begin(self, reservoir: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
        mean = reservoir.mean(0)
        covariance = (reservoir - mean).T @ (reservoir - mean) / len(reservoir)
        variances, axes = torch.linalg.eigh(covariance)
        # No direction starts flat: the map must be able to grow, and to be inverted.
        scales = torch.maximum(variances, 1e-6 * variances.amax().clamp(min=1e-12)).sqrt()
        self.map.copy_(broadcast(scales[:, None] * axes.T))
        self.shift.copy_(broadcast(mean))
        entries, counts = kmeans(reservoir, self.size, generator, self.spherical)
        self.basis.copy_(broadcast((entries - mean) @ axes / scales))
        return counts, f"k-means placed a basis of {self.size} entries among"

    def _move(self, index: Tensor, dead: Tensor, vectors: Tensor) -> None:
        rows = broadcast(self._unmapped(vectors))  # solved alike nowhere but on equal processors
        self.basis[index] = torch.where(dead[:, None], rows, self.basis[index])

    def _unmapped(self, vectors: Tensor) -> Tensor:
        """Rows of the basis (P, D) whose entries are the vectors (P, D), or as near as a map that has lost a
        direction gets. By the normal equations in float64, which unlike a pseudoinverse take no decisions
        that a GPU would have to be waited for."""
        table, wanted = self.map.double(), (vectors - self.shift).double()
        gram = table @ table.T
        gram.diagonal().add_(RIDGE * gram.diagonal().amax().clamp(min=1e-30))
        factor, _ = torch.linalg.cholesky_ex(gram)
        return torch.cholesky_solve(table @ wanted.T, factor).T.to(vectors.dtype)


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

    def _start(self, step: Step, rows: float) -> str:
        done = super()._start(step, rows)
        self.ema_sum.copy_(self.entries * self.ema_count[:, None])
        return done

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
    centres = x[send(torch.randperm(x.shape[0], generator=generator)[:size], x.device)].clone()
    counts = x.new_zeros(size)
    for _ in range(KMEANS_ITERATIONS):
        codes = nearest(x, centres)
        counts = counts_of(codes, size).to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        means = F.normalize(sums) if spherical else sums / counts.clamp(min=1)[:, None]
        random_rows = x[send(torch.randint(x.shape[0], (size,), generator=generator), x.device)]
        centres = torch.where(counts[:, None] > 0, means, random_rows)
    return centres, counts
