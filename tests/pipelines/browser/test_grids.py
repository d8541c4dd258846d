"""The grid of codes: which code stands where, what is drawn, and its colours.

Left out: clicks in a browser (test_in_a_browser.py).
"""

import itertools

import pytest
import torch

from pipelines.browser.grids import (
    FRAMES,
    Layout,
    code_colours,
    draw_grid,
    frames_shown,
    mask_of,
    picture_layout,
    sound_layout,
    where,
)
from tests.helpers.tiny import codec, tokenizer
from tokenizer.bottlenecks import kinds

DISCRETE = sorted(kind for kind, config in kinds().items() if config().build().num_codebooks)


def middles(layout: Layout) -> dict[tuple[int, ...], tuple[float, float]]:
    """By cell, the pixel in its middle."""
    boxes = {cell: layout.box(*place) for place, cell in layout.cells.items()}
    return {cell: ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for cell, b in boxes.items()}


@pytest.mark.parametrize(
    "layout",
    [
        *(picture_layout((1, 8, 8)), picture_layout((2, 3, 40), 1)),
        *(sound_layout((2, 7)), sound_layout((4, 400), 50), sound_layout((8, 90))),
    ],
)
def test_a_click_in_the_middle_of_a_cell_finds_it(layout: Layout) -> None:
    found = {cell: layout.cell_at(*middle) for cell, middle in middles(layout).items()}
    assert found and all(cell == found[cell] for cell in found)
    width, height = layout.size
    assert all(x < width and y < height for x, y in middles(layout).values())
    assert layout.cell_at(width + 99, 1) is None and layout.cell_at(1, height + 99) is None


def test_a_picture_shows_one_codebook_as_it_lies_in_the_picture() -> None:
    layout = picture_layout((3, 2, 5), 2)
    assert layout.cells[1, 4] == (2, 1, 4) and len(layout.cells) == 10


def test_sound_shows_lines_of_frames_from_where_it_is_asked() -> None:
    layout = sound_layout((2, 500), 100)
    assert layout.cells[0, 0] == (0, 100) and layout.cells[1, 0] == (1, 100)
    assert layout.cells[2, 0] == (0, 100 + FRAMES)
    assert max(cell[1] for cell in layout.cells.values()) == 99 + frames_shown(2)
    assert layout.cell_at(1, 2 * layout.side + 1) is None  # between the lines
    assert set(sound_layout((2, 30), 99).cells.values()) == {(0, 29), (1, 29)}  # beyond the end: the last


def test_numbers_stand_on_their_colours_and_chosen_cells_are_framed() -> None:
    codes = torch.tensor([[[0, 1], [2, 0]]])
    colours = torch.tensor([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]], dtype=torch.uint8)
    layout = picture_layout((1, 2, 2))
    plain, framed = (draw_grid(codes, layout, colours, chosen) for chosen in ((), {(0, 1, 1)}))
    assert plain.size == layout.size
    for (row, column), code in zip(itertools.product(range(2), repeat=2), (0, 1, 2, 0), strict=True):
        left, top, *_ = layout.box(row, column)
        assert plain.getpixel((left + 5, top + 5)) == tuple(colours[0, code].tolist())
    left, top, *_ = layout.box(1, 1)
    assert framed.getpixel((left, top + 20)) == (0, 0, 0) != plain.getpixel((left, top + 20))
    assert framed.getpixel((5, 5)) == plain.getpixel((5, 5))


@pytest.mark.parametrize("kind", DISCRETE)
def test_every_kind_of_code_has_colours(kind: str) -> None:
    tok = tokenizer(kind)
    colours = code_colours(tok)
    assert colours.shape == (tok.num_codebooks, tok.codebook_size, 3) and colours.dtype == torch.uint8
    assert len(colours[0].unique(dim=0)) > tok.codebook_size // 2


def test_near_entries_have_like_colours() -> None:
    tok = tokenizer("vq")
    vectors = tok.bottleneck.codebook_vectors()
    assert vectors is not None
    distances = torch.cdist(vectors.float(), vectors.float()).fill_diagonal_(torch.inf)
    colours = code_colours(tok)[0].float()
    gaps = (colours - colours[distances.argmin(1)]).norm(dim=1).mean()
    assert gaps < 0.8 * torch.pdist(colours).mean()


def test_masks_and_words_of_cells() -> None:
    assert mask_of({(0, 1)}, (2, 3)).tolist() == [[False, True, False], [False, False, False]]
    assert where((0, 2, 3), tokenizer("vq")) == "row 3, column 4"
    tok = codec("rvq")
    assert where((1, 50), tok) == f"{50 / tok.frame_rate:.2f} s, codebook 2"
