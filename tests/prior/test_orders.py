"""Priors of every order: exact likelihoods in any of them, and what is refused.

Left out: drawing in an order (`sampling/test_parallel.py`) and training in them
(`pipelines/training/test_orders.py`).
"""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.orders import first_to_last, in_order, in_raster, random_orders
from prior.patterns import PATTERNS, Pattern, steps_per_position
from tests.helpers.priors import PICTURE, SOUND, random_codes, random_prior

ANY = dataclasses.replace(PICTURE, order="any")
# Every pattern that has an order of positions, of one codebook and of several.
EVERY = [
    dataclasses.replace(config, order="any", pattern=pattern, num_codebooks=books)
    for config, books in ((PICTURE, 1), (SOUND, 2))
    for pattern in sorted(PATTERNS)
    if steps_per_position(pattern, books)
]
ORDERED = [config for config in EVERY if config.num_codebooks > 1 or config.pattern == "flatten"]


def orders(config: PriorConfig, count: int, seed: int = 0) -> Tensor:
    return random_orders(count, config.num_positions, torch.Generator().manual_seed(seed))


def test_the_patterns_whose_positions_can_change_places() -> None:
    found = {name: [steps_per_position(name, books) for books in (1, 2, 3)] for name in PATTERNS}
    known = {"flatten": [1, 2, 3], "parallel": [1, 1, 1], "depth": [1, 1, 1], "delay": [1, 0, 0]}
    assert known.items() <= found.items()
    for name in PATTERNS:
        for books, each in enumerate(found[name], 1):
            position = Pattern(name, books, (5,)).position
            alone = position.amax(dim=1).tolist()
            in_rows = bool(((position == -1) | (position == position.amax(dim=1, keepdim=True))).all())
            assert bool(each) == (in_rows and alone == sorted(list(range(5)) * (len(alone) // 5)))
            assert not each or len(alone) == 5 * each


def test_steps_follow_their_positions() -> None:
    order = torch.tensor([[2, 0, 1]])
    assert Pattern("flatten", 2, (3,)).steps_in(order).tolist() == [[4, 5, 0, 1, 2, 3]]
    assert Pattern("depth", 2, (3,)).steps_in(order).tolist() == [[2, 0, 1]]


def test_codes_are_put_in_order_and_back() -> None:
    codes = torch.tensor([[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]])
    order = torch.tensor([[3, 1, 0, 2], [0, 2, 3, 1]])
    assert in_order(codes, order).flatten(1).tolist() == [[3, 1, 0, 2], [4, 6, 7, 5]]
    assert torch.equal(in_raster(in_order(codes, order), order), codes)
    assert in_order(codes, order[:1]).flatten(1).tolist() == [[3, 1, 0, 2], [7, 5, 4, 6]]
    rank = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 2]])
    assert first_to_last(order, rank).tolist() == [[1, 2, 3, 0], [0, 1, 2, 3]]


def test_random_orders_are_those_of_their_seed_and_all_alike() -> None:
    found = random_orders(6000, 3, torch.Generator().manual_seed(0))
    assert torch.equal(found, random_orders(6000, 3, torch.Generator().manual_seed(0)))
    count = (found @ torch.tensor([9, 3, 1])).bincount()
    count = count[count > 0]
    assert len(count) == 6 and ((count - 1000) ** 2 / 1000.0).sum() < 20.5  # chi-square, 5 degrees, p = 0.001


@pytest.mark.parametrize("pattern", ["flatten", "parallel", "depth"])
def test_the_posterior_of_labels_is_bayes_rule_on_what_is_known(pattern: str) -> None:
    config = dataclasses.replace(ANY, codebook_size=2, num_codebooks=2, grid=(1, 2), pattern=pattern)
    prior = random_prior(config).double()
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 1, 2)
    classes = len(config.class_names)
    order = torch.tensor([1, 0])  # of position 1 first: what is known below
    joint = torch.stack([(-prior.nll(every, label, order)).exp() for label in range(classes)], dim=1)
    whole = torch.stack([(-prior.nll(every, label)).exp() for label in range(classes)], dim=1)
    torch.testing.assert_close(prior.label_posterior(every), whole / whole.sum(1, keepdim=True))
    mask = torch.tensor([[True, False]])
    found = prior.label_posterior(every, mask)
    for codes, row in zip(every, found, strict=True):
        alike = (every[..., 1] == codes[..., 1]).all(2).all(1)  # whatever is hidden
        summed = joint[alike].sum(0)
        torch.testing.assert_close(row, summed / summed.sum())
    partly = torch.tensor([[[[True, False]], [[False, False]]]]).expand(16, 2, 1, 2)
    assert torch.equal(prior.label_posterior(every, partly), found)  # the position does not count
    hidden = torch.stack([mask if i % 2 else ~mask for i in range(16)])  # another for each
    rows = prior.label_posterior(every, hidden)
    torch.testing.assert_close(rows[1::2], found[1::2])
    torch.testing.assert_close(rows[::2], prior.label_posterior(every, ~mask)[::2])
    nothing = prior.label_posterior(every[:1], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(nothing, torch.full_like(nothing, 1 / classes))
    assert prior.label_posterior(every[:0]).shape == (0, classes)


def test_a_posterior_of_labels_that_cannot_be_is_refused() -> None:
    codes, mask = random_codes(ANY, 2), torch.zeros(ANY.grid, dtype=torch.bool)
    with pytest.raises(ValueError, match="has no classes"):
        random_prior(dataclasses.replace(ANY, class_names=())).label_posterior(codes)
    with pytest.raises(ValueError, match=r"--model\.order any"):
        random_prior(PICTURE).label_posterior(codes, mask)
    with pytest.raises(ValueError, match="mask: expected bool"):
        random_prior(ANY).label_posterior(codes, mask.float())
    posterior = random_prior(PICTURE).label_posterior(codes)  # all that is known needs no order
    torch.testing.assert_close(posterior.sum(1), posterior.new_ones(2))


@pytest.mark.parametrize(("num_codebooks", "grid", "size"), [(1, (2, 2), 3), (2, (1, 2), 3), (2, (3,), 2)])
def test_probabilities_in_every_order_sum_to_one(
    num_codebooks: int, grid: tuple[int, ...], size: int
) -> None:
    for pattern in ("flatten", "parallel", "depth"):
        config = dataclasses.replace(
            ANY, codebook_size=size, num_codebooks=num_codebooks, grid=grid, pattern=pattern
        )
        every = torch.tensor(list(itertools.product(range(size), repeat=config.num_codes)))
        every, prior = every.view(-1, num_codebooks, *grid), random_prior(config)
        sums, seen = [], []
        for order in itertools.permutations(range(config.num_positions)):
            p = torch.exp(-prior.nll(every, 1, torch.tensor(order)))
            sums.append(p.sum().item())
            seen.append(p[0].item())
        assert sums == pytest.approx([1.0] * len(sums), abs=1e-12)
        assert len(set(seen)) == len(sums)  # each order is a model of its own


@pytest.mark.parametrize("config", EVERY)
def test_raster_is_one_of_the_orders(config: PriorConfig) -> None:
    prior, codes, label = random_prior(config).eval(), random_codes(config), torch.tensor([1, -1, 0])
    raster = torch.arange(config.num_positions)
    # A prior of raster order with the same weights: nothing else is different.
    plain = random_prior(dataclasses.replace(config, order="raster"))
    expected = plain.nll(codes, label)
    assert torch.equal(prior.nll(codes, label), expected)
    assert torch.equal(prior.nll(codes, label, raster), expected)
    assert torch.equal(prior(codes, label, raster.expand(3, -1)).nll.detach(), expected)
    assert all(map(torch.equal, prior.likelihood(codes, label, raster), plain.likelihood(codes, label)))


@pytest.mark.parametrize("config", ORDERED)
def test_an_order_for_each_example_is_that_order_alone(config: PriorConfig) -> None:
    prior, codes, label, order = (
        random_prior(config),
        random_codes(config),
        torch.tensor([1, -1, 0]),
        orders(config, 3),
    )
    together = prior.nll(codes, label, order)
    alone = [prior.nll(codes[i : i + 1], label[i : i + 1], order[i])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)
    assert (together - prior.nll(codes, label)).abs().min() > 1e-3
    assert torch.equal(prior.nll(codes.numpy(), label, order.to(torch.uint8).numpy()), together)


@pytest.mark.parametrize("config", ORDERED)
def test_a_code_sees_what_is_before_it_in_the_order(config: PriorConfig) -> None:
    prior, codes, order = random_prior(config), random_codes(config, 1), orders(config, 1)[0]
    before = prior.likelihood(codes, 1, order)
    torch.testing.assert_close(before.nats.sum(), prior.nll(codes, 1, order)[0], rtol=1e-12, atol=0)
    place = order.argsort()
    # Changing the codes of a position changes all that is predicted after it, where its own stand in raster.
    for position in (0, 2, config.num_positions - 1):
        other = codes.clone().flatten(2)
        other[0, :, position] = (other[0, :, position] + 1) % config.codebook_size
        after = prior.likelihood(other.view(codes.shape), 1, order).entropy
        moved = (after - before.entropy).abs().flatten(2)[0] > 1e-9
        later = place > place[position]
        assert bool(moved[:, later].all()) and not bool(moved[:, place < place[position]].any())
        assert not bool(moved[0, position])


def test_likelihoods_over_orders_are_those_of_each() -> None:
    prior, codes = random_prior(ANY), random_codes(ANY)
    found = prior.nll_over_orders(codes, "cat", 3, 7)
    assert found.shape == (3, 3)
    assert torch.equal(found, torch.stack([prior.nll(codes, "cat", order) for order in orders(ANY, 3, 7)]))
    assert torch.equal(prior.nll_over_orders(codes[:1], "cat", 3, 7), found[:, :1])
    with pytest.raises(ValueError, match="orders: expected 1 or more, got 0"):
        prior.nll_over_orders(codes, orders=0)


@pytest.mark.parametrize("config", ORDERED)
def test_gradients_reach_all_weights_in_any_order(config: PriorConfig) -> None:
    prior, codes = Prior(config), random_codes(config)
    out = prior(codes, torch.tensor([0, 1, -1]), orders(config, 3))
    assert out.losses["nll"].item() == pytest.approx(math.log(5), rel=1e-6)
    trained = random_prior(config)
    trained(codes, torch.tensor([0, 1, -1]), orders(config, 3)).losses["nll"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.parameters())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.arange(11), r"order: expected int64 of shape \(12,\) or \(3, 12\), got torch.int64 .*\(11,\)"),
        (torch.arange(12).expand(2, -1), r"order: expected .*\(3, 12\), got .*\(2, 12\)"),
        (torch.arange(12.0), "order: expected int64 .*float32"),
        (torch.zeros(12, dtype=torch.int64), "order: expected every position from 0 to 11 once"),
    ],
)
def test_orders_that_are_none_are_refused(order: Tensor, message: str) -> None:
    prior, codes = random_prior(ANY), random_codes(ANY)
    for call in (prior.nll, prior.likelihood, prior):
        with pytest.raises(ValueError, match=message):
            call(codes, None, order)  # type: ignore[operator]


def test_a_prior_of_raster_order_knows_no_other() -> None:
    prior, codes = random_prior(PICTURE), random_codes(PICTURE)
    with pytest.raises(ValueError, match=r"order needs .*knows raster order only.*--model.order any"):
        prior.nll(codes, order=torch.arange(12))
    with pytest.raises(ValueError, match=r"nll_over_orders needs .*--model.order any"):
        prior.nll_over_orders(codes)


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        (PICTURE, {"order": "spiral"}, "order: expected raster or any, got 'spiral'"),
        (SOUND, {"pattern": "delay"}, "order: any .*delay hold codes of several.*pattern depth"),
        (PICTURE, {"target_embedding": False}, "order: any needs target_embedding"),
        (PICTURE, {"rotary": "sequence"}, "order: any needs rotary grid, got sequence"),
    ],
)
def test_configs_without_orders_are_refused(
    config: PriorConfig, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **{"order": "any", **changed})


def test_it_is_no_llama() -> None:
    with pytest.raises(ValueError, match=r"every order \(order\).*order raster"):
        Prior(ANY).to_transformers()
