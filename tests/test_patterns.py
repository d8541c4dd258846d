"""Patterns: every registered one holds each code once and can be undone; `flatten` has the order it promises.

Left out: what a model makes of them, which is in test_prior.py.
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
        where = torch.unravel_index(torch.tensor(max(p for _, p in held)), grid)
        assert pattern.coordinates[step].tolist() == [int(w) for w in where]
    assert sorted(seen) == [(k, p) for k in range(num_codebooks) for p in range(flat.shape[2])]


def test_flatten_takes_all_codebooks_of_a_position_first() -> None:
    codes = torch.tensor([[[[0, 1], [2, 3]], [[10, 11], [12, 13]]]])
    pattern = Pattern("flatten", 2, (2, 2))
    assert pattern.to_sequence(codes)[0, :, 0].tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    assert pattern.codebook[:, 0].tolist() == [0, 1] * 4
    assert pattern.coordinates.tolist() == [[0, 0]] * 2 + [[0, 1]] * 2 + [[1, 0]] * 2 + [[1, 1]] * 2


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
