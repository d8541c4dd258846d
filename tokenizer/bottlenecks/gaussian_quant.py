"""Gaussian Quant: codes from a VAE's posterior and a codebook of fixed Gaussian draws, which nothing trains.

Left out: which codebook size a trained VAE asks for (`pipelines/quantize_vae.py`), and learnt codebooks
(`vq.py`).
"""

import math
from dataclasses import dataclass, fields

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from tokenizer.bottlenecks import BottleneckConfig, Bottlenecked, Event
from tokenizer.bottlenecks.gaussian import Gaussian, GaussianConfig, Posterior
from tokenizer.bottlenecks.parts.estimators import straight_through
from tokenizer.bottlenecks.parts.health import Health, batch_stats
from tokenizer.distributed import Step, all_reduce_sum, keyed_generator
from tokenizer.search.exact import nearest
from tokenizer.variants import require, training_only

# The weights of TDC move by this factor in an optimizer step, and stay within these bounds.
FACTOR, LEAST, GREATEST = 1.01, 1e-3, 1e3
# The share of groups outside the tolerance that moves no weight: in a large batch some always are.
ALLOWED = 0.01
# The largest variance that the choice of a code sees. Of a channel with more the posterior knows next to
# nothing, yet from 1 on log q − log p would ask for the farthest entry.
LOOSEST = 0.5

ADVICE = "try a smaller codebook_size, a smaller kl_weight, or target_divergence"


@dataclass(frozen=True)
class GaussianQuantConfig(GaussianConfig, kind="gaussian_quant"):
    """A VAE in training, a quantizer with a codebook of N(0, I) draws in eval mode."""

    kl_weight: float = training_only(0.01)
    """Weight of the KL term; with `target_divergence` only the one to begin with."""
    codebook_size: int = 1024
    """Entries N of the codebook, which all groups share. Little is lost where log2 N is above the KL of a
    group in bits."""
    group_dim: int = 2
    """Channels m of a group; each group has one code, so a position has dim / m codes."""
    target_divergence: bool = training_only(True)
    """Whether the KL of every group is pulled to log2 N bits (the paper's target divergence constraint)."""
    tolerance: float = training_only(0.5)
    """Bits by which the KL of a group may miss log2 N before its weight changes."""
    seed: int = 0
    """Decides the codebook, which is saved with the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            2 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 2 to 2^24"
        )
        require(
            self.group_dim >= 1 and self.dim % self.group_dim == 0,
            f"group_dim is {self.group_dim}, expected a divisor of dim, {self.dim}",
        )
        require(0 <= self.tolerance < float("inf"), f"tolerance is {self.tolerance}, expected 0 or more")

    def build(self) -> "GaussianQuant":
        return GaussianQuant(self)


def quantizing(
    vae: BottleneckConfig, codebook_size: int, group_dim: int, seed: int = 0
) -> GaussianQuantConfig:
    """The config that gives codes to a VAE with the bottleneck `vae`, and its objective to training that goes
    on. `TypeError` for a bottleneck that is no VAE's, or has codes already."""
    if not isinstance(vae, GaussianConfig) or isinstance(vae, GaussianQuantConfig):
        raise TypeError(
            f"quantized is for a VAE (bottleneck gaussian); {vae.kind} has codes already: use encode"
        )
    objective = {f.name: getattr(vae, f.name) for f in fields(vae)}
    return GaussianQuantConfig(
        **objective,
        codebook_size=codebook_size,
        group_dim=group_dim,
        target_divergence=False,
        seed=seed,
    )


class GaussianQuant(Gaussian):
    """c_k, k = argmax_j log q(c_j | x) − log p(c_j), for each group of channels, c_j ~ p = N(0, I) (Xu et al.
    2025, arXiv 2512.06609): a VAE (`Gaussian`) in training mode, its codes in eval mode.

    For groups of one channel this is the entry nearest to the posterior's mean up to the prior's term, and
    that is what is taken: what remains, 0.05 dB, is less than the rounding of c² and c costs with many
    entries. For more channels the posterior weighs them by what it knows of each; on a VAE of emoji that is
    0.2 dB (one group of 4 channels) to 1.4 dB (two) better than the nearest entry, and uses more entries.
    """

    not_coding = frozenset({"kl_weights"})
    statistics = not_coding

    codebook: Tensor
    kl_weights: Tensor
    pending: Tensor

    def __init__(self, config: GaussianQuantConfig) -> None:
        super().__init__(config)
        self.config: GaussianQuantConfig = config
        self.num_codebooks, self.codebook_size = config.dim // config.group_dim, config.codebook_size
        self.target = math.log2(config.codebook_size)
        generator = keyed_generator(config.seed, "gaussian_quant")
        draws = torch.empty(config.codebook_size, config.group_dim).normal_(generator=generator)
        self.register_buffer("codebook", draws)
        # Of groups below, within and above the tolerance; the middle one is a factor of all.
        self.register_buffer("kl_weights", torch.ones(3))
        self.make_unsaved()
        self.health = Health(config.codebook_size, ADVICE)

    def make_unsaved(self) -> None:
        """Bits of all groups since the last optimizer step; groups, those below and those above."""
        self.register_buffer("pending", torch.zeros(4), persistent=False)

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        with torch.autocast(z.device.type, enabled=False):
            posterior = self.posterior(z, step)
            codes = self._codes(posterior)
            kl = reduce(posterior.kl_by_channel(), "b (k m) ... -> b k ...", "sum", m=self.config.group_dim)
            weighted = (self._weights(kl) * kl).flatten(1).sum(1).mean()
            stats = {
                "kl": kl.flatten(1).sum(1).mean(),
                "kl_bits_per_code": kl.mean() / math.log(2),
                "posterior_std": (0.5 * posterior.logvar).exp().mean(),
            }
            if self.training:
                latent = self._sample(posterior, step)
                self._adapt(kl, step)
                self.health.count(codes, step)
                stats |= {"kl_factor": self.kl_weights[1].clone(), **self.health.stats()}
            else:
                latent = straight_through(posterior.mean, self.decode(codes))
                stats |= batch_stats(codes, self.codebook_size, kl.dtype)
        losses = {"kl": self.config.kl_weight * self._warmup(step) * weighted}
        return Bottlenecked(latent, codes, losses, {k: v.detach().to(kl.dtype) for k, v in stats.items()})

    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self._codes(self.posterior(z))

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        """The entries of the codes, which are what is decoded later."""
        return self.decode(self.encode(z))

    def decode(self, codes: Tensor) -> Tensor:
        # (B, K, *grid, m)
        entries = F.embedding(codes, self.codebook)
        return rearrange(entries, "b k ... m -> b (k m) ...")

    @torch.no_grad()
    def _codes(self, posterior: Posterior) -> Tensor:
        """The code of each group: (B, K, *grid)."""
        batch, channels, *grid = posterior.mean.shape
        codes = nearest(*self._rows_and_entries(posterior))
        return codes.reshape(batch, channels // self.config.group_dim, *grid)

    def _rows_and_entries(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """What the search compares: a row for each group, (B · K · positions, D), and (N, D)."""
        codebook = self.codebook.to(torch.promote_types(posterior.mean.dtype, self.codebook.dtype))
        mean, logvar = (
            rearrange(v, "b (k m) ... -> b k ... m", m=self.config.group_dim).flatten(0, -2)
            for v in (posterior.mean, posterior.logvar)
        )
        return (mean, codebook) if self.config.group_dim == 1 else _as_distances(mean, logvar, codebook)

    @torch.no_grad()
    def _weights(self, kl: Tensor) -> Tensor:
        """kl: (B, K, *grid) in nats → the weight of each, of the same shape; 1 without TDC (section 3.3)."""
        if not self.config.target_divergence:
            return torch.ones_like(kl)
        bits, weights = kl / math.log(2) - self.target, self.kl_weights.to(kl.dtype)
        outside = torch.where(bits > self.config.tolerance, weights[2], weights.new_ones(()))
        outside = torch.where(bits < -self.config.tolerance, weights[0], outside)
        return weights[1] * outside

    @torch.no_grad()
    def _adapt(self, kl: Tensor, step: Step | None) -> None:
        """Move the weights of TDC by a factor, after the last accumulation pass and by all processes'
        groups."""
        if not self.config.target_divergence:
            return
        bits = kl / math.log(2) - self.target
        below, above = bits < -self.config.tolerance, bits > self.config.tolerance
        counts = [torch.ones_like(bits), below, above]
        self.pending += torch.stack([bits.sum(), *(c.sum() for c in counts)]).to(self.pending.dtype)
        if not (step is None or step.last):
            return
        total, groups, below, above = all_reduce_sum(self.pending.clone())
        self.pending.zero_()
        grow = torch.stack([below <= ALLOWED * groups, total > 0, above > ALLOWED * groups])
        moved = torch.where(grow, self.kl_weights * FACTOR, self.kl_weights / FACTOR)
        self.kl_weights.copy_(moved.clamp(LEAST, GREATEST))
        self.kl_weights[0].clamp_(max=1)
        self.kl_weights[2].clamp_(min=1)

    def codebook_vectors(self) -> Tensor:
        return self.codebook.detach().cpu().expand(self.num_codebooks, -1, -1)

    def compared(self, z: Tensor) -> Tensor:
        return rearrange(self.posterior(z).mean, "b (k m) ... -> k (b ...) m", m=self.config.group_dim)

    def with_entries(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        rows, entries = self._rows_and_entries(self.posterior(z))
        rows = rearrange(rows, "(b k p) d -> k (b p) d", b=len(z), k=self.num_codebooks)
        return rows, entries[rearrange(codes, "b k ... -> k (b ...)")]

    def training_state(self) -> dict[str, Tensor]:
        return self.health.training_state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.health.load_training_state(state)
        self.pending.zero_()

    def events(self) -> list[Event]:
        return self.health.events()


def _as_distances(mean: Tensor, logvar: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Posteriors (M, m) and entries c (N, m) → rows (M, 2m + 1) and entries (N, 2m + 1) of which the nearest
    maximises Σ_d log N(c_d; μ_d, σ_d²) − log N(c_d; 0, 1), the inner product of [½(1 − 1/σ²), μ/σ²] and
    [c², c]."""
    precision = (-logvar).exp().clamp(min=1 / LOOSEST)
    scale = precision.amax(1, keepdim=True)  # only the direction of a row counts
    rows = torch.cat([(1 - precision) / (2 * scale), mean * (precision / scale)], dim=1)
    features = torch.cat([codebook.square(), codebook], dim=1)
    # With one more coordinate all entries get the same length, and the largest inner product is the nearest.
    squares = features.square().sum(1, keepdim=True)
    longest = squares.amax(0)  # (1,); ONNX has no maximum without an axis
    entries = torch.cat([features, (longest - squares).sqrt()], dim=1)
    return longest.sqrt() * F.pad(F.normalize(rows, dim=1), (0, 1)), entries
