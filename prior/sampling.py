"""Choosing a code from logits: temperature, top-k, top-p, and drawing by inverting the cumulative sum.

Left out: the loop over steps, the cache and guidance, which are the model's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# One for all examples, one for each (whose samples then do not depend on the others), or torch's own.
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_options(
    codebook_size: int, temperature: float, top_k: int | None, top_p: float | None, cfg_scale: float
) -> None:
    """Raise `ValueError` for an option of sampling that is out of its range."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: expected 0 (the most likely code) or more, got {temperature}")
    if top_k is not None and not 1 <= top_k <= codebook_size:
        raise ValueError(f"top_k: expected 1 to {codebook_size} (the codebook's size) or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a share in (0, 1] or None, got {top_p}")
    if not 0 <= cfg_scale < math.inf:
        raise ValueError(f"cfg_scale: expected 0 or more (1: no guidance), got {cfg_scale}")


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (B, N) → probabilities (B, N) float64 of the filtered distribution.

    The temperature comes first (0 puts all mass on the most likely code), then the `top_k` most likely codes
    are kept, then the smallest set of these whose share is at least `top_p` (nucleus, arXiv 1904.09751). Of
    equally likely codes the lower ones are kept.
    """
    logits = logits.double()
    if temperature == 0:
        temperature, top_k = 1.0, 1
    # With the maximum at 0 no temperature, however small, can overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is None and top_p is None:
        return logits.softmax(dim=-1)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -math.inf
    ordered = ordered.softmax(dim=-1)
    if top_p is not None:
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.where(before < top_p, 0)
    ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """codes (B,) int64, at which the cumulative sum of `probs` (B, N) float64 first exceeds `uniform` (B,) in
    [0, 1). A code of probability 0 is never drawn."""
    cumulative = probs.cumsum(dim=-1)
    # Scaled by the last value, which rounding may leave a little off 1.
    level = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0]


def uniform_table(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) for B examples, `shape` (B, ...) float64, drawn where the generator lives.

    Raises `ValueError` unless a list of generators holds B of them.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"generator: expected one for all or {shape[0]} of them, got {len(generator)}")
        rows = [uniform_table(shape[1:], g, device) for g in generator]
        return torch.stack(rows)
    source = torch.device("cpu") if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)
