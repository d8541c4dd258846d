"""The prior draws what it says is likely: cached as uncached, guided, from a prefix, by seeds.

Left out: how a code is chosen (`test_choice.py`), and the steps' weights (`test_decoder.py`).
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import Prior, PriorConfig
from prior.patterns import PATTERNS
from prior.sampling.choice import draw, probabilities
from prior.sampling.decoder import Decoder
from tests.helpers.priors import ALL, PICTURE, SOUND, random_codes, random_prior, step_logits


def test_samples_have_the_frequencies_that_nll_says() -> None:
    config = dataclasses.replace(PICTURE, codebook_size=3, grid=(1, 2))
    prior = random_prior(config, seed=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    count = 20000
    expected = count * torch.exp(-prior.nll(every.view(-1, 1, 1, 2), "dog"))
    codes = prior.sample(count, "dog", generator=torch.Generator().manual_seed(0)).flatten(1)
    found = (codes @ torch.tensor([3, 1])).bincount(minlength=9)
    assert ((found - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001
    swapped = expected.view(3, 3).T.flatten()
    assert ((found - swapped) ** 2 / swapped).sum() > 100


def uncached(prior: Prior, label: Tensor, uniform: Tensor, cfg_scale: float = 1.0, **options: Any) -> Tensor:
    """Sampling as slow and as plain as it can be: a full pass over all codes for every code."""
    config = prior.config
    codes = torch.zeros((len(label), config.num_codebooks, *config.grid), dtype=torch.int64)
    for step, held in enumerate(prior.pattern.layout()):
        for q, (book, position) in enumerate(held):
            if position >= 0:
                logits = step_logits(prior, codes, label)
                if cfg_scale != 1:
                    other = step_logits(prior, codes, torch.full_like(label, -1))
                    logits = other + cfg_scale * (logits - other)
                chosen = draw(probabilities(logits[:, book, position], **options), uniform[:, step, q])
                codes.view(len(label), config.num_codebooks, -1)[:, book, position] = chosen
    return codes


@pytest.mark.parametrize("config", [PICTURE, SOUND])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}, {"cfg_scale": 2.5}],
)
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_cached_sampling_equals_uncached(config: PriorConfig, options: dict[str, Any], pattern: str) -> None:
    prior = random_prior(dataclasses.replace(config, pattern=pattern))
    label = torch.tensor([0, 2, 1, -1])
    codes = prior.sample(4, label, generator=torch.Generator().manual_seed(5), **options)
    shape = (4, prior.pattern.num_steps, prior.pattern.width)
    uniform = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert codes.dtype == torch.int64 and codes.unique().numel() > 1
    assert torch.equal(codes, uncached(prior, label, uniform, **options))
    assert prior.training  # sampling leaves the mode alone, and its dropout of 0.5 never acts


def test_greedy_sampling_takes_the_most_likely_code() -> None:
    prior = random_prior(PICTURE)
    greedy = prior.sample(3, [0, 1, 2], temperature=0)
    assert torch.equal(prior.sample(3, [0, 1, 2], top_k=1), greedy)
    logits = step_logits(prior, greedy, torch.tensor([0, 1, 2]))
    assert torch.equal(logits.argmax(dim=-1).view_as(greedy), greedy)


def test_a_seed_decides_the_samples_whatever_the_form_of_the_label() -> None:
    prior = random_prior(PICTURE)

    def sample(label: Any, seed: int = 7, **options: Any) -> Tensor:
        return prior.sample(4, label, generator=torch.Generator().manual_seed(seed), **options)

    owl = sample("owl")
    for label in (2, ["owl"] * 4, ["owl", 2, 2, "owl"], torch.tensor(2), torch.tensor([2] * 4)):
        assert torch.equal(sample(label), owl)
    assert torch.equal(sample("owl", cfg_scale=1.0, temperature=1.0, top_k=5, top_p=1.0), owl)
    assert torch.equal(sample(None), sample(-1))
    assert not torch.equal(sample("owl", seed=8), owl)
    assert not torch.equal(sample("cat"), owl)
    assert torch.equal(sample("owl", cfg_scale=0.0), sample(None))


def test_without_label_dropout_there_is_nothing_to_guide_away_from() -> None:
    prior, codes = random_prior(dataclasses.replace(PICTURE, unconditional=False)), random_codes(PICTURE)
    expected = random_prior(PICTURE).sample(3, "cat", generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.sample(3, "cat", generator=torch.Generator().manual_seed(0)), expected)
    mask = torch.ones(3, 4, dtype=torch.bool)
    for call, what in (
        (lambda: prior.sample(3, "cat", cfg_scale=2.0), "cfg_scale=2.0"),
        (lambda: prior.sample(3), "without a label"),
        (lambda: prior.sample(3, ["cat", "dog", -1]), "without a label"),
        (lambda: prior.inpaint(codes, mask), "without a label"),
    ):
        with pytest.raises(
            ValueError, match=rf"{what}.* p\(codes\) .*cfg_scale at 1.*train with label dropout"
        ):
            call()


def test_guidance_makes_its_class_likelier() -> None:
    prior = random_prior(PICTURE)

    def advantage(cfg_scale: float) -> float:
        codes = prior.sample(200, "dog", cfg_scale=cfg_scale, generator=torch.Generator().manual_seed(0))
        return (prior.nll(codes) - prior.nll(codes, "dog")).mean().item()

    assert advantage(1.0) > 0
    assert advantage(3.0) > 1.5 * advantage(1.0)


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_a_prefix_stays_and_the_rest_goes_on_from_it(config: PriorConfig) -> None:
    prior = random_prior(config)

    def sample(prefix: Tensor | None) -> Tensor:
        return prior.sample(3, 1, prefix, generator=torch.Generator().manual_seed(1))

    whole = sample(None)
    for rows in range(config.grid[0] + 1):
        # The same uniform numbers after the same beginning give the same end.
        assert torch.equal(sample(whole[:, :, :rows]), whole)
    other = random_codes(config, 1, seed=9)[:, :, :2]
    continued = sample(other)
    assert torch.equal(continued[:, :, :2], other.expand(3, *other.shape[1:]))
    assert not torch.equal(continued[:, :, 2:], whole[:, :, 2:])


@pytest.mark.parametrize("config", [PICTURE, SOUND, *ALL])
def test_a_beginning_alone_is_that_of_the_whole(config: PriorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = random_prior(config)
    passes: list[int] = []
    advance = Decoder.advance

    def counted(decoder: Decoder, x: Tensor) -> Tensor:
        passes.append(1)
        return advance(decoder, x)

    monkeypatch.setattr(Decoder, "advance", counted)

    def sample(prefix: Tensor | None = None, size: int | None = None) -> Tensor:
        passes.clear()
        generator = torch.Generator().manual_seed(1)
        return prior.sample(3, 1, prefix, cfg_scale=2.0, size=size, generator=generator)

    whole = sample()
    assert len(passes) == prior.pattern.num_steps
    for size in range(1, config.grid[0] + 1):
        beginning = sample(size=size)
        assert torch.equal(beginning, whole[:, :, :size])
        # Up to the last step that holds one of its codes, and no further.
        assert len(passes) == 1 + prior.pattern.step.view(-1, *config.grid)[:, :size].max()
        for rows in range(size + 1):
            assert torch.equal(sample(whole[:, :, :rows], size), whole[:, :, :size])
            assert rows < size or not passes


def test_a_generator_for_each_example_makes_it_independent_of_the_others() -> None:
    prior = random_prior(SOUND)

    def sample(*seeds: int) -> Tensor:
        return prior.sample(len(seeds), 1, generator=[torch.Generator().manual_seed(s) for s in seeds])

    together = sample(5, 6, 7)
    assert torch.equal(together, torch.cat([sample(5), sample(6), sample(7)]))
    assert torch.equal(sample(7, 5), together[[2, 0]]) and not torch.equal(together[0], together[1])
    one = prior.sample(1, 1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(together[:1], one)
