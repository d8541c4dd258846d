"""The search: equal to brute force in float64, ties, precision far from the origin, memory, bad input.

Left out: speed, which a benchmark measures.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenizer.search import ENTRIES, ROWS, nearest


def brute_force(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin of the distances written out in float64, of equal ones the first."""
    codes = []
    for rows in z.double().split(64):
        distances = (rows[:, None] - codebook.double()).square().sum(-1)
        is_smallest = distances == distances.amin(dim=1, keepdim=True)
        codes.append(is_smallest.int().argmax(dim=1))
    return torch.cat(codes) if codes else torch.empty(0, dtype=torch.int64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SIZES = [
    (0, 5, 3),
    (1, 1, 1),
    (7, 1, 4),
    (300, 17, 1),
    (33, 100, 8),
    (1, ENTRIES + 1, 5),
    (ROWS, ENTRIES, 2),
    (ROWS - 1, ENTRIES - 1, 3),
    (ROWS + 1, 512, 8),
    (2 * ROWS + 37, 33, 64),
    (130, 2 * ENTRIES + 5, 16),
]


@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    codes = nearest(z, codebook)
    assert codes.shape == (m,) and codes.dtype == torch.int64
    assert torch.equal(nearest(z.double(), codebook.double()), brute_force(z, codebook))
    # In float32 two entries may be equally near to within rounding; nothing else may differ.
    expected = brute_force(z, codebook)
    distance = (z.double() - codebook.double()[codes]).square().sum(1)
    best = (z.double() - codebook.double()[expected]).square().sum(1)
    assert ((distance - best) <= 1e-6 * (1 + best)).all()
    assert (codes != expected).sum() <= m // 200


def test_every_entry_finds_itself_across_all_tiles() -> None:
    codebook = normal(2 * ENTRIES + 300, 8)
    assert torch.equal(nearest(codebook, codebook), torch.arange(len(codebook)))


def test_layout_in_memory_does_not_matter() -> None:
    z, codebook = normal(200, 6), normal(40, 6, seed=1)
    expected = nearest(z, codebook)
    wide = torch.stack([z, -z], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(nearest(wide, codebook), expected)
    assert torch.equal(nearest(z.T.contiguous().T, codebook.T.contiguous().T), expected)
    assert torch.equal(nearest(z[::2], codebook), expected[::2])
    assert torch.equal(nearest(z[:1].expand(5, -1), codebook), expected[:1].expand(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(dtype: torch.dtype) -> None:
    z, codebook = normal(500, 8).to(dtype), normal(64, 8, seed=1)
    expected = nearest(z.float(), codebook)
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(expected, brute_force(z, codebook))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z, codebook.to(dtype)), brute_force(z, codebook.to(dtype)))


def test_far_from_the_origin_no_code_flips() -> None:
    # Multiples of 2⁻¹⁰ are exact in float32 even beside 1000.
    z = (normal(2000, 8) * 1024).round() / 1024 + 1000
    codebook = (normal(256, 8, seed=1) * 1024).round() / 1024 + 1000
    expected = brute_force(z, codebook)
    uncentred = (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(dim=1)
    assert (uncentred != expected).float().mean() > 0.05
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z - 1000, codebook - 1000), expected)


@pytest.mark.parametrize("rows", [2, 51, ROWS])
@pytest.mark.parametrize(
    ("size", "first", "second"),
    [(17, 2, -1), (511, 2, -1), (2 * ENTRIES, 3, ENTRIES), (2 * ENTRIES, ENTRIES - 1, -1)],
)
def test_of_equal_entries_the_lowest_index_wins(size: int, first: int, second: int, rows: int) -> None:
    check_ties(size, first, second, rows)


def test_of_equal_entries_a_single_row_gets_the_lowest_index() -> None:
    for size in (5, 17, 33, 63, 511, 1001):
        check_ties(size, 2, -1, 1)


@pytest.mark.parametrize("size", [ENTRIES + 1, ENTRIES + 3, 2 * ENTRIES + 9])
def test_of_equal_entries_in_tiles_of_other_widths_the_lowest_index_wins(size: int) -> None:
    for rows in (2, 3, 5, 51):
        check_ties(size, 2, -1, rows)


def check_ties(size: int, first: int, second: int, rows: int) -> None:
    for d in (1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 64):
        codebook = normal(size, d, seed=d)
        codebook[first] = codebook[second] = 10 + normal(d)
        z = codebook[first] + 0.1 * normal(rows, d, seed=size)
        assert (nearest(z, codebook) == first).all()


def test_points_halfway_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[2.0], [-2.0], [0.0], [4.0], [-4.0]])
    z = torch.tensor([[1.0], [-1.0], [3.0], [-3.0], [0.0]])
    assert nearest(z, codebook).tolist() == [0, 1, 0, 1, 2]
    assert nearest(z, codebook.expand(5, 1).repeat(ENTRIES, 1)).tolist() == [0, 1, 0, 1, 2]
    assert nearest(torch.zeros(3, 2), torch.zeros(ENTRIES + 3, 2)).tolist() == [0, 0, 0]


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return out


@pytest.mark.parametrize(("m", "n"), [(3 * ROWS, 3 * ENTRIES), (30 * ROWS, 1000), (100, 40 * ENTRIES)])
def test_no_table_of_all_distances(m: int, n: int) -> None:
    z, codebook = normal(m, 4), normal(n, 4, seed=1)
    with LargestTensor() as seen:
        nearest(z, codebook)
    bound = max(4 * m, 4 * n, ROWS * ENTRIES)
    assert 100 * min(n, ENTRIES) <= seen.largest <= bound < m * n


def test_no_gradient_is_recorded() -> None:
    z = normal(5, 3).requires_grad_()
    assert not nearest(z, normal(4, 3, seed=1).requires_grad_()).requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    for where in ((0, 0), (-1, -1)):
        z, codebook = normal(ROWS + 5, 3), normal(9, 3)
        z[where] = value
        with pytest.raises(ValueError, match="not finite"):
            nearest(z, codebook)
        codebook[where] = value
        with pytest.raises(ValueError, match="not finite"):
            nearest(normal(4, 3), codebook)
    opposite = torch.tensor([[float("inf")], [float("-inf")]])
    with pytest.raises(ValueError, match="not finite"):
        nearest(opposite, normal(2, 1))


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        ((4,), (5, 4), r"z \(M, D\) and codebook \(N, D\), got \(4,\) and \(5, 4\)"),
        ((2, 3, 4), (5, 4), r"got \(2, 3, 4\)"),
        ((3, 4), (5, 3), r"got \(3, 4\) and \(5, 3\)"),
        ((3, 4), (5,), r"got \(3, 4\) and \(5,\)"),
        ((3, 4), (0, 4), "the codebook has no entries"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(z: Any, codebook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(z), torch.zeros(codebook))
