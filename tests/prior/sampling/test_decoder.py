"""The decoder: one step after the other gives what whole passes give, in every form of the weights."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.patterns import PATTERNS
from prior.sampling.weights import WEIGHTS, Int8
from tests.helpers.decoders import CONFIG, DEPTH, VARIANTS, both_logits, codes_of, random_prior


@pytest.mark.parametrize("config", [*VARIANTS, DEPTH])
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("weights", "off"), [("full", 1e-5), ("bf16", 0.05), ("int8", 0.05)])
def test_steps_give_what_whole_passes_give(
    config: PriorConfig, first: int, batch: int, weights: str, off: float
) -> None:
    ours, whole = both_logits(random_prior(config), weights, batch, first)
    error = (ours - whole).std() / whole.std()
    assert error < off
    assert weights == "full" or error > 1e-4  # it is another form


def test_weights_of_bf16_stay_so() -> None:
    prior = random_prior().bfloat16()
    ours, whole = both_logits(prior, "full", 5, 1)
    assert ours.dtype == torch.float32
    assert (ours - whole.float()).std() / whole.float().std() < 0.05


def test_int8_rounds_to_the_nearest_step() -> None:
    weight = (
        torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 5)[:, None]
    )
    weight[2] = 0
    matrix = Int8(weight)
    back = matrix.weight.float() * matrix.scale[:, None].float()
    # Half a step, and for the largest what rounding of the scale cuts off.
    assert bool(((back - weight).abs() <= 0.75 * matrix.scale[:, None].float()).all())
    assert bool((back[2] == 0).all())
    eye = torch.eye(32)
    assert torch.equal(matrix(eye).float(), back.T.bfloat16().float())


@pytest.mark.parametrize("width", [6, 16, 24, 40])
@pytest.mark.parametrize("rows", [1, 3])
def test_int8_takes_rows_of_any_width(width: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(33, width, generator=generator), torch.randn(rows, width, generator=generator)
    assert (Int8(weight)(x).float() - x @ weight.T).abs().max() < 0.2


def sampled(prior: Prior, batch: int, parts: list[int]) -> Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    drawn, start = [], 0
    for part in parts:
        drawn.append(prior.sample(part, 1, generator=generators[start : start + part], cfg_scale=1.5))
        start += part
    return torch.cat(drawn)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_codes_do_not_depend_on_how_the_batch_is_split(pattern: str) -> None:
    prior = random_prior(dataclasses.replace(CONFIG, num_codebooks=2, pattern=pattern))
    exact = prior.double()
    whole = sampled(exact, 6, [6])
    for parts in ([1] * 6, [2, 4], [5, 1]):
        assert torch.equal(sampled(exact, 6, parts), whole)


def test_one_table_of_chance_serves_all_parts_of_a_batch() -> None:
    prior = random_prior().double()
    whole = prior.sample(6, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(torch.cat([prior.sample(n, generator=generator) for n in (1, 3, 2)]), whole)


def test_in_float32_hardly_a_code_depends_on_the_split() -> None:
    prior = random_prior()
    whole = sampled(prior, 64, [64])
    # A code differs where a uniform number falls between two roundings of one cumulative sum; those after it
    # follow from another past.
    different = (sampled(prior, 64, [1] * 64) != whole).flatten(1).any(1).float().mean()
    assert different < 0.05


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_copy_for_sampling_is_a_prior_with_weights_of_its_own(weights: Any) -> None:
    prior = random_prior()
    fast = prior.for_sampling(weights)

    def sample(model: Prior) -> Tensor:
        return model.sample(1, "b", generator=torch.Generator().manual_seed(0))

    before = sample(fast)
    assert prior.prepared is None
    if weights == "full":
        assert torch.equal(before, sample(prior))
    codes = codes_of(CONFIG, 2)
    assert torch.equal(fast.nll(codes, 1), prior.nll(codes, 1))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1] = True
    assert torch.equal(fast.inpaint(codes, mask)[:, :, 2:], codes[:, :, 2:])
    assert fast.prepared is not None  # and they serve the next call
    assert fast.prepared.of(fast, 1) is fast.prepared.of(fast, 2)


def test_what_another_device_has_not_is_refused() -> None:
    prior = random_prior().to("meta")
    with pytest.raises(ValueError, match=r"weights: int8.*CPUs.*meta.*bf16"):
        prior.for_sampling("int8")
    with pytest.raises(ValueError, match=r"compile: .*CPUs.*CUDA.*meta.*leave"):
        prior.for_sampling(compile=True)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights: unknown 'int4'; known: full, bf16, int8"):
        random_prior().for_sampling("int4")  # type: ignore[arg-type]
