"""Patterns: every registered one holds each code once and can be undone; `flatten` has the order it promises.

Left out: what a model makes of them, which is in test_model.py.
"""

import pytest
import torch

from prior.patterns import PATTERNS, Pattern, register

SHAPES = [(1, (2, 3)), (3, (2, 3)), (1, (5,)), (2, (4,)), (4, (1,)), (2, (2, 1, 3))]


@pytest.mark.parametrize("name", sorted(PATTERNS))
@pytest.mark.parametrize(("num_codebooks", "grid"), SHAPES)
def test_round_trip_and_tables(name: str, num_codebooks: int, grid: tuple[int, ...]) -> None:
    pattern = Pattern(name, num_codebooks, grid)
    codes = torch.randint(100, (2, num_codebooks, *grid), generator=torch.Generator().manual_seed(0))
    sequence = pattern.to_sequence(codes)
    assert sequence.shape == (2, pattern.num_steps, pattern.width)
    assert torch.equal(pattern.to_codes(sequence), codes)
    flat = codes.flatten(2)
    seen = []
    for step, held in enumerate(pattern.layout()):
        for q, (book, position) in enumerate(held):
            if position < 0:
                assert book == -1 and (sequence[:, step, q] == -1).all()
                continue
            seen.append((book, position))
            assert torch.equal(sequence[:, step, q], flat[:, book, position])
            assert pattern.step[book, position] == step
            own = step * pattern.width + q if pattern.in_turn else step
            assert pattern.order[book, position] == own
        where = torch.unravel_index(torch.tensor(max(p for _, p in held)), grid)
        assert pattern.coordinates[step].tolist() == [int(w) for w in where]
    assert sorted(seen) == [(k, p) for k in range(num_codebooks) for p in range(flat.shape[2])]


def test_flatten_takes_all_codebooks_of_a_position_first() -> None:
    codes = torch.tensor([[[[0, 1], [2, 3]], [[10, 11], [12, 13]]]])
    pattern = Pattern("flatten", 2, (2, 2))
    assert pattern.to_sequence(codes)[0, :, 0].tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    assert pattern.codebook[:, 0].tolist() == [0, 1] * 4
    assert pattern.coordinates.tolist() == [[0, 0]] * 2 + [[0, 1]] * 2 + [[1, 0]] * 2 + [[1, 1]] * 2


def test_delay_shifts_each_codebook_by_one_step_more() -> None:
    codes = torch.tensor([[[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]])
    pattern = Pattern("delay", 3, (4,))
    assert pattern.to_sequence(codes)[0].T.tolist() == [
        [0, 1, 2, 3, -1, -1],
        [-1, 10, 11, 12, 13, -1],
        [-1, -1, 20, 21, 22, 23],
    ]
    assert pattern.step.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert pattern.coordinates[:, 0].tolist() == [0, 1, 2, 3, 3, 3]


def test_parallel_takes_all_codebooks_of_a_position_at_once() -> None:
    codes = torch.tensor([[[[0, 1], [2, 3]], [[10, 11], [12, 13]]]])
    pattern = Pattern("parallel", 2, (2, 2))
    assert pattern.to_sequence(codes)[0].tolist() == [[0, 10], [1, 11], [2, 12], [3, 13]]
    assert pattern.coordinates.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_depth_takes_the_codebooks_of_a_position_in_turn() -> None:
    pattern, flat = Pattern("depth", 2, (2, 2)), Pattern("flatten", 2, (2, 2))
    assert torch.equal(pattern.codebook, Pattern("parallel", 2, (2, 2)).codebook)
    assert pattern.step.tolist() == [[0, 1, 2, 3]] * 2
    assert torch.equal(pattern.order, flat.step)
    assert pattern.in_turn and not flat.in_turn
    assert not Pattern("depth", 1, (2, 2)).in_turn


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_with_one_codebook_all_patterns_are_the_raster_scan(name: str) -> None:
    expected = PATTERNS["flatten"](1, 6)
    assert torch.equal(PATTERNS[name](1, 6), expected) and expected.shape == (6, 1, 2)


@pytest.mark.parametrize("name", sorted(PATTERNS))
@pytest.mark.parametrize(("num_codebooks", "grid"), SHAPES)
def test_a_pattern_takes_at_most_one_step_per_code(
    name: str, num_codebooks: int, grid: tuple[int, ...]
) -> None:
    pattern = Pattern(name, num_codebooks, grid)
    assert pattern.num_steps <= pattern.step.numel()
    # A position is complete no earlier than those before it, so that a beginning can be drawn alone.
    assert (pattern.step.amax(dim=0).diff() > 0).all()


def test_tables_are_not_saved_and_need_no_memory_on_meta() -> None:
    with torch.device("meta"):
        pattern = Pattern("flatten", 2, (3, 3))
    assert pattern.position.is_meta and pattern.num_steps == 18
    assert Pattern("flatten", 2, (3, 3)).state_dict() == {}


def test_unknown_and_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown 'spiral'; known: .*flatten"):
        Pattern("spiral", 1, (2, 2))
    with pytest.raises(ValueError, match="already a pattern named 'flatten'"):
        register("flatten")(PATTERNS["flatten"])
