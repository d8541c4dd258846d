"""Codes changed by hand: replaced by a number or the nearest entry, moved from other data, chosen by a
region.

Left out: what a prior draws into them (`drawing.py`).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.browser.files import Given
from pipelines.browser.grids import Cell, mask_of
from pipelines.browser.rebuilt import Rebuilt, decoded, rebuild
from tokenizer import Tokenizer

# Share of a code's patch that a brush must cover for it to be chosen.
COVERED = 0.25
# Steps that can be taken back.
REMEMBERED = 20


@dataclass(frozen=True)
class Editing:
    """What one person edits: with which tokenizer, what was given and what it is rebuilt as now, the cells
    that are chosen, and the codes before the last changes."""

    tokenizer: str
    now: Rebuilt
    chosen: frozenset[Cell] = frozenset()
    past: tuple[Tensor, ...] = ()

    @classmethod
    def begun(cls, name: str, tok: Tokenizer, given: Given) -> Self:
        """Of what was just given."""
        return cls(name, rebuild(tok, given))

    @property
    def codes(self) -> Tensor:
        """(1, K, *grid), as they are now."""
        return self.now.codes

    def with_codes(self, tok: Tokenizer, codes: Tensor) -> Self:
        """With other codes; those of now can be taken back."""
        past = (*self.past, self.codes)[-REMEMBERED:]
        return replace(self, now=decoded(tok, self.now.given, codes), past=past)

    def undone(self, tok: Tokenizer) -> Self:
        """Without the last change; `ValueError` if there is none."""
        if not self.past:
            raise ValueError("there is nothing to take back")
        return replace(self, now=decoded(tok, self.now.given, self.past[-1]), past=self.past[:-1])

    def toggled(self, cell: Cell) -> Self:
        """With a cell chosen, or no longer."""
        return replace(self, chosen=self.chosen ^ {cell})

    def changed(self) -> int:
        """How many codes differ from those of what was given."""
        first = self.past[0] if self.past else self.codes
        return int((first != self.codes).sum())


def checked_code(tok: Tokenizer, code: float | None) -> int:
    """A number typed by hand; `ValueError` unless it is a code."""
    if code is None or not math.isfinite(code) or code != int(code) or not 0 <= code < tok.codebook_size:
        shown = "nothing" if code is None else f"{code:g}"
        raise ValueError(f"a code is a whole number from 0 to {tok.codebook_size - 1}, got {shown}")
    return int(code)


def replaced(tok: Tokenizer, codes: Tensor, cells: Collection[Cell], code: float | None) -> Tensor:
    """codes (1, K, *grid) with those at the cells set to one number. `ValueError` for no cells, and for what
    is no code."""
    _require_cells(cells)
    return codes.masked_fill(_mask(cells, codes), checked_code(tok, code))


@torch.no_grad()
def nearest_others(tok: Tokenizer, codes: Tensor, cells: Collection[Cell]) -> Tensor:
    """codes (1, K, *grid) with each at the cells replaced by the other entry of its codebook that is nearest
    to its own. `ValueError` for no cells, and where entries are not known."""
    _require_cells(cells)
    vectors = tok.bottleneck.codebook_vectors()
    if vectors is None:
        raise ValueError(
            f"the codes of this tokenizer ({tok.config.bottleneck.kind}) are no entries of a codebook that "
            "could be compared; replace them by number"
        )
    books = vectors.float().expand(tok.num_codebooks, *vectors.shape[-2:])
    changed = codes.clone()
    for cell in cells:
        code = int(codes[0][cell])
        distances = (books[cell[0]] - books[cell[0]][code]).norm(dim=1)
        distances[code] = math.inf
        changed[0][cell] = int(distances.argmin())
    return changed


def moved(codes: Tensor, others: Tensor, cells: Collection[Cell], later: int = 0) -> Tensor:
    """codes (1, K, *grid) with those at the cells taken from `others`, from the same places, or of sound
    `later` frames after them. `ValueError` for no cells, and for places that `others` has not."""
    _require_cells(cells)
    changed = codes.clone()
    for cell in cells:
        source = (*cell[:-1], cell[-1] + later) if later else cell
        if any(not 0 <= i < n for i, n in zip(source, others.shape[1:], strict=True)):
            raise ValueError("the other one has no codes there; choose a part that both have")
        changed[0][cell] = others[0][source]
    return changed


def covered(layer: NDArray[Any], shape: tuple[int, ...]) -> set[Cell]:
    """The cells of codes (K, h, w) that a painted layer (H, W, 4) covers: in all codebooks those positions of
    which a quarter or more is painted."""
    books, rows, columns = shape
    alpha = torch.from_numpy(np.ascontiguousarray(layer[..., 3])).float() > 0
    shares = torch.nn.functional.adaptive_avg_pool2d(alpha.float()[None], (rows, columns))[0]
    places = (shares >= COVERED).nonzero().tolist()
    return {(k, y, x) for y, x in places for k in range(books)}


def between(tok: Tokenizer, codes: Tensor, start: float | None, end: float | None) -> set[Cell]:
    """The cells of codes (1, K, t) of sound from second `start` to `end`. `ValueError` for a span that is
    empty or not there."""
    frames = codes.shape[2]
    seconds = frames / tok.frame_rate
    if start is None or end is None or not 0 <= start < end or start >= seconds:
        raise ValueError(
            f"expected a span within 0 to {seconds:.2f} s that ends after it begins, got {start} to {end}"
        )
    first = min(frames - 1, math.floor(start * tok.frame_rate))
    last = min(frames, max(first + 1, math.ceil(end * tok.frame_rate)))
    return {(k, t) for t in range(first, last) for k in range(codes.shape[1])}


def at_every_codebook(cells: Collection[Cell], books: int) -> set[Cell]:
    """The cells of all codebooks at the positions of some."""
    return {(k, *cell[1:]) for cell in cells for k in range(books)}


def _mask(cells: Collection[Cell], codes: Tensor) -> Tensor:
    return mask_of(cells, tuple(codes.shape[1:])).to(codes.device)[None]


def _require_cells(cells: Collection[Cell]) -> None:
    if not cells:
        raise ValueError("no codes are chosen; choose some on the grid, or mark a region")
