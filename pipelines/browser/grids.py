"""Codes as people see them: a table of numbers on colours, and which code stands where in it.

Left out: pages and clicks.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipelines.reports.sheets import font_file
from tokenizer import Tokenizer

# Where a code stands in codes (K, *grid): (k, row, column) of pictures, (k, frame) of sound.
Cell = tuple[int, ...]

WIDTH = 620  # pixels of a table, if its cells may be so small
LEAST, MOST = 30, 64  # pixels of a cell
GAP = 6  # pixels between lines of frames
FRAMES = 24  # of sound in a line
LINES = 4
GOLDEN = 0.61803398875
BRIGHT = 140.0  # brightness from which on letters are dark


class Layout(NamedTuple):
    """A drawn table: its cells by (row, column), its rows and columns, and the pixels of a cell. After every
    `group` rows there is a gap."""

    cells: dict[tuple[int, int], Cell]
    rows: int
    columns: int
    side: int
    group: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * self.side + 1, self._top(self.rows - 1) + self.side + 1

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a cell, in pixels."""
        left, top = column * self.side, self._top(row)
        return left, top, left + self.side, top + self.side

    def cell_at(self, x: float, y: float) -> Cell | None:
        """The cell under a pixel; None for a gap."""
        column = int(x // self.side)
        for row in range(self.rows):
            if self._top(row) <= y < self._top(row) + self.side:
                return self.cells.get((row, column))
        return None

    def _top(self, row: int) -> int:
        return row * self.side + row // self.group * GAP


def picture_layout(shape: tuple[int, ...], book: int = 0) -> Layout:
    """The codes (K, h, w) of a picture from the codebook `book`, as they lie in the picture."""
    _, rows, columns = shape
    cells: dict[tuple[int, int], Cell] = {(y, x): (book, y, x) for y in range(rows) for x in range(columns)}
    return Layout(cells, rows, columns, min(MOST, max(LEAST, WIDTH // columns)), rows)


def sound_layout(shape: tuple[int, ...], start: int = 0) -> Layout:
    """The codes (K, t) of a sound from frame `start` on, as many as are shown: lines of frames, each with a
    row for every codebook."""
    books, frames = shape
    start = min(max(0, start), max(0, frames - 1))
    shown = min(frames - start, frames_shown(books))
    columns = min(FRAMES, shown)
    lines = math.ceil(shown / columns)
    cells: dict[tuple[int, int], Cell] = {
        (i // columns * books + k, i % columns): (k, start + i) for i in range(shown) for k in range(books)
    }
    return Layout(cells, lines * books, columns, LEAST, books)


def frames_shown(books: int) -> int:
    """Frames of sound that a table shows at once: fewer lines of more codebooks."""
    return FRAMES * max(1, LINES // max(1, books // 2))


def draw_grid(codes: Tensor, layout: Layout, colours: Tensor, chosen: Collection[Cell] = ()) -> Image.Image:
    """codes (K, *grid) as a picture: each number on its colour of `colours` (K, N, 3); `chosen` framed."""
    picture = Image.new("RGB", layout.size, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    largest = len(str(colours.shape[1] - 1))
    points = max(9, min(layout.side * 2 // 5, int(layout.side * 1.5 / max(2, largest))))
    font = ImageFont.truetype(font_file(), points)
    for (row, column), cell in layout.cells.items():
        code = int(codes[cell])
        colour = tuple(colours[cell[0], code].tolist())
        box = layout.box(row, column)
        draw.rectangle(box, colour, (255, 255, 255))
        brightness = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
        ink = (20, 20, 20) if brightness > BRIGHT else (255, 255, 255)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(middle, str(code), ink, font, anchor="mm")
    for (row, column), cell in layout.cells.items():
        if cell in chosen:
            left, top, right, bottom = layout.box(row, column)
            draw.rectangle((left, top, right, bottom), None, (0, 0, 0), 4)
            draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), None, (255, 255, 255), 2)
    return picture


def code_colours(tok: Tokenizer) -> Tensor:
    """Colours (K, N, 3) uint8 of a tokenizer's codes. Where entries of a codebook are known, near ones have
    like colours (their three main components); elsewhere all colours differ, and say nothing else."""
    books, size = tok.num_codebooks, tok.codebook_size
    vectors = tok.bottleneck.codebook_vectors()
    if vectors is None:
        return _spread(size).expand(books, -1, -1)
    tables = vectors.detach().cpu().float().expand(books, *vectors.shape[-2:])
    return torch.stack([_by_components(table) for table in tables])


def _by_components(table: Tensor) -> Tensor:
    """Entries (N, D) → (N, 3) uint8: ranks along the three main components, so that no outlier darkens all
    others, kept from black and white."""
    centred = table - table.mean(0)
    _, axes = torch.linalg.eigh((centred.T @ centred).double())
    shares = []
    for axis in axes.T.flip(0)[:3]:
        # The sign of a component is arbitrary; the largest part of it is to be positive.
        direction = axis * axis[axis.abs().argmax()].sign()
        ranks = (centred.double() @ direction).argsort().argsort()
        shares.append(ranks.double() / max(1, len(table) - 1))
    while len(shares) < 3:
        shares.append(torch.full_like(shares[0], 0.5))
    return (40 + 200 * torch.stack(shares, dim=1)).round().to(torch.uint8)


def _spread(size: int) -> Tensor:
    """(N, 3) uint8: hues a golden section apart."""
    hue = torch.arange(size).double() * GOLDEN % 1 * 6
    channels = torch.stack([(hue + shift) % 6 for shift in (0.0, 4.0, 2.0)], dim=1)
    level = ((channels - 3).abs() - 1).clamp(0, 1)
    return (60 + 180 * level).round().to(torch.uint8)


def all_cells(codes: Tensor) -> list[Cell]:
    """Every cell of codes (K, *grid)."""
    return [tuple(index) for index in torch.ones(codes.shape, dtype=torch.bool).nonzero().tolist()]


def mask_of(cells: Collection[Cell], shape: tuple[int, ...]) -> Tensor:
    """(K, *grid) bool, true at the cells."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for cell in cells:
        mask[cell] = True
    return mask


def where(cell: Cell, tok: Tokenizer) -> str:
    """Where a code stands, in words."""
    book = f", codebook {cell[0] + 1}" if tok.num_codebooks > 1 else ""
    if len(cell) == 3:
        return f"row {cell[1] + 1}, column {cell[2] + 1}{book}"
    return f"{cell[1] / tok.frame_rate:.2f} s{book}"
