"""Random views of training pictures."""

import gc

import numpy as np
import pytest
import torch

from pipelines.data.augment import Augment


def pictures(count: int = 6) -> torch.Tensor:
    return torch.arange(count * 3 * 5 * 7).remainder(251).to(torch.uint8).reshape(count, 3, 5, 7)


def test_no_views_leave_pictures_alone() -> None:
    x = pictures()
    assert Augment().view(x, np.arange(6), np.zeros(6, np.int64), 6, seed=0) is x


def test_a_view_is_a_function_of_seed_epoch_and_example() -> None:
    x, augment = pictures(), Augment(flip=True, shift=2)
    epochs = np.array([0, 0, 0, 1, 1, 1])
    views = augment.view(x, np.arange(6), epochs, 6, seed=3)
    order = np.array([4, 0, 5])
    again = augment.view(x[order], order, epochs[order], 6, seed=3)
    assert torch.equal(again, views[order])
    other = augment.view(x, np.arange(6), epochs + 1, 6, seed=3)
    assert not torch.equal(other, views)
    assert not torch.equal(augment.view(x, np.arange(6), epochs, 6, seed=4), views)


def test_a_view_does_not_depend_on_the_default_dtype() -> None:
    x, augment = pictures(), Augment(flip=True, shift=2)
    epochs = np.arange(6)
    views = augment.view(x, np.arange(6), epochs, 6, seed=5)
    # Draws are kept for a while: other epochs make them be drawn again.
    augment.view(x.repeat(2, 1, 1, 1), np.arange(12), np.arange(12) + 6, 12, seed=5)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(augment.view(x, np.arange(6), epochs, 6, seed=5), views)
    finally:
        torch.set_default_dtype(torch.float32)


def test_shift_moves_and_repeats_the_edge() -> None:
    x = pictures(200)
    views = Augment(shift=2).view(x, np.arange(200), np.zeros(200, np.int64), 200, seed=0)
    found = set()
    for picture, view in zip(x, views, strict=True):
        padded = torch.nn.functional.pad(picture.float()[None], (2, 2, 2, 2), mode="replicate")[0].to(
            torch.uint8
        )
        places = [
            (dy - 2, dx - 2)
            for dy in range(5)
            for dx in range(5)
            if torch.equal(padded[:, dy : dy + 5, dx : dx + 7], view)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) == 25


def test_epochs_that_are_past_take_no_memory() -> None:
    x, count = pictures(), 50_000  # a table of 0.6 MB
    augment = Augment(flip=True, shift=1)
    for epoch in range(12):
        augment.view(x, np.arange(6), np.full(6, epoch), count, seed=77)
    tables = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (count, 3)]
    assert 1 <= len(tables) <= 2


@pytest.mark.parametrize("shift", [-1, 5000])
def test_shift_out_of_range(shift: int) -> None:
    with pytest.raises(ValueError, match=f"shift is {shift}, expected 0 to 1024"):
        Augment(shift=shift)


def test_fixed_views() -> None:
    x = torch.randint(256, (200, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    which = np.arange(200)
    flip = Augment(flip=True)
    for view, expected in enumerate((x, x.flip(-1), x, x.flip(-1))):
        assert torch.equal(flip.fixed_view(x, which, view, 200, 0), expected)
    both = Augment(flip=True, shift=1)
    first, third = (both.fixed_view(x, which, view, 200, 0) for view in (1, 3))
    assert not torch.equal(first, third)
    some = np.array([7, 3])  # of the number alone, whatever the batch
    assert torch.equal(both.fixed_view(x[some], some, 3, 200, 0), third[some])
    assert not torch.equal(both.fixed_view(x, which, 3, 200, 1), third)
