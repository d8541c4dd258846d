"""The VQ-VAE's bottleneck: one codebook, learnt by moving averages or by gradient, kept alive without tuning.

Left out: the codebooks themselves (`parts/codebooks.py`), and several codebooks per position (`rvq.py`,
`grouped.py`).
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.bottlenecks import BottleneckConfig, Bottlenecked, Event
from tokenizer.bottlenecks.parts.codebook import Codebook
from tokenizer.bottlenecks.parts.codebooks import EMACodebook, GradientCodebook, SimVQCodebook
from tokenizer.bottlenecks.parts.estimators import ESTIMATORS, needs_gradient
from tokenizer.bottlenecks.parts.health import batch_stats
from tokenizer.bottlenecks.parts.projected import Projected
from tokenizer.checks import require_finite
from tokenizer.distributed import Step
from tokenizer.search.exact import nearest
from tokenizer.variants import require, training_only

CODEBOOKS: dict[str, type[Codebook]] = {
    "ema": EMACodebook,
    "gradient": GradientCodebook,
    "simvq": SimVQCodebook,
}


@dataclass(frozen=True)
class VQConfig(BottleneckConfig, kind="vq"):
    """One codebook with a start by k-means and revival of dead entries."""

    codebook_size: int = 512
    """Entries N of the codebook; a code carries log2(N) bits."""
    dim: int = 8
    """Channels that the encoder gives and the decoder takes."""
    codebook_dim: int = 8
    """Dimension of the entries; if it is not `dim`, linear projections lead there and back. 4 to 8 keeps
    usage high (Yu et al. 2021, arXiv 2110.04627, section 3.2)."""
    update: Literal["ema", "gradient", "simvq"] = "ema"
    """How the codebook learns: ema, the moving average of its vectors; gradient, by a loss; simvq, a learnt
    linear map of a fixed basis (arXiv 2411.02038), which keeps very large codebooks in use."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Nearest by distance, or by direction: then z_e and entries have length 1 (Yu et al. 2021, arXiv
    2110.04627, section 3.2)."""
    gradient: Literal["straight_through", "rotation"] = training_only("straight_through")
    """What the encoder gets of the decoder's gradient: that itself, or turned as z_e was to its entry (arXiv
    2410.06424)."""
    beta: float = training_only(0.25)
    """Weight β of the commitment loss ‖z_e − sg[e]‖²."""
    decay: float | None = training_only(None)
    """Decay of the moving averages, per optimizer step; those of gradient and simvq only count. None: by how
    many vectors an entry gets in a step, so that they reach back over about 64; 0.9 to 0.99."""
    kmeans_steps: int = training_only(10)
    """First optimizer steps, which pass z through unquantized and fill the reservoir that the codebook then
    starts from, by k-means. 0 starts from random entries."""
    revive_below: float | None = training_only(None)
    """An entry used less often than this share of uniform use is dead and moves to a vector of the batch.
    0: never. None: 0.1, and 0.35 for simvq, whose map moves no entry on its own."""

    def __post_init__(self) -> None:
        require(
            1 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 1 to 2^24"
        )
        require(1 <= self.dim <= 4096, f"dim is {self.dim}, expected 1 to 4096")
        require(
            1 <= self.codebook_dim <= self.dim,
            f"codebook_dim is {self.codebook_dim}, expected 1 to dim, {self.dim}: a projection adds "
            "nothing to what the encoder gives",
        )
        require(0 <= self.beta < float("inf"), f"beta is {self.beta}, expected 0 or more")
        require(
            self.decay is None or 0 <= self.decay < 1,
            f"decay is {self.decay}, expected 0 or more and less than 1, or none",
        )
        require(self.kmeans_steps >= 0, f"kmeans_steps is {self.kmeans_steps}, expected 0 or more")
        require(
            self.revive_below is None or 0 <= self.revive_below < 1,
            f"revive_below is {self.revive_below}, expected 0 or more, below 1, or none",
        )

    @property
    def start_steps(self) -> int:
        return self.kmeans_steps

    def starting_within(self, steps: int) -> Self:
        return replace(self, kmeans_steps=min(self.kmeans_steps, max(1, steps)))

    def build(self) -> "VQ":
        return VQ(self)


class VQ(Projected):
    """z_q = e_k, k = argmin_j ‖z_e − e_j‖² (van den Oord et al. 2017, arXiv 1711.00937, equations 1 and
    2)."""

    statistics = frozenset({"codebook.ema_count", "codebook.ema_sum", "codebook.started"})
    not_coding = statistics | Projected.not_coding

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config.dim, config.codebook_dim, config.codebook_size)
        self.config = config
        same = config.dim == config.codebook_dim
        self.identity_gradient = (
            same and config.distance == "euclidean" and config.gradient == "straight_through"
        )
        self.codebook = CODEBOOKS[config.update](
            config.codebook_size,
            config.codebook_dim,
            config.decay,
            config.kmeans_steps,
            config.revive_below,
            spherical=config.distance == "cosine",
        )
        self.estimate = ESTIMATORS[config.gradient]

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        with torch.autocast(z.device.type, enabled=False):
            z_e, vectors = self.to_rows(z), self.codebook.vectors
            try:
                codes = nearest(z_e, vectors)
            except ValueError:
                require_finite(z, "z_e", step)  # knows the step
                raise
            e = F.embedding(codes, vectors).to(z_e.dtype)
            # β pulls z_e to its entry and never the entry to z_e (section 3.2): that is for the moving
            # average, or for the codebook loss (equation 3).
            commitment = F.mse_loss(z_e, e.detach())
            z_q, weight = e, 1.0
            if self.training and not self.codebook.has_started:
                z_q, weight = z_e, 0.0  # no codebook yet: encoder and decoder learn without it
            elif self.training or needs_gradient(z_e):
                z_q = self.estimate(z_e, e.detach())
            if self.training:
                self.codebook.update(z_e.detach(), codes, z.shape[0], step)
                stats = self.codebook.health.stats()
            else:
                stats = batch_stats(codes, self.codebook_size, z_e.dtype)
            z_q = self.to_grid(z_q, z.shape)
        losses = {"commitment": weight * self.config.beta * commitment}
        if self.codebook.learnt:
            losses["codebook"] = weight * F.mse_loss(e, z_e.detach())
        stats = {"commitment": commitment.detach(), **{k: v.to(z_e.dtype) for k, v in stats.items()}}
        return Bottlenecked(z_q, self.codes_on_grid(codes, z.shape), losses, stats)

    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.codes_on_grid(nearest(self.to_rows(z), self.codebook.vectors), z.shape)

    def decode(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            e = F.embedding(codes.flatten(), self.codebook.vectors)
            return self.to_grid(e, codes.shape)

    def compared(self, z: Tensor) -> Tensor:
        return self.to_rows(z)[None]

    def to_rows(self, z: Tensor) -> Tensor:
        return self.codebook.on_sphere(super().to_rows(z))

    @property
    def ready(self) -> bool:
        return self.codebook.has_started

    def codebook_vectors(self) -> Tensor:
        return self.codebook.vectors.detach().cpu()

    def training_state(self) -> dict[str, Tensor]:
        return self.codebook.training_state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.codebook.load_training_state(state)

    def events(self) -> list[Event]:
        return self.codebook.events()
