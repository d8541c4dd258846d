"""Small priors with random weights, random codes, and logits step by step, for tests of priors.

Left out: tests.
"""

import dataclasses

import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.patterns import PATTERNS

PICTURE = PriorConfig(
    codebook_size=5,
    grid=(3, 4),
    class_names=("cat", "dog", "owl"),
    dim=16,
    depth=2,
    heads=2,
    ffn=2.0,
    dropout=0.5,
)
SOUND = dataclasses.replace(PICTURE, num_codebooks=2, grid=(6,), rope_theta=10000.0)
# Of several codebooks, in every pattern.
ALL = [
    dataclasses.replace(config, num_codebooks=3, pattern=pattern)
    for config in (PICTURE, SOUND)
    for pattern in sorted(PATTERNS)
]


def random_prior(config: PriorConfig, seed: int = 0, scale: float = 0.3) -> Prior:
    """A float64 prior in training mode with random weights everywhere, the zero-initialised ones included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = Prior(config).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return prior


def random_codes(config: PriorConfig, batch: int = 3, seed: int = 0) -> Tensor:
    shape = (batch, config.num_codebooks, *config.grid)
    return torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


def step_logits(prior: Prior, codes: Tensor, label: Tensor) -> Tensor:
    """Logits (B, K, P, N) of a full pass without a cache, from the parts of the model."""
    rows = torch.where(label < 0, len(prior.config.class_names), label)
    sequence = prior.pattern.to_sequence(codes)
    start = prior.class_embedding(rows)[:, None]
    hidden = prior.hidden(torch.cat([start, prior.embed(sequence[:, :-1], 0)], dim=1))
    if prior.inner is None:
        return torch.einsum("bkpd,knd->bkpn", hidden[:, prior.pattern.step], prior.head).detach()
    flat = codes.flatten(2)
    found = [prior.inner(hidden[:, p], flat[:, :, p]) for p in range(flat.shape[2])]
    return torch.einsum("bpkd,knd->bkpn", torch.stack(found, dim=1), prior.head).detach()
