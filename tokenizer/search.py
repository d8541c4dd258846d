"""Nearest codebook entry: exact, in tiles of bounded memory, ties to the lowest index. Every bottleneck
uses it.

Left out: approximate search, and anything that would hold the whole (M, N) table of distances.
"""

import torch
from torch import Tensor

# Rows of z and entries of the codebook per tile. 1024 × 2048 float32 distances are 8 MB, which stays in the
# last-level cache; measured on CPU, larger tiles are not faster.
ROWS, ENTRIES = 1024, 2048


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook entry with the smallest squared Euclidean distance to each row of `z`.

    z: (M, D) float, codebook: (N, D) float → codes: (M,) int64. Computed in at least float32, outside
    autocast, after both are centred by the codebook's mean: ‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖² cancels badly
    when all entries lie far from the origin. Peak extra memory is O(M + ROWS · ENTRIES).

    Raises `ValueError` for shapes that do not fit, an empty codebook, and values that are not finite.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"expected z (M, D) and codebook (N, D), got {tuple(z.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise ValueError("the codebook has no entries")
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        centre = codebook.to(dtype).mean(0)
        entries = codebook.to(dtype) - centre
        half_norms = entries.square().sum(1) / 2
        # One reduction tells whether any value is infinite or NaN: such a z would silently become code 0.
        if not bool(torch.isfinite(z.sum(dtype=dtype) + half_norms.sum())):
            raise ValueError(
                "z or the codebook holds values that are not finite: x does, or the training diverged"
            )
        codes = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
        for start in range(0, z.shape[0], ROWS):
            codes[start : start + ROWS] = _nearest_tile(
                z[start : start + ROWS].to(dtype) - centre, entries, half_norms
            )
    return codes


def _nearest_tile(z: Tensor, entries: Tensor, half_norms: Tensor) -> Tensor:
    """`nearest` for at most ROWS centred rows, over tiles of the codebook; a strict `<` keeps the lowest
    index."""
    # One row and narrow tiles take other kernels, which round differently: equal distances would no longer
    # tie,
    # and a vector could get another code alone than in a batch. So one row becomes two, and the last tile
    # overlaps.
    if z.shape[0] == 1:
        return _nearest_tile(z.expand(2, -1), entries, half_norms)[:1]
    best, codes = None, None
    for start in range(0, entries.shape[0], ENTRIES):
        start = max(0, min(start, entries.shape[0] - ENTRIES))
        tile = slice(start, start + ENTRIES)
        # ½‖z − e‖² less ½‖z‖², which is the same for every entry
        distances = torch.addmm(half_norms[tile], z, entries[tile].T, alpha=-1)
        smallest, index = distances.min(dim=1)
        index = index + start
        if best is None or codes is None:
            best, codes = smallest, index
        else:
            nearer = smallest < best
            best, codes = torch.where(nearer, smallest, best), torch.where(nearer, index, codes)
    assert codes is not None
    return codes
