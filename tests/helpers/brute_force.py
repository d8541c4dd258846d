"""What every search is compared with, and random vectors to search.

Left out: the search (`tokenizer/search/exact.py`).
"""

import torch
from torch import Tensor


def brute_force(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin of the distances written out in float64, of equal ones the first."""
    codes = []
    for rows in z.double().split(64):
        distances = (rows[:, None] - codebook.double()).square().sum(-1)
        is_smallest = distances == distances.amin(dim=1, keepdim=True)
        codes.append(is_smallest.int().argmax(dim=1))
    return torch.cat(codes) if codes else torch.empty(0, dtype=torch.int64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
