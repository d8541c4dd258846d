"""The prior's config: sizes of the codes, sizes of the network, and the tokenizer whose codes they are.

Left out: how a prior is trained; those options belong to the training script.
"""

import math
from dataclasses import dataclass
from typing import Literal

from prior.patterns import IN_TURN, PATTERNS, steps_per_position

MAX_STEPS = 1 << 16


@dataclass(frozen=True)
class PriorConfig:
    """All that decides what a `Prior` is. Checks itself, with bounds that a real prior stays below, so that a
    broken or hostile file is a `ValueError` before any memory is taken; all parameters together the network
    counts before it makes them."""

    codebook_size: int = 512
    """Number of entries of each codebook, N."""
    num_codebooks: int = 1
    """Codes per position, K."""
    grid: tuple[int, ...] = (8, 8)
    """Positions along each axis: rows and columns for pictures, frames for sound."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in the order of their labels; empty for a prior without classes."""
    unconditional: bool = True
    """Whether it learnt p(codes) too, besides p(codes | class): by label dropout, or for want of classes."""
    dim: int = 128
    """Width of the transformer."""
    depth: int = 4
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads; each has dim / heads channels, in which every axis of the grid needs whole pairs."""
    ffn: float = 8 / 3
    """Hidden width of the SwiGLU layers as a multiple of dim, rounded up to a multiple of 16."""
    dropout: float = 0.1
    """Share of activations dropped in training, on the embeddings and on every residual branch."""
    pattern: str = "flatten"
    """Order in which codes are predicted; `prior/patterns.py` has the choices."""
    rope_theta: float = 100.0
    """Base of the rotary wavelengths: 100 suits tens of rows and columns, 10000 (which train_prior.py takes
    for grids of one axis, and for steps of the sequence) up to thousands."""
    rotary: Literal["grid", "sequence"] = "grid"
    """What rotary positions count: rows and columns (or frames) of the grid, or steps of the sequence."""
    inner_dim: int = 128
    """Width of the depth transformer, which predicts the codes of a position in turn (pattern depth only)."""
    inner_depth: int = 2
    """Blocks of the depth transformer."""
    inner_heads: int = 4
    """Attention heads of the depth transformer."""
    qk_norm: bool = True
    """Normalise queries and keys (arXiv 2010.04245)."""
    order: Literal["raster", "any"] = "raster"
    """Orders of positions that it has learnt: raster alone, or every one (`prior/orders.py`)."""
    target_embedding: bool = True
    """Add to every step's input an embedding of the step that it predicts."""
    tokenizer_id: str = ""
    """Folder or Hub id of the tokenizer that made the codes."""
    tokenizer_fingerprint: str = ""
    """That tokenizer's fingerprint; codes of any other are refused."""

    def __post_init__(self) -> None:
        _between("codebook_size", self.codebook_size, 2, 1 << 20)
        _between("num_codebooks", self.num_codebooks, 1, 256)
        if not isinstance(self.grid, tuple) or not 1 <= len(self.grid) <= 3:
            raise ValueError(f"grid: expected a tuple of 1 to 3 sizes, got {self.grid!r}")
        for axis, size in enumerate(self.grid):
            _between(f"grid[{axis}]", size, 1, MAX_STEPS)
        _between("codes per example (num_codebooks × grid)", self.num_codes, 1, MAX_STEPS)
        _between("number of class_names", len(self.class_names), 0, 1_000_000)
        seen = set[str]()
        for index, name in enumerate(self.class_names):
            if not name or name in seen:
                raise ValueError(
                    f"class_names[{index}]: expected a name that is not empty and differs from those before "
                    f"it, got {name!r}"
                )
            seen.add(name)
        if not (self.unconditional or self.class_names):
            raise ValueError("unconditional: expected true, as there are no classes to condition on")
        _between("dim", self.dim, 2, 1 << 15)
        _between("depth", self.depth, 1, 512)
        _between("heads", self.heads, 1, 512)
        if self.rotary not in ("grid", "sequence"):
            raise ValueError(f"rotary: expected grid or sequence, got {self.rotary!r}")
        axes = len(self.grid) if self.rotary == "grid" else 1
        pairs = 2 * axes
        if self.dim % self.heads or (self.dim // self.heads) % pairs:
            what = f"each of the {axes} axes of the grid" if axes > 1 else "the positions"
            raise ValueError(
                f"dim: expected a multiple of heads × {pairs} = {self.heads * pairs} (in each head a pair of "
                f"channels for {what}), got {self.dim}"
            )
        _between("ffn", self.ffn, 1 / 16, 64)
        _between("inner_dim", self.inner_dim, 2, 1 << 15)
        _between("inner_depth", self.inner_depth, 1, 512)
        _between("inner_heads", self.inner_heads, 1, 512)
        if self.inner_dim % (2 * self.inner_heads):
            raise ValueError(
                f"inner_dim: expected a multiple of 2 × inner_heads = {2 * self.inner_heads}, got "
                f"{self.inner_dim}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: unknown {self.pattern!r}; known: {', '.join(sorted(PATTERNS))}")
        _between("rope_theta", self.rope_theta, 1, 1e12)
        self._check_order()

    def _check_order(self) -> None:
        if self.order not in ("raster", "any"):
            raise ValueError(f"order: expected raster or any, got {self.order!r}")
        if self.order == "raster":
            return
        if not steps_per_position(self.pattern, self.num_codebooks):
            raise ValueError(
                f"order: any needs steps that hold codes of one position, and those of the pattern "
                f"{self.pattern} hold codes of several; take the pattern depth, or order raster"
            )
        if not self.target_embedding:
            raise ValueError(
                "order: any needs target_embedding, which tells a step what it predicts; take it, or order "
                "raster"
            )
        if self.rotary != "grid":
            raise ValueError(
                f"order: any needs rotary grid, got {self.rotary}: the place of a step in the sequence says "
                "nothing of where it stands; take rotary grid, or order raster"
            )

    @property
    def num_positions(self) -> int:
        """Positions of the grid, P."""
        return math.prod(self.grid)

    @property
    def num_codes(self) -> int:
        """Codes of one example, K times the positions of the grid."""
        return self.num_codebooks * self.num_positions

    @property
    def in_turn(self) -> bool:
        """Whether a depth transformer predicts the codes of a step, one after the other."""
        return self.pattern in IN_TURN and self.num_codebooks > 1

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the SwiGLU layers."""
        return self._hidden(self.dim)

    @property
    def inner_ffn_dim(self) -> int:
        """Hidden width of the SwiGLU layers of the depth transformer."""
        return self._hidden(self.inner_dim)

    def _hidden(self, dim: int) -> int:
        return math.ceil(self.ffn * dim / 16) * 16


def _between(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")
