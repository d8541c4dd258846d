"""Inpainting: what is masked is drawn in order, given all before it; what is not masked stays.

Left out: sampling of whole examples, which is in test_generate.py.
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import PriorConfig
from prior.sampling.choice import Choice, draw
from tests.helpers.priors import ALL, PICTURE, SOUND, random_codes, random_prior, step_logits


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(config: PriorConfig, batch: int) -> Tensor:
    shape = (batch, config.num_codebooks, *config.grid)
    return torch.rand(shape, generator=generator(0)) < 0.4


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 2.5, "cfg_schedule": "linear", "min_p": 0.1}])
@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_it_equals_full_passes_without_a_cache(config: PriorConfig, options: dict[str, Any]) -> None:
    prior, codes, mask = random_prior(config), random_codes(config, 4), random_mask(config, 4)
    label = torch.tensor([0, 2, 1, -1])
    found = prior.inpaint(codes, mask, label, generator(), **options)
    choice, pattern = Choice(**options), prior.pattern
    uniform = torch.rand((4, pattern.num_steps, pattern.width), dtype=torch.float64, generator=generator())
    expected = codes.clone()
    for step, held in enumerate(pattern.layout()):
        for q, (book, position) in enumerate(held):
            if position >= 0:
                logits = step_logits(prior, expected, label)
                if choice.cfg_scale != 1:
                    other = step_logits(prior, expected, torch.full_like(label, -1))
                    logits = other + choice.guidance(step / (pattern.num_steps - 1)) * (logits - other)
                new = draw(choice.probabilities(logits[:, book, position]), uniform[:, step, q])
                flat = expected.view(4, config.num_codebooks, -1)
                masked = mask.view(4, config.num_codebooks, -1)[:, book, position]
                flat[:, book, position] = torch.where(masked, new, flat[:, book, position])
    assert torch.equal(found, expected)
    assert torch.equal(found[~mask], codes[~mask]) and not torch.equal(found, codes)


@pytest.mark.parametrize("config", [PICTURE, SOUND])
def test_everything_masked_is_sampling_and_nothing_masked_is_refused(config: PriorConfig) -> None:
    prior, codes = random_prior(config), random_codes(config)
    everything = torch.ones(config.grid, dtype=torch.bool)
    drawn = prior.inpaint(codes, everything, "dog", generator(), temperature=0.8, top_k=4)
    expected = prior.sample(3, "dog", generator=generator(), temperature=0.8, top_k=4)
    assert torch.equal(drawn, expected)
    with pytest.raises(ValueError, match=r"mask: expected true somewhere.*hides nothing"):
        prior.inpaint(codes, ~everything, "dog", generator())


def test_masks_of_all_forms() -> None:
    config = dataclasses.replace(PICTURE, num_codebooks=2)
    prior, codes = random_prior(config), random_codes(config)
    grid = torch.rand(config.grid, generator=generator(1)) < 0.5
    expected = prior.inpaint(codes, grid, generator=generator())
    for mask in (grid.expand(3, 3, 4), grid.expand(3, 2, 3, 4)):
        assert torch.equal(prior.inpaint(codes, mask, generator=generator()), expected)
    one = torch.zeros(3, 3, 4, dtype=torch.bool)
    one[1] = True
    found = prior.inpaint(codes, one, generator=generator())
    assert torch.equal(found[[0, 2]], codes[[0, 2]]) and not torch.equal(found[1], codes[1])


def test_the_last_codes_have_the_frequencies_that_nll_says() -> None:
    config = dataclasses.replace(PICTURE, codebook_size=3, grid=(1, 3))
    prior = random_prior(config, seed=3)
    fixed, count = 2, 20000
    every = torch.tensor([[fixed, a, b] for a, b in itertools.product(range(3), repeat=2)])
    joint = torch.exp(-prior.nll(every.view(-1, 1, 1, 3), "dog"))
    expected = count * joint / joint.sum()
    mask = torch.tensor([[False, True, True]])
    codes = torch.full((count, 1, 1, 3), fixed)
    drawn = prior.inpaint(codes, mask, "dog", generator(0)).flatten(1)
    found = (drawn[:, 1:] @ torch.tensor([3, 1])).bincount(minlength=9)
    assert ((found - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(3, 4),
            r"mask: expected bool of one of the shapes \(3, 4\), \(2, 3, 4\), \(2, 1, 3, 4\)",
        ),
        (torch.zeros(4, 3, dtype=torch.bool), r"mask: .* got torch.bool of \(4, 3\)"),
        (torch.tensor(True), r"mask: .* got torch.bool of \(\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, message: str) -> None:
    prior = random_prior(PICTURE)
    with pytest.raises(ValueError, match=message):
        prior.inpaint(random_codes(PICTURE, 2), mask)


def test_bad_codes_and_options_are_refused() -> None:
    prior, mask = random_prior(PICTURE), torch.ones(3, 4, dtype=torch.bool)
    for codes, options, message in [
        (random_codes(PICTURE) + 5, {}, "codes: expected 0 to 4, got 5 to 9.*tokenizer"),
        (random_codes(SOUND), {}, r"codes: expected int64 of shape \(B, 1, 3, 4\)"),
        (random_codes(PICTURE)[:0], {}, "codes: expected 1 example or more, got 0"),
        (random_codes(PICTURE), {"label": "frog"}, "label: .*'frog'.*cat, dog, owl"),
        (random_codes(PICTURE), {"top_k": 6}, "top_k: expected 1 to 5 .*got 6"),
        (random_codes(PICTURE), {"cfg_scale": 2.0}, r"cfg_scale=2\.0 .*label.*cfg_scale=1"),
        (random_codes(PICTURE), {"generator": [generator()]}, "generator: expected one .* 3 .*, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            prior.inpaint(codes, mask, **options)  # type: ignore[arg-type]
