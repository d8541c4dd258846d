"""The VAE's bottleneck: a diagonal Gaussian posterior, its reparameterised sample and its KL divergence.

Left out: learnt priors over z; new data are decoded from z ~ N(0, I).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Bottlenecked
from tokenizer.checks import generator_of, require_finite
from tokenizer.distributed import Step
from tokenizer.variants import require, training_only


@dataclass(frozen=True)
class GaussianConfig(BottleneckConfig, kind="gaussian"):
    """A diagonal Gaussian posterior over `dim` channels per grid position."""

    dim: int = 4
    """Channels of z at every position of the grid."""
    kl_weight: float = training_only(1.0)
    """Weight of the KL term. With the loss `bernoulli` 1.0 is the ELBO itself; with `l2` it is 2σ² of the
    Gaussian likelihood that the squared error stands for."""
    kl_warmup_steps: int = training_only(0)
    """Optimizer steps over which the KL weight grows linearly from 0 to `kl_weight` (against posterior
    collapse)."""

    def __post_init__(self) -> None:
        require(1 <= self.dim <= 4096, f"dim is {self.dim}, expected 1 to 4096")
        require(0 <= self.kl_weight < float("inf"), f"kl_weight is {self.kl_weight}, expected 0 or more")
        require(self.kl_warmup_steps >= 0, f"kl_warmup_steps is {self.kl_warmup_steps}, expected 0 or more")

    def build(self) -> "Gaussian":
        return Gaussian(self)


@dataclass(frozen=True)
class Posterior:
    """q(z | x) = N(mean, exp(logvar)), both (B, dim, *grid)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | int | None = None) -> Tensor:
        """z = μ + σ ε, ε ~ N(0, I): (B, dim, *grid), differentiable in mean and logvar. `generator`: itself,
        its seed, or None for torch's own."""
        generator = generator_of(generator)
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=device)
        return self.reparameterise(noise.to(self.mean.device))

    def mode(self) -> Tensor:
        """The most likely z, which is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q(z | x) ‖ N(0, I)) in nats per example: (B,)."""
        return self.kl_by_channel().flatten(1).sum(1)

    def kl_by_channel(self) -> Tensor:
        """Its terms (B, dim, *grid), one for each number of z. Kingma & Welling 2013, appendix B."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

    def reparameterise(self, noise: Tensor) -> Tensor:
        return self.mean + (0.5 * self.logvar).exp() * noise


class Gaussian(Bottleneck):
    """E(x) → μ, log σ²; z = μ + σ ε in training, z = μ in eval mode (Kingma & Welling 2013, arXiv
    1312.6114)."""

    summed_losses: ClassVar[frozenset[str]] = frozenset({"kl"})

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.config = config
        self.in_dim, self.out_dim = 2 * config.dim, config.dim

    def posterior(self, z: Tensor, step: Step | None = None) -> Posterior:
        """z: (B, 2 · dim, *grid) from the encoder → Posterior, in at least float32. `NotFinite` for NaN and
        infinity."""
        require_finite(z, "z_e", step)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        mean, logvar = z.chunk(2, dim=1)
        # σ² from e^-30 to e^20: no useful variance is outside of that, and the KL, which holds σ² itself,
        # stays small enough to be added up in float32.
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        with torch.autocast(z.device.type, enabled=False):
            posterior = self.posterior(z, step)
            latent = self._sample(posterior, step) if self.training else posterior.mode()
            kl = posterior.kl().mean()
            std = (0.5 * posterior.logvar).exp().mean()
        losses = {"kl": self.config.kl_weight * self._warmup(step) * kl}
        return Bottlenecked(latent, None, losses, {"kl": kl.detach(), "posterior_std": std.detach()})

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        """A sample of the posterior, as in training."""
        with torch.autocast(z.device.type, enabled=False):
            return self._sample(self.posterior(z, step), step)

    def _sample(self, posterior: Posterior, step: Step | None) -> Tensor:
        if step is None:
            return posterior.sample()
        return posterior.reparameterise(step.normal(posterior.mean, "epsilon"))

    def _warmup(self, step: Step | None) -> float:
        if step is None or self.config.kl_warmup_steps == 0:
            return 1.0
        return min(1.0, (step.index + 1) / self.config.kl_warmup_steps)
