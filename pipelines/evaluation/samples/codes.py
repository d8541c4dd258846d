"""Codes that occur twice: among samples, and among the items that the prior learnt.

Left out: items that are near but not equal, which the measures of a modality look for in its own data.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.samples.kinds import Draw, Figures
from pipelines.tokens.items import TokenRows

# Training items that are looked at at once.
CHUNK = 4096


def measure_codes(figures: Figures, draws: Sequence[Draw], held_out: Tensor, items: TokenRows | None) -> None:
    """Add the shares of samples, and of the codes (n, K, *grid) of held-out items, that are repeats of
    earlier ones of their set, and, given the training `items`, copies of one of these."""
    sets = [("samples", draw.codes) for draw in draws] + [("held_out", held_out)]
    for of, codes in sets:
        figures.add("repeats", of, repeats(codes))
    if items is not None:
        for (of, _), share in zip(sets, copies([codes for _, codes in sets], items), strict=True):
            figures.add("copies", of, share)


def repeats(codes: Tensor) -> float:
    """The share of items (n, K, *grid) whose codes are all those of an earlier one."""
    return 1 - len(set(keys(codes))) / len(codes)


def copies(sets: Sequence[Tensor], items: TokenRows) -> list[float]:
    """Of each set of codes (n, K, *grid), the share of items that are equal to one of `items`, which are read
    in parts."""
    asked = [list(keys(codes)) for codes in sets]
    wanted, found = {key for keys_ in asked for key in keys_}, set[bytes]()
    for start in range(0, len(items), CHUNK):
        rows, _ = items.rows(np.arange(start, min(start + CHUNK, len(items))))
        found |= wanted.intersection(keys(rows))
    return [sum(key in found for key in keys_) / len(keys_) for keys_ in asked]


def keys(codes: Tensor) -> Iterator[bytes]:
    """The codes of each item (n, K, *grid) as bytes."""
    return (row.tobytes() for row in codes.to(torch.int32).flatten(1).numpy())
