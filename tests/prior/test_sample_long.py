"""`sample_long`: windows that overlap, their streams of chance, and what is refused.

Left out: sampling within a window, which is in sampling/test_generate.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.priors import SOUND, random_codes, random_prior

PRIOR = random_prior(SOUND, seed=2, scale=0.5)  # windows of 6 frames


def draw(batch_size: int, frames: int, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PRIOR.sample_long(batch_size, frames, label="dog", generator=generator, **options)


def test_windows_begin_with_the_end_of_what_is_there() -> None:
    codes = draw(2, 14, overlap=4, temperature=0.0)
    expected = PRIOR.sample(2, "dog", temperature=0.0)
    while expected.shape[2] < 14:
        window = PRIOR.sample(2, "dog", prefix=expected[:, :, -4:], temperature=0.0)
        expected = torch.cat([expected, window[:, :, 4:]], dim=2)
    assert codes.dtype == torch.int64 and codes.shape == (2, 2, 14)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("overlap", [None, 0, 1, 5])
def test_the_beginning_does_not_depend_on_the_length(overlap: int | None) -> None:
    longest = draw(3, 20, overlap=overlap)
    assert longest.unique().numel() == 5
    for frames in (1, 5, 6, 7, 9, 13, 19):
        assert torch.equal(draw(3, frames, overlap=overlap), longest[:, :, :frames])
    assert torch.equal(draw(3, 20, overlap=3), draw(3, 20))  # half of the window unless it is given


def test_examples_do_not_depend_on_the_batch() -> None:
    together = draw(4, 13)
    assert len({tuple(c.flatten().tolist()) for c in together}) == 4
    generator = torch.Generator().manual_seed(0)
    parts = [PRIOR.sample_long(n, 13, "dog", generator=generator) for n in (3, 1)]
    assert torch.equal(torch.cat(parts), together)
    assert not torch.equal(draw(4, 13, seed=1), together)


def test_without_a_generator_the_global_one_decides() -> None:
    torch.manual_seed(3)
    first = PRIOR.sample_long(2, 9)
    torch.manual_seed(3)
    assert torch.equal(PRIOR.sample_long(2, 9), first)
    assert not torch.equal(PRIOR.sample_long(2, 9), first)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 11])
def test_a_prefix_of_any_length_is_continued(length: int) -> None:
    prefix = torch.cat([random_codes(SOUND, 1), random_codes(SOUND, 1, seed=1)], dim=2)[:, :, :length]
    codes = draw(2, 12, prefix=prefix, temperature=0.0)
    assert torch.equal(codes[:, :, :length], prefix.expand(2, -1, -1))
    # Seen whole if the window has room for more, else its last half.
    seen = prefix if length < 6 else prefix[:, :, -3:]
    window = PRIOR.sample(2, "dog", prefix=seen, temperature=0.0)[:, :, seen.shape[2] :]
    count = min(window.shape[2], 12 - length)
    assert torch.equal(codes[:, :, length : length + count], window[:, :, :count])
    assert torch.equal(draw(1, length, prefix=prefix), prefix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"frames": 0}, "frames: expected 1 or more, got 0"),
        ({"overlap": 6}, r"overlap: expected 0 to 5 .* 6\), got 6"),
        ({"overlap": -1}, "overlap: expected 0 to 5 .*got -1"),
        (
            {"prefix": torch.zeros(1, 2, 8, dtype=torch.int64), "frames": 7},
            r"frames: expected 8 .*prefix.*, got 7",
        ),
        ({"prefix": torch.full((1, 2, 8), 5)}, "prefix: expected 0 to 4, got 5 to 5"),
        ({"prefix": torch.zeros(1, 3, 8, dtype=torch.int64)}, r"prefix: expected int64 of shape \(B, 2, 8\)"),
        ({"prefix": torch.zeros(3, 2, 8, dtype=torch.int64)}, "prefix: expected 1 or 2 examples, got 3"),
        (
            {"prefix": torch.zeros(2, 8, dtype=torch.int64)},
            r"prefix: expected int64 .*\(B, 2, 0\), got .*\(2, 8\)",
        ),
        ({"label": "frog"}, "unknown class 'frog'"),
        ({"temperature": -1.0}, "temperature: expected 0 .*got -1"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRIOR.sample_long(**{"batch_size": 2, "frames": 12, **options})
