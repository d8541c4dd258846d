"""Patterns: the order in which a prior predicts codes (B, K, *grid), as a sequence of steps, and back.

Left out: the network. A new pattern is one decorated function here; `delay` and `parallel` of MusicGen
(arXiv 2306.05284) fit the same table.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# (num_codebooks K, positions P) → table (S, Q, 2) int64. Entry [s, q] is the codebook and the position (in
# raster order) of the q-th code of step s, or (-1, -1) where the step has room for a code but holds none.
Layout = Callable[[int, int], Tensor]
PATTERNS: dict[str, Layout] = {}


def register(name: str) -> Callable[[Layout], Layout]:
    """Enter a layout under `name`. It must hold every code exactly once; a model then predicts the codes of a
    step independently of each other, given all steps before."""

    def enter(layout: Layout) -> Layout:
        if name in PATTERNS:
            raise ValueError(f"there is already a pattern named {name!r}")
        PATTERNS[name] = layout
        return layout

    return enter


@register("flatten")
def flatten(num_codebooks: int, positions: int) -> Tensor:
    """One code per step: all codebooks of a position, then the next position. An exact factorisation for any
    K; with one codebook it is the raster scan of a picture."""
    step = torch.arange(positions * num_codebooks)
    return torch.stack([step % num_codebooks, step // num_codebooks], dim=-1)[:, None]


class Pattern(nn.Module):
    """The pattern `name` for K codebooks on a grid of P positions: S steps that hold up to Q codes each.

    `codebook` and `position` (S, Q) say what each step holds (-1: nothing), `coordinates` (S, axes) where a
    step stands on the grid (at the last position it holds), `step` (K, P) in which step a code stands. The
    tables are buffers, so that they follow the model to its device; they are never saved.
    """

    codebook: Tensor
    position: Tensor
    coordinates: Tensor
    step: Tensor
    _source: Tensor
    _slot: Tensor

    def __init__(self, name: str, num_codebooks: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        if name not in PATTERNS:
            raise ValueError(f"pattern: unknown {name!r}; known: {', '.join(sorted(PATTERNS))}")
        self.num_codebooks, self.grid = num_codebooks, grid
        positions = math.prod(grid)
        table = PATTERNS[name](num_codebooks, positions)
        self.num_steps, self.width = table.shape[:2]
        codebook, position = table.unbind(-1)
        # One index past the codes stands for "nothing", so that gaps need no branch on data.
        nothing = num_codebooks * positions
        source = torch.where(position >= 0, codebook * positions + position, nothing)
        slot = torch.zeros(nothing + 1, dtype=torch.int64)
        slot = slot.scatter(0, source.flatten(), torch.arange(source.numel()))[:-1]
        step = rearrange(slot // self.width, "(k p) -> k p", k=num_codebooks)
        coordinates = torch.stack(torch.unravel_index(position.amax(dim=1), grid), dim=-1)
        tables = {"codebook": codebook, "position": position, "coordinates": coordinates, "step": step}
        for key, value in {**tables, "_source": source, "_slot": slot}.items():
            self.register_buffer(key, value.contiguous(), persistent=False)

    def to_sequence(self, codes: Tensor) -> Tensor:
        """codes (B, K, *grid) → sequence (B, S, Q), -1 where a step holds nothing."""
        return F.pad(rearrange(codes, "b ... -> b (...)"), (0, 1), value=-1)[:, self._source]

    def to_codes(self, sequence: Tensor) -> Tensor:
        """The inverse of `to_sequence`: sequence (B, S, Q) → codes (B, K, *grid)."""
        flat = rearrange(sequence, "b s q -> b (s q)")[:, self._slot]
        return flat.view(len(flat), self.num_codebooks, *self.grid)

    def layout(self) -> list[list[tuple[int, int]]]:
        """The table as Python numbers: for each step its (codebook, position) pairs, (-1, -1) for nothing."""
        rows = torch.stack([self.codebook, self.position], dim=-1).tolist()
        return [[(k, p) for k, p in row] for row in rows]
