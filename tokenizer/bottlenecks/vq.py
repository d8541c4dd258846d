"""The VQ-VAE's bottleneck: one codebook learnt by exponential moving averages, kept alive without tuning.

Left out: codebooks learnt by gradient, and several codebooks per position (other files beside this one).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Bottlenecked
from tokenizer.bottlenecks.codebook import EMACodebook, perplexity
from tokenizer.config import require
from tokenizer.distributed import Step
from tokenizer.search import nearest


@dataclass(frozen=True)
class VQConfig(BottleneckConfig, kind="vq"):
    """One codebook with EMA updates, a k-means start and revival of dead entries."""

    codebook_size: int = 512
    """Entries N of the codebook; a code carries log2(N) bits."""
    dim: int = 8
    """Channels that the encoder gives and the decoder takes."""
    codebook_dim: int = 8
    """Dimension of the entries; if it is not `dim`, linear projections lead there and back. 4 to 8 keeps
    usage high (Yu et al. 2021, arXiv 2110.04627, section 3.2)."""
    beta: float = 0.25
    """Weight β of the commitment loss ‖z_e − sg[e]‖²."""
    decay: float = 0.99
    """Decay of the moving averages, per optimizer step."""
    kmeans_steps: int = 10
    """First optimizer steps, which pass z through unquantized and fill the reservoir that k-means then
    starts the codebook from. 0 starts from random entries."""
    revive_below: float = 0.03
    """An entry used less often than this share of uniform use is dead and moves to a vector of the batch.
    0: never."""

    def __post_init__(self) -> None:
        require(
            1 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 1 to 2^24"
        )
        require(1 <= self.dim <= 4096, f"dim is {self.dim}, expected 1 to 4096")
        require(1 <= self.codebook_dim <= 4096, f"codebook_dim is {self.codebook_dim}, expected 1 to 4096")
        require(0 <= self.beta < float("inf"), f"beta is {self.beta}, expected 0 or more")
        require(0 <= self.decay < 1, f"decay is {self.decay}, expected 0 or more and less than 1")
        require(self.kmeans_steps >= 0, f"kmeans_steps is {self.kmeans_steps}, expected 0 or more")
        require(
            0 <= self.revive_below < 1, f"revive_below is {self.revive_below}, expected 0 or more, below 1"
        )

    @property
    def start_steps(self) -> int:
        return self.kmeans_steps

    def starting_within(self, steps: int) -> Self:
        return replace(self, kmeans_steps=min(self.kmeans_steps, max(1, steps)))

    def build(self) -> "VQ":
        return VQ(self)


class VQ(Bottleneck):
    """z_q = e_k, k = argmin_j ‖z_e − e_j‖² (van den Oord et al. 2017, arXiv 1711.00937, equations 1 and
    2)."""

    statistics = frozenset({"codebook.ema_count", "codebook.ema_sum", "codebook.started"})
    not_coding = statistics | {"project_out.weight", "project_out.bias"}

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.in_dim = self.out_dim = config.dim
        self.num_codebooks, self.codebook_size = 1, config.codebook_size
        same = config.dim == config.codebook_dim
        self.project_in = nn.Identity() if same else nn.Linear(config.dim, config.codebook_dim)
        self.project_out = nn.Identity() if same else nn.Linear(config.codebook_dim, config.dim)
        self.codebook = EMACodebook(
            config.codebook_size, config.codebook_dim, config.decay, config.kmeans_steps, config.revive_below
        )

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        with torch.autocast(z.device.type, enabled=False):
            z_e = self._to_rows(z)
            codes = nearest(z_e, self.codebook.entries)
            e = F.embedding(codes, self.codebook.entries).to(z_e.dtype)
            # β pulls z_e to its entry and never the entry to z_e: the moving average does that (section
            # 3.2).
            commitment = F.mse_loss(z_e, e)
            counts = torch.bincount(codes, minlength=self.codebook_size)
            z_q, weight = e, self.config.beta
            if self.training:
                if bool(self.codebook.started):
                    z_q = z_e + (e - z_e).detach()  # straight-through: forward e, backward the identity
                else:
                    z_q, weight = z_e, 0.0  # no codebook yet: encoder and decoder learn without it
                counts = self.codebook.update(z_e.detach(), codes, z.shape[0], step)
            z_q = self._to_grid(_project(self.project_out, z_q), z.shape)
        stats = {
            "commitment": commitment.detach(),
            "perplexity": perplexity(counts.to(z_e.dtype)),
            "usage": (counts > 0).to(z_e.dtype).mean(),
        }
        return Bottlenecked(z_q, self._codes(codes, z.shape), {"commitment": weight * commitment}, stats)

    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self._codes(nearest(self._to_rows(z), self.codebook.entries), z.shape)

    def decode(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            e = F.embedding(codes.flatten(), self.codebook.entries)
            return self._to_grid(_project(self.project_out, e), codes.shape)

    def _to_rows(self, z: Tensor) -> Tensor:
        """z: (B, dim, *grid) → z_e: (B · positions, codebook_dim), at least float32."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return _project(self.project_in, rearrange(z, "b d ... -> (b ...) d"))

    def _to_grid(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """rows: (B · positions, dim) → (B, dim, *grid), B and grid as in `shape` (B, any, *grid)."""
        return rearrange(rows.reshape(shape[0], *shape[2:], -1), "b ... d -> b d ...")

    def _codes(self, codes: Tensor, shape: torch.Size) -> Tensor:
        return codes.reshape(shape[0], 1, *shape[2:])

    @property
    def ready(self) -> bool:
        return bool(self.codebook.started)

    def codebook_vectors(self) -> Tensor | None:
        return self.codebook.entries.detach().cpu()

    def training_state(self) -> dict[str, Tensor]:
        return self.codebook.training_state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.codebook.load_training_state(state)

    def events(self) -> list[str]:
        return self.codebook.events()


def _project(layer: nn.Module, rows: Tensor) -> Tensor:
    """A linear map (or none) in the rows' precision, whatever that of its weights."""
    if not isinstance(layer, nn.Linear):
        return rows
    return F.linear(rows, layer.weight.to(rows.dtype), layer.bias.to(rows.dtype))
