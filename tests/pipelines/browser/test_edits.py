"""Codes changed by hand: replaced, moved, chosen by a region, and taken back.

Left out: what a prior draws into them (test_drawing.py).
"""

import numpy as np
import pytest
import torch

from pipelines.browser.edits import (
    REMEMBERED,
    Editing,
    at_every_codebook,
    between,
    checked_code,
    covered,
    moved,
    nearest_others,
    replaced,
)
from pipelines.browser.files import Given
from tests.helpers.tiny import codec, pictures, sounds, tokenizer
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer("vq")


@pytest.fixture(scope="module")
def sound_tok() -> Tokenizer:
    return codec("rvq")


@pytest.fixture
def editing(tok: Tokenizer) -> Editing:
    return Editing.begun("it", tok, Given("it.png", pictures(1, 3, 16, 16), 100))


@pytest.mark.parametrize("code", [-1, 24, 1.5, float("nan"), float("inf"), None])
def test_what_is_no_code_is_told_with_the_range(tok: Tokenizer, code: float | None) -> None:
    with pytest.raises(ValueError, match="from 0 to 23"):
        checked_code(tok, code)


def test_only_chosen_codes_are_replaced(tok: Tokenizer, editing: Editing) -> None:
    cells = {(0, 0, 1), (0, 3, 2)}
    codes = replaced(tok, editing.codes, cells, 7.0)
    changed = (codes != editing.codes).nonzero().tolist()
    assert codes[0, 0, 0, 1] == codes[0, 0, 3, 2] == 7
    assert {tuple(place[1:]) for place in changed} <= cells
    with pytest.raises(ValueError, match="no codes are chosen"):
        replaced(tok, editing.codes, set(), 7)


def test_the_nearest_entry_is_that_of_brute_force(sound_tok: Tokenizer) -> None:
    codes = sound_tok.encode(sounds(1, 1, 1200))
    vectors = sound_tok.bottleneck.codebook_vectors()
    assert vectors is not None
    for cell in ((0, 0), (1, 3)):
        changed = nearest_others(sound_tok, codes, {cell})
        own = vectors[cell[0]][codes[0][cell]]
        others = [(float((v - own).norm()), i) for i, v in enumerate(vectors[cell[0]])]
        assert int(changed[0][cell]) == min(o for o in others if o[1] != int(codes[0][cell]))[1]
        assert int((changed != codes).sum()) == 1


def test_codes_without_entries_are_replaced_by_number_only() -> None:
    tok = tokenizer("lfq")
    if tok.bottleneck.codebook_vectors() is not None:
        tok.bottleneck.codebook_vectors = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="by number"):
        nearest_others(tok, torch.zeros(1, tok.num_codebooks, 2, 2, dtype=torch.int64), {(0, 0, 0)})


def test_codes_are_moved_from_the_same_places_or_later_ones() -> None:
    codes, others = torch.zeros(1, 2, 6, dtype=torch.int64), torch.arange(12).view(1, 2, 6)
    assert moved(codes, others, {(0, 1), (1, 5)}).tolist() == [[[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 11]]]
    assert moved(codes, others, {(1, 1)}, later=3)[0, 1, 1] == 10
    with pytest.raises(ValueError, match="no codes there"):
        moved(codes, others, {(1, 4)}, later=3)


def test_a_painted_region_chooses_what_a_quarter_of_is_painted() -> None:
    layer = np.zeros((40, 40, 4), np.uint8)
    layer[0:10, 10:20, 3] = 255  # all of row 0, column 1
    layer[10:16, 10:20, 3] = 200  # a bit more than half of that below
    layer[10:12, 20:30, 3] = 255  # a fifth of that beside it
    assert covered(layer, (2, 4, 4)) == {(k, y, 1) for k in (0, 1) for y in (0, 1)}


def test_seconds_choose_frames_of_all_codebooks(sound_tok: Tokenizer) -> None:
    codes = torch.zeros(1, 2, 100, dtype=torch.int64)
    frame = 1 / sound_tok.frame_rate
    assert between(sound_tok, codes, 2 * frame, 3.5 * frame) == {(k, t) for k in (0, 1) for t in (2, 3)}
    assert len(between(sound_tok, codes, 0, 1e9)) == 200
    for start, end in ((1, 1), (-1, 1), (2, 1), (200 * frame, 300 * frame), (None, 1)):
        with pytest.raises(ValueError, match="span within 0 to"):
            between(sound_tok, codes, start, end)


def test_what_is_chosen_and_changed_is_remembered(tok: Tokenizer, editing: Editing) -> None:
    first = editing.codes
    assert editing.toggled((0, 0, 0)).chosen == {(0, 0, 0)}
    assert not editing.toggled((0, 0, 0)).toggled((0, 0, 0)).chosen
    other = (int(first[0, 0, 0, 0]) + 1) % 24
    changed = editing.with_codes(tok, replaced(tok, first, {(0, 0, 0)}, other))
    assert changed.changed() == 1 and not torch.equal(changed.now.x_hat, editing.now.x_hat)
    back = changed.undone(tok)
    assert torch.equal(back.codes, first) and torch.equal(back.now.x_hat, editing.now.x_hat)
    with pytest.raises(ValueError, match="nothing to take back"):
        back.undone(tok)
    for _ in range(REMEMBERED + 5):
        changed = changed.with_codes(tok, first)
    assert len(changed.past) == REMEMBERED


def test_positions_reach_through_all_codebooks() -> None:
    assert at_every_codebook({(1, 4)}, 3) == {(0, 4), (1, 4), (2, 4)}
