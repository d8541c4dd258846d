"""Base of quantizers of single vectors: layout at the boundary, and linear maps to the codes' space and back.

Left out: quantizing (`vq.py`, `implicit.py`).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck


class Projected(Bottleneck):
    """One code per position, of a vector of `width` numbers; linear maps lead from and to the `dim` channels
    of encoder and decoder, if these are not as many."""

    not_coding = frozenset({"project_out.weight", "project_out.bias"})

    def __init__(self, dim: int, width: int, size: int) -> None:
        super().__init__()
        self.in_dim = self.out_dim = dim
        self.num_codebooks, self.codebook_size = 1, size
        same = dim == width
        self.project_in = nn.Identity() if same else nn.Linear(dim, width)
        self.project_out = nn.Identity() if same else nn.Linear(width, dim)

    def to_rows(self, z: Tensor) -> Tensor:
        """z: (B, dim, *grid) → z_e: (B · positions, width), at least float32."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        # In one copy, as all that reads rows of a view is slow; of three axes, as torch copies a transposed
        # matrix on one thread.
        rows = rearrange(z, "b d ... -> b (...) d").contiguous().flatten(0, 1)
        return _project(self.project_in, rows)

    def to_grid(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """rows: (B · positions, width) → z_q: (B, dim, *grid), B and grid as in `shape` (B, any, *grid)."""
        rows = _project(self.project_out, rows)
        return rearrange(rows.reshape(shape[0], *shape[2:], -1), "b ... d -> b d ...")

    def codes_on_grid(self, codes: Tensor, shape: torch.Size) -> Tensor:
        """codes: (B · positions,) → (B, 1, *grid)."""
        return codes.reshape(shape[0], 1, *shape[2:])


def _project(layer: nn.Module, rows: Tensor) -> Tensor:
    """A linear map (or none) in the rows' precision, whatever that of its weights."""
    if not isinstance(layer, nn.Linear):
        return rows
    return F.linear(rows, layer.weight.to(rows.dtype), layer.bias.to(rows.dtype))
