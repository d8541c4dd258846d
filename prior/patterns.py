"""Patterns: the order in which a prior predicts codes (B, K, *grid), as a sequence of steps, and back.

Left out: the network. A new pattern is one decorated function here. Codes of one step are predicted
independently of each other, unless the pattern has them in turn: fewer steps are faster, independent codes
can express less, and `Prior.nll` is exact for the model that the pattern makes.
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
# Patterns whose codes of a step are predicted in turn.
IN_TURN: set[str] = set()


def register(name: str, in_turn: bool = False) -> Callable[[Layout], Layout]:
    """Enter a layout under `name`. It must hold every code exactly once; a model then predicts the codes of a
    step independently of each other, given all steps before.

    With `in_turn` a depth transformer (`network.py`) predicts them one after the other instead, each given
    those before it in the step too; the layout then holds codebooks 0 to K - 1 of one position in each step.
    """

    def enter(layout: Layout) -> Layout:
        if name in PATTERNS:
            raise ValueError(f"there is already a pattern named {name!r}")
        PATTERNS[name] = layout
        if in_turn:
            IN_TURN.add(name)
        return layout

    return enter


@register("flatten")
def flatten(num_codebooks: int, positions: int) -> Tensor:
    """One code per step: all codebooks of a position, then the next position. An exact factorisation for any
    K; with one codebook it is the raster scan of a picture. K · P steps."""
    step = torch.arange(positions * num_codebooks)
    return torch.stack([step % num_codebooks, step // num_codebooks], dim=-1)[:, None]


@register("delay")
def delay(num_codebooks: int, positions: int) -> Tensor:
    """Codebook k of position p in step p + k (MusicGen, arXiv 2306.05284, figure 1). P + K - 1 steps.

    The likelihood is that of a model in which a code is independent of the others of its step (later
    codebooks of positions before, earlier codebooks of positions after), given all steps before. A code is
    given all codebooks before its own at its own position, which `parallel` lacks.
    """
    book = torch.arange(num_codebooks).expand(positions + num_codebooks - 1, -1)
    position = torch.arange(len(book))[:, None] - book
    held = (position >= 0) & (position < positions)
    return torch.where(held[..., None], torch.stack([book, position], dim=-1), -1)


@register("parallel")
def parallel(num_codebooks: int, positions: int) -> Tensor:
    """All codebooks of a position in one step (MusicGen, arXiv 2306.05284, figure 1). P steps.

    The likelihood is that of a model in which the K codes of a position are independent of each other, given
    all positions before. Residual codebooks are not, so samples lose what ties them together.
    """
    book = torch.arange(num_codebooks).expand(positions, -1)
    position = torch.arange(positions)[:, None].expand(-1, num_codebooks)
    return torch.stack([book, position], dim=-1)


@register("depth", in_turn=True)
def depth(num_codebooks: int, positions: int) -> Tensor:
    """All codebooks of a position in one step, in turn by a depth transformer (RQ-Transformer, arXiv
    2203.01941, section 3.2.2; Moshi, arXiv 2410.00037, section 3.4.2). P steps.

    An exact factorisation for any K, in the order of `flatten`: the large transformer takes P steps, the
    small one K for each.
    """
    return parallel(num_codebooks, positions)


def steps_per_position(name: str, num_codebooks: int) -> int:
    """How many steps in a row hold the codes of one position and no others; 0 where steps hold codes of
    several positions, whose order can then not be changed."""
    position = PATTERNS[name](num_codebooks, 2)[..., 1]
    first, rest = position.split([len(position) // 2, len(position) - len(position) // 2])
    return len(first) if bool((first < 1).all() and ((rest == 1) | (rest == -1)).all()) else 0


class Pattern(nn.Module):
    """The pattern `name` for K codebooks on a grid of P positions: S steps that hold up to Q codes each.

    `codebook` and `position` (S, Q) say what each step holds (-1: nothing), `coordinates` (S, axes) where a
    step stands on the grid (at the last position it holds), `step` (K, P) in which step a code stands. With
    `in_turn` the codes of a step are predicted one after the other (with one codebook there is nothing to
    take turns). The tables are buffers, so that they follow the model to its device; they are never saved.
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
        self.name, self.num_codebooks, self.grid = name, num_codebooks, grid
        self.in_turn = name in IN_TURN and num_codebooks > 1
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """All tables."""
        # They are small, and made on the CPU: on the device meta, by which sizes are checked on loading, such
        # steps take a hundred times longer, and a second to import what they need there.
        device = torch.get_default_device()
        with torch.device("cpu"):
            tables = self._tables()
        for key, value in tables.items():
            self.register_buffer(key, value.contiguous().to(device), persistent=False)

    def first_rows(self, size: int) -> Tensor:
        """(S, Q): where the table of the codebook of every step's codes begins, if each has `size` rows and
        they lie one below the other; 0 where a step holds no code."""
        device = torch.get_default_device()
        with torch.device("cpu"):
            codebook = PATTERNS[self.name](self.num_codebooks, math.prod(self.grid))[..., 0]
            return (codebook.clamp_min(0) * size).to(device)

    def _tables(self) -> dict[str, Tensor]:
        """All buffers."""
        num_codebooks, grid = self.num_codebooks, self.grid
        positions = math.prod(grid)
        table = PATTERNS[self.name](num_codebooks, positions)
        self.num_steps, self.width = table.shape[:2]
        self.steps_per_position = steps_per_position(self.name, num_codebooks)
        codebook, position = table.unbind(-1)
        # One index past the codes stands for "nothing", so that gaps need no branch on data.
        nothing = num_codebooks * positions
        source = torch.where(position >= 0, codebook * positions + position, nothing)
        slot = torch.zeros(nothing + 1, dtype=torch.int64)
        slot = slot.scatter(0, source.flatten(), torch.arange(source.numel()))[:-1]
        step = rearrange(slot // self.width, "(k p) -> k p", k=num_codebooks)
        coordinates = torch.stack(torch.unravel_index(position.amax(dim=1), grid), dim=-1)
        tables = {"codebook": codebook, "position": position, "coordinates": coordinates, "step": step}
        return {**tables, "_source": source, "_slot": slot}

    @property
    def order(self) -> Tensor:
        """What each code sees, (K, P): the codes of lower order."""
        return self._slot.view(self.step.shape) if self.in_turn else self.step

    def steps_in(self, order: Tensor) -> Tensor:
        """The steps (B, S) in the `order` (B, P) of their positions, each with all of its steps in a row."""
        each = self.steps_per_position
        assert each, f"the order of {self.name} cannot be changed"
        steps = order[..., None] * each + torch.arange(each, device=order.device)
        return steps.flatten(1)

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
