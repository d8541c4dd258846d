"""Drawing in any order: as many steps as positions draw what one by one draws, few draw what full passes say;
holes given all around them; chance by position; callbacks.

Left out: raster order (`test_generate.py`, `test_inpainting.py`), and likelihoods in any order
(`../test_orders.py`).
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.orders import first_to_last, in_order, in_raster
from prior.sampling.choice import Choice, draw
from prior.sampling.parallel import group_sizes
from tests.helpers.priors import random_codes, random_prior
from tests.prior.test_orders import ANY, ORDERED, orders

# In one step for each position, at most: what can be drawn in fewer.
PARALLEL = [config for config in ORDERED if config.num_codebooks == 1 or config.pattern != "flatten"]
GUIDED = {"cfg_scale": 2.5, "cfg_schedule": "linear", "temperature": 0.8, "top_k": 4, "min_p": 0.01}


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def chance(prior: Prior, *numbers: int) -> tuple[Tensor, Tensor]:
    """Of these seeds, what codes (B, S, Q) and positions (B, P) are chosen by."""
    pattern, positions = prior.pattern, prior.config.num_positions
    count = pattern.num_steps * pattern.width
    drawn = [torch.rand(count + positions, dtype=torch.float64, generator=g) for g in seeds(*numbers)]
    both = torch.stack(drawn)
    return both[:, :count].view(len(both), pattern.num_steps, pattern.width), both[:, count:]


def logits_in(prior: Prior, codes: Tensor, label: Tensor, order: Tensor) -> Tensor:
    """Logits (B, K, P, N) in raster layout of a full pass in `order` (B, P), without a cache."""
    found = in_order(codes, order)
    sequence = prior.pattern.to_sequence(found)
    hidden = prior.hidden(prior.inputs(sequence[:, :-1], label), 0.0, order)
    wide = prior.by_codebook(hidden, found)
    logits = torch.einsum("kmd,knd->kmn", wide, prior.head).detach()
    logits = logits.view(len(logits), len(codes), -1, logits.shape[-1]).permute(1, 3, 0, 2)
    return in_raster(logits.flatten(1, 2), order).view(logits.shape).permute(0, 2, 3, 1)


def uncached(
    prior: Prior,
    codes: Tensor,
    free: Tensor,
    label: Tensor,
    order: Tensor,
    known: int,
    groups: list[int],
    uniform: Tensor,
    **options: Any,
) -> Tensor:
    """Groups of positions, each by full passes over all codes in which one after the other comes next."""
    choice, books = Choice(**options), prior.config.num_codebooks
    codes, free, start = codes.clone().flatten(2), free.flatten(2), known
    for size in groups:
        found = {}
        for i in range(start, start + size):
            # The codes known so far, then position i of the order.
            turned = torch.cat(
                [order[:, :start], order[:, i : i + 1], order[:, start:i], order[:, i + 1 :]], 1
            )
            own = codes.clone()
            for book in range(books):
                grid = own.view(len(own), books, *prior.config.grid)
                logits = logits_in(prior, grid, label, turned)
                if choice.cfg_scale != 1:
                    other = logits_in(prior, grid, torch.full_like(label, -1), turned)
                    share = start / (prior.config.num_positions - 1)
                    logits = other + choice.guidance(share) * (logits - other)
                place = order[:, i, None]
                here = logits[:, book].gather(1, place[..., None].expand(-1, -1, logits.shape[-1]))[:, 0]
                number = uniform.gather(1, place[..., None].expand(-1, -1, uniform.shape[2]))[:, 0, book]
                new = draw(choice.probabilities(here), number)[:, None]
                old = own[:, book].gather(1, place)
                new = new.where(free[:, book].gather(1, place), old)
                own[:, book] = own[:, book].scatter(1, place, new)
            found[i] = own
        for i, own in found.items():
            place = order[:, None, i : i + 1].expand(-1, books, -1)
            codes.scatter_(2, place, own.gather(2, place))
        start += size
    return codes.view(len(codes), books, *prior.config.grid)


def test_groups_are_as_many_as_steps_and_grow() -> None:
    assert group_sizes(49, 8) == [1, 3, 5, 6, 7, 9, 9, 9]
    for count, steps in [(49, 16), (49, 49), (7, 6), (5, 1), (256, 8)]:
        sizes = group_sizes(count, steps)
        assert len(sizes) == steps and sum(sizes) == count and min(sizes) >= 1
        assert sizes[-1] >= sizes[0]
    assert group_sizes(3, 8) == group_sizes(3, 3) == [1, 1, 1]


@pytest.mark.parametrize("config", PARALLEL)
@pytest.mark.parametrize("options", [{}, GUIDED])
def test_a_step_for_each_position_is_one_by_one(config: PriorConfig, options: dict[str, Any]) -> None:
    prior, label = random_prior(config), [0, 2, 1]
    _, noise = chance(prior, 1, 2, 3)
    order = noise.argsort(dim=1, descending=True)
    expected = prior.sample(3, label, order=order, generator=seeds(1, 2, 3), **options)
    assert expected.unique().numel() > 2
    for named in ({"order": "random"}, {"steps": config.num_positions}):
        assert torch.equal(prior.sample(3, label, generator=seeds(1, 2, 3), **named, **options), expected)
    given = prior.sample(
        3, label, steps=config.num_positions, order=order, generator=seeds(1, 2, 3), **options
    )
    assert torch.equal(given, expected)
    # Noise without end leaves nothing of confidence.
    noisy = prior.sample(
        3, label, order="confidence", choice_temperature=1e9, generator=seeds(1, 2, 3), **options
    )
    assert torch.equal(noisy, expected)


@pytest.mark.parametrize("config", ORDERED)
@pytest.mark.parametrize("options", [{}, GUIDED])
def test_one_by_one_in_an_order_equals_full_passes(config: PriorConfig, options: dict[str, Any]) -> None:
    prior, label, order = random_prior(config), torch.tensor([0, 2, -1]), orders(config, 3)
    numbers, _ = chance(prior, 1, 2, 3)
    found = prior.sample(3, label, order=order, generator=seeds(1, 2, 3), **options)
    expected = torch.zeros_like(found).flatten(2)
    choice, each = Choice(**options), prior.pattern.steps_per_position
    for place, book in itertools.product(range(config.num_positions), range(config.num_codebooks)):
        grid = expected.view(found.shape)
        logits = logits_in(prior, grid, label, order)
        if choice.cfg_scale != 1:
            other = logits_in(prior, grid, torch.full_like(label, -1), order)
            step = place * each + (book if each > 1 else 0)
            logits = other + choice.guidance(step / (prior.pattern.num_steps - 1)) * (logits - other)
        for row in range(3):
            position = int(order[row, place])
            step, q = (position * each + book, 0) if each > 1 else (position, book)
            expected[row, book, position] = draw(
                choice.probabilities(logits[row : row + 1, book, position]), numbers[row : row + 1, step, q]
            )
    assert torch.equal(found, expected.view(found.shape))
    shared = prior.sample(3, label, order=order[0], generator=seeds(1, 2, 3), **options)
    assert torch.equal(shared[:1], found[:1])


@pytest.mark.parametrize("config", PARALLEL)
@pytest.mark.parametrize("options", [{}, GUIDED])
def test_few_steps_equal_full_passes(config: PriorConfig, options: dict[str, Any]) -> None:
    prior, label, order = random_prior(config), torch.tensor([0, 2, -1]), orders(config, 3)
    uniform, _ = chance(prior, 1, 2, 3)
    found = prior.sample(3, label, order=order, steps=3, generator=seeds(1, 2, 3), **options)
    codes = torch.zeros_like(found)
    groups = group_sizes(config.num_positions, 3)
    free = torch.ones_like(codes, dtype=torch.bool)
    assert torch.equal(found, uncached(prior, codes, free, label, order, 0, groups, uniform, **options))


def test_confidence_takes_the_likeliest_positions_first() -> None:
    prior, label = random_prior(ANY), torch.tensor([0, 2])
    uniform, _ = chance(prior, 1, 2)
    seen: list[Tensor] = []
    options: Any = {"steps": 3, "order": "confidence", "choice_temperature": 0.0}
    found = prior.sample(
        2, label, generator=seeds(1, 2), on_step=lambda codes, *_: seen.append(codes.clone()), **options
    )
    assert torch.equal(seen[-1], found)
    # In the first step every position is predicted from the class alone.
    first = seen[0].flatten(1) >= 0
    for row in range(2):
        scores = []
        for position in range(12):
            order = first_to_last(torch.arange(12)[None], (torch.arange(12) != position).long()[None])
            logits = logits_in(prior, found[row : row + 1], label[row : row + 1], order)[0, 0, position]
            code = draw(logits[None].softmax(-1), uniform[row : row + 1, position, 0])
            scores.append(logits.log_softmax(-1)[code].item())
        size = group_sizes(12, 3)[0]
        expected = torch.tensor(scores).topk(size).indices
        assert sorted(first[row].nonzero()[:, 0].tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("named", ["random", "confidence"])
@pytest.mark.parametrize("config", [PARALLEL[0], PARALLEL[-1]])
def test_a_seed_decides_whatever_the_batch(config: PriorConfig, named: Any) -> None:
    prior = random_prior(config)

    def sample(count: int, generator: Any) -> Tensor:
        return prior.sample(count, "cat", steps=3, order=named, generator=generator, cfg_scale=1.5)

    whole, one = sample(5, 7), torch.Generator().manual_seed(7)
    assert torch.equal(torch.cat([sample(2, one), sample(3, one)]), whole)
    alone = [sample(1, seeds(i)) for i in (3, 4)]
    assert torch.equal(sample(2, seeds(3, 4)), torch.cat(alone))
    assert not torch.equal(sample(5, 8), whole)
    for weights in ("full", "bf16"):
        ready = prior.float().for_sampling(weights)
        drawn = ready.sample(5, "cat", steps=3, order=named, generator=7, cfg_scale=1.5)
        assert drawn.min() >= 0 and (weights == "bf16" or torch.equal(drawn, whole))


def masks(config: PriorConfig) -> Tensor:
    """Of three examples (3, K, *grid): a hole in the middle, scattered codes, and nothing."""
    mask = torch.zeros(3, config.num_codebooks, *config.grid, dtype=torch.bool)
    mask[0].flatten(1)[:, 2:5] = True
    mask[1] = torch.rand(mask[1].shape, generator=torch.Generator().manual_seed(0)) < 0.4
    return mask


@pytest.mark.parametrize("config", ORDERED)
def test_holes_are_filled_given_all_around_them(config: PriorConfig) -> None:
    prior, codes, mask, label = (
        random_prior(config),
        random_codes(config),
        masks(config),
        torch.tensor([0, 1, 2]),
    )
    found = prior.inpaint(codes, mask, label, seeds(1, 2, 3))
    assert torch.equal(found[~mask], codes[~mask]) and not torch.equal(found, codes)
    fate = mask.any(1).flatten(1).long()
    order = first_to_last(torch.arange(config.num_positions)[None], fate)
    for row in range(3):
        alone = (
            prior.inpaint(codes[row : row + 1], mask[row : row + 1], label[row], seeds(row + 1))
            if row < 2
            else codes[2:]
        )
        assert torch.equal(found[row : row + 1], alone)
    # What comes after a hole decides what is in it.
    other = codes.clone()
    other.flatten(2)[0, :, -1] = (other.flatten(2)[0, :, -1] + 1) % config.codebook_size
    before = prior.likelihood(codes, label, order).nats.flatten(2)[0, :, 2]
    assert (prior.likelihood(other, label, order).nats.flatten(2)[0, :, 2] - before).abs().min() > 1e-9
    if config in PARALLEL:
        for steps in (config.num_positions, 2):
            filled = prior.inpaint(codes, mask, label, seeds(1, 2, 3), steps=steps)
            assert torch.equal(filled[~mask], codes[~mask]) and not torch.equal(filled, codes)
            alone = prior.inpaint(codes[:1], mask[:1], 0, seeds(1), steps=steps)
            assert torch.equal(filled[:1], alone)


@pytest.mark.parametrize("config", PARALLEL)
def test_holes_in_few_steps_equal_full_passes(config: PriorConfig) -> None:
    prior, codes, mask, label = (
        random_prior(config),
        random_codes(config),
        masks(config),
        torch.tensor([0, 1, 2]),
    )
    found = prior.inpaint(codes, mask, label, seeds(1, 2, 3), steps=2, order="random")
    uniform, noise = chance(prior, 1, 2, 3)
    for row in range(2):
        fate = mask[row].any(0).flatten().long()[None]
        known, count = int((fate == 0).sum()), int(fate.sum())
        key = torch.where(fate == 0, torch.arange(config.num_positions) - 1000.0, 1 - noise[row : row + 1])
        order = key.argsort(dim=1)
        one = slice(row, row + 1)
        groups = group_sizes(count, 2)
        expected = uncached(prior, codes[one], mask[one], label[one], order, known, groups, uniform[one])
        assert torch.equal(found[one], expected)


@pytest.mark.parametrize("config", [PARALLEL[0], PARALLEL[-1]])
def test_a_prefix_is_known_and_a_size_is_all_there_is(config: PriorConfig) -> None:
    prior, prefix = random_prior(config), random_codes(config, 3)[:, :, :1]
    whole = prior.sample(3, 1, prefix, steps=2, generator=seeds(1, 2, 3))
    mask = torch.ones(config.grid, dtype=torch.bool)
    mask[0] = False
    codes = torch.zeros_like(whole)
    codes[:, :, :1] = prefix
    assert torch.equal(whole, prior.inpaint(codes, mask, 1, seeds(1, 2, 3), steps=2))
    seen: list[Tensor] = []
    for how in ({"steps": 2}, {"order": torch.arange(config.num_positions).flip(0)}):
        part = prior.sample(
            3, 1, prefix, size=2, generator=seeds(1, 2, 3), on_step=lambda c, *_: seen.append(c), **how
        )
        assert part.shape[2] == 2 and torch.equal(part[:, :, :1], prefix) and part.min() >= 0
        assert torch.equal(seen[-1], part)
    longer = prior.sample_long(2, config.grid[0] + 1, 1, generator=3, steps=2, order="confidence")
    assert longer.shape[2] == config.grid[0] + 1 and longer.min() >= 0


@pytest.mark.parametrize(
    ("how", "steps"),
    [({}, 12), ({"steps": 3}, 3), ({"order": torch.arange(12).flip(0)}, 12), ({"order": "confidence"}, 12)],
)
def test_callbacks_see_every_step_and_may_stop(how: dict[str, Any], steps: int) -> None:
    prior = random_prior(ANY)
    told: list[tuple[Tensor, int, int]] = []

    def note(codes: Tensor, done: int, total: int) -> bool | None:
        told.append((codes.clone(), done, total))
        return None

    def stop(codes: Tensor, done: int, total: int) -> bool:
        return done == 2

    plain = prior.sample(2, 1, generator=5, cfg_scale=2.0, **how)
    found = prior.sample(2, 1, generator=5, cfg_scale=2.0, on_step=note, **how)
    assert torch.equal(found, plain) and torch.equal(told[-1][0], found)
    assert [(done, total) for _, done, total in told] == [(i + 1, steps) for i in range(steps)]
    for codes, _, _ in told:
        assert torch.equal(codes[codes >= 0], found[codes >= 0])
    left = [int((codes < 0).sum()) for codes, _, _ in told]
    assert left == sorted(left, reverse=True) and left[0] < 24 and left[-1] == 0
    assert torch.equal(prior.sample(2, 1, generator=5, cfg_scale=2.0, on_step=stop, **how), told[1][0])


def test_callbacks_of_holes_and_of_compiled_steps() -> None:
    prior, codes = random_prior(ANY).float(), random_codes(ANY)
    for config, steps in ((ANY, None), (ANY, 2), (dataclasses.replace(ANY, order="raster"), None)):
        told: list[Tensor] = []
        mask = masks(ANY)
        found = random_prior(config).inpaint(
            codes, mask, 1, 3, steps=steps, on_step=lambda c, *_, told=told: told.append(c.clone())
        )
        assert all(torch.equal(c[~mask], codes[~mask]) for c in told) and torch.equal(told[-1], found)
        assert (told[0][mask] < 0).any()
    told = []
    drawn = prior.for_sampling().sample(2, 1, generator=1, on_step=lambda c, *_: told.append(c.clone()))
    assert len(told) == 12 and torch.equal(told[-1], drawn)


def test_samples_have_the_frequencies_that_orders_say() -> None:
    config = dataclasses.replace(ANY, codebook_size=3, grid=(1, 2))
    prior, count = random_prior(config, seed=3), 20000
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 1, 2)
    # Random orders: of both, each half the time.
    p = torch.stack([torch.exp(-prior.nll(every, "dog", torch.tensor(o))) for o in ([0, 1], [1, 0])]).mean(0)
    codes = prior.sample(count, "dog", steps=2, generator=0).flatten(1)
    found = (codes @ torch.tensor([3, 1])).bincount(minlength=9)
    assert ((found - count * p) ** 2 / (count * p)).sum() < 26.1  # chi-square, 8 degrees, p = 0.001


@pytest.mark.parametrize(
    ("config", "how", "message"),
    [
        (ANY, {"steps": 0}, "steps: expected 1 or more, .*got 0"),
        (ANY, {"steps": 13}, r"steps: expected 1 to 12 \(the positions of the grid\), got 13"),
        (ANY, {"order": "spiral"}, "order: unknown 'spiral'; known: random, confidence"),
        (ANY, {"order": torch.zeros(12, dtype=torch.int64)}, "order: expected every position"),
        (
            ANY,
            {"steps": 2, "order": "confidence", "choice_temperature": -1.0},
            "choice_temperature: expected 0",
        ),
        (ANY, {"steps": 2, "choice_temperature": 2.0}, r"choice_temperature=2\.0 is for order confidence"),
        (dataclasses.replace(ANY, order="raster"), {"steps": 2}, r"steps needs .*--model\.order any"),
        (
            dataclasses.replace(ANY, order="raster"),
            {"order": "random"},
            r"order random needs .*--model\.order any",
        ),
        (
            dataclasses.replace(ANY, num_codebooks=2),
            {"steps": 2},
            r"pattern flatten .*2 codebooks.*pattern depth",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(config: PriorConfig, how: dict[str, Any], message: str) -> None:
    prior, codes = random_prior(config), random_codes(config)
    with pytest.raises(ValueError, match=message):
        prior.sample(3, **how)
    if not isinstance(how.get("order"), Tensor):
        with pytest.raises(ValueError, match=message):
            prior.inpaint(codes, torch.ones(config.grid, dtype=torch.bool), **how)
