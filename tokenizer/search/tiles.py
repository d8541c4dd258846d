"""Of the products of vectors with a codebook, the two least of each vector: `propose`, in tiles of
torch.addmm, or in the kernels for GPUs and CPUs beside this file where they can run.

Left out: what the search makes of them (`exact.py`).
"""

import torch
from torch import Tensor

from tokenizer.search import cpu as search_cpu
from tokenizer.search import cuda as search_cuda
from tokenizer.search.cpu import COMPILED_FROM

# Distances per tile at most, 16 MB in float32, and the entries that a tile spans at most.
TILE, WIDEST = 1 << 22, 1 << 14
# Products of lengths up to FAR stay within the range of float32. Of a codebook shorter than NEAR they would
# fall to where its numbers are few; float64 has both.
NEAR, FAR = 1e-12, 1e18
# In a tile the least of every group of entries is found first, in one vectorised pass, which is slow for less
# than 32 groups; so groups have up to 64 entries.
GROUPS, LARGEST_GROUP = 32, 64


def propose(z: Tensor, entries: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the products of each row of z (M, D) with all entries (N, D), the entry's offset (N,) added: the
    least (M,), its index (M,) int64, and the least of all others (M,), which is infinite if there are none.
    """
    if z.is_cuda and z.dtype == torch.float32 and search_cuda.runs(z.device):
        return search_cuda.propose(z, entries, offset)
    size = len(entries)
    compiled = z.device.type == "cpu" and z.dtype == torch.float32
    compiled = compiled and len(z) * size >= COMPILED_FROM and search_cpu.installed()
    if compiled and z.shape[1] <= search_cpu.WIDTH:
        return search_cpu.propose(z, entries, offset)
    group = min(max(1, size // GROUPS), LARGEST_GROUP)
    width = min(-(-size // group), max(1, WIDEST // group)) * group
    rows = min(len(z), max(1, TILE // width))
    tile = z.new_empty(rows, width)
    least, second = z.new_full((2, len(z)), torch.inf).unbind()
    codes = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, size, width):
        part, part_offset = entries[start : start + width], offset[start : start + width]
        tile[:, len(part) :] = torch.inf
        for first in range(0, len(z), rows):
            some = slice(first, first + rows)
            products = tile[: len(z[some])]
            torch.addmm(part_offset, z[some], part.T, out=products[:, : len(part)])
            if compiled:
                found, index, next_best = search_cpu.two_least(products)
            else:
                found, index, next_best = two_least(products.view(len(products), group, -1))
            worse = torch.maximum(least[some], found)
            second[some] = torch.minimum(torch.minimum(second[some], next_best), worse)
            codes[some] = torch.where(found < least[some], index + start, codes[some])
            least[some] = torch.minimum(least[some], found)
    return least, codes, second


def two_least(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least of each row of products (R, members, groups), its index in the row of all first members, then
    all second ones, ..., and the least of all others."""
    of_group = products.amin(1)
    _, group = of_group.min(1)
    next_group = of_group.scatter_(1, group[:, None], torch.inf).amin(1)
    members = products[torch.arange(len(products), device=group.device), :, group]
    least, member = members.min(1)
    next_member = members.scatter_(1, member[:, None], torch.inf).amin(1)
    return least, member * products.shape[2] + group, torch.minimum(next_group, next_member)
