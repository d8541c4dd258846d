"""Filtering of logits and drawing, against distributions worked out by hand.

Left out: sampling from a model, which is in test_generate.py.
"""

import math

import pytest
import torch

from prior import PriorConfig
from prior.sampling.choice import Choice, draw, probabilities

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 1e-310}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.8}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1e-12}, [0, 1, 0, 0]),
        # top-p counts shares of what top-k left: 4/7 reaches 0.5.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
        # min-p compares with the most likely code, whatever the others cut.
        ({"min_p": 0.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"min_p": 0.26}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"min_p": 0.74}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.26, "temperature": 0.5}, [0, 16 / 25, 0, 9 / 25]),
        ({"min_p": 0.6, "top_k": 3}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 0.6, "top_p": 0.95}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_filters(options: dict[str, float], expected: list[float]) -> None:
    found = probabilities(P.log() + 3, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_filters_treat_rows_apart_and_take_the_lower_of_equals() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 5.0, 5.0]])
    assert probabilities(logits, top_k=1).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert probabilities(logits, temperature=0).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_draw_inverts_the_cumulative_sum() -> None:
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    below_one = math.nextafter(1.0, 0.0)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, below_one], dtype=torch.float64)
    assert draw(probs.expand(6, -1), uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_a_code_of_no_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(2000, 7, generator=generator, dtype=torch.float64)
    probs = probs * (torch.rand(2000, 7, generator=generator) < 0.3)
    probs[:, 2] += 1e-9
    probs[:, -1] = 0
    probs = probs / probs.sum(dim=1, keepdim=True)
    for level in (0.0, 0.5, math.nextafter(1.0, 0.0)):
        codes = draw(probs, torch.full((2000,), level, dtype=torch.float64))
        assert (probs.gather(1, codes[:, None]) > 0).all()


def test_draw_has_the_right_frequencies() -> None:
    uniform = torch.rand(40000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    counts = draw(P.expand(40000, -1), uniform).bincount(minlength=4)
    expected = 40000 * P[0]
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("temperature", -0.1),
            ("temperature", math.nan),
            ("temperature", math.inf),
            ("top_k", 0),
            ("top_k", 9),
        ],
        *[("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("cfg_scale", -1.0), ("cfg_scale", math.nan)],
        *[("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan)],
    ],
)
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
        Choice(**{name: value}).check(PriorConfig(codebook_size=8))  # type: ignore[arg-type]


def test_guidance_follows_its_schedule() -> None:
    halfway = {"constant": 3.0, "linear": 2.0, "cosine": 2.0}
    for schedule, middle in halfway.items():
        choice = Choice(cfg_scale=3.0, cfg_schedule=schedule)
        assert choice.guidance(0.5) == pytest.approx(middle)
        assert choice.guidance(1.0) == pytest.approx(3.0)
        assert choice.guidance(0.0) == (3.0 if schedule == "constant" else 1.0)
    assert Choice(cfg_scale=3.0, cfg_schedule="cosine").guidance(0.25) < 1.5
    with pytest.raises(ValueError, match="cfg_schedule: unknown 'steep'; known: constant, linear, cosine"):
        Choice(cfg_schedule="steep")
