"""Small priors of every pattern for tests of sampling step by step.

Left out: tests.
"""

import dataclasses
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from prior import Prior, PriorConfig
from prior.sampling.cpu.decoder import CompiledDecoder
from prior.sampling.decoder import Decoder
from prior.sampling.weights import PreparedWeights

CONFIG = PriorConfig(codebook_size=40, grid=(4, 4), class_names=("a", "b"), dim=64, depth=3, heads=4)
VARIANTS = [
    CONFIG,
    dataclasses.replace(CONFIG, qk_norm=False, target_embedding=False, rotary="sequence"),
    dataclasses.replace(CONFIG, num_codebooks=3, grid=(6,), pattern="delay"),
]
DEPTH = dataclasses.replace(CONFIG, num_codebooks=3, grid=(6,), pattern="depth", inner_dim=48)


def random_prior(config: PriorConfig = CONFIG, scale: float = 0.1) -> Prior:
    generator = torch.Generator().manual_seed(0)
    prior = Prior(config).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return prior


def codes_of(config: PriorConfig, batch: int) -> Tensor:
    shape = (batch, config.num_codebooks, *config.grid)
    return torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def both_logits(
    prior: Prior, weights: Any, batch: int, first: int, kind: type[Decoder] | type[CompiledDecoder] = Decoder
) -> tuple[Tensor, Tensor]:
    """Logits (n, B, N) of the codes from step `first` - 1 on, by a decoder and by whole passes."""
    codes = codes_of(prior.config, batch)
    sequence, classes = prior.pattern.to_sequence(codes), torch.zeros(batch, dtype=torch.int64)
    x = prior.inputs(sequence[:, :-1], classes)
    hidden = prior.by_codebook(prior.hidden(x), codes)
    all_logits = rearrange(hidden @ prior.head.mT, "k (b p) n -> k p b n", b=batch)
    prepared = PreparedWeights(prior, weights, compiled=kind is CompiledDecoder)
    ours, whole = [], []
    with kind(prior, prepared, batch, x.shape[1]) as decoder:
        for part in [x[:, :first], *x[:, first:].split(1, dim=1)]:
            hidden, step = decoder.advance(part), decoder.length - 1
            for q, (book, position) in enumerate(prior.pattern.layout()[step]):
                if position >= 0:
                    ours.append(decoder.logits(hidden, book, sequence[:, step, :q]).clone())
                    whole.append(all_logits[book, position])
    return torch.stack(ours), torch.stack(whole)
