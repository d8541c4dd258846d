"""From class to class: the ends are samples of the classes, and all are drawn with the same chance."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from prior import PriorConfig
from tests.helpers.priors import PICTURE, SOUND, random_prior


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 2.0, "cfg_schedule": "linear"}])
@pytest.mark.parametrize("config", [PICTURE, SOUND])
def test_its_ends_are_samples_of_the_classes(config: PriorConfig, options: dict[str, Any]) -> None:
    prior = random_prior(config)
    codes = prior.interpolate("cat", 2, 5, generator(), **options)
    assert codes.shape == (5, config.num_codebooks, *config.grid)
    seed = int(torch.randint(1 << 62, (), generator=generator()))
    for end, label in ((0, "cat"), (-1, "owl")):
        stream = torch.Generator().manual_seed(seed)
        assert torch.equal(codes[end], prior.sample(1, label, generator=[stream], **options)[0])


def test_between_them_the_class_alone_changes() -> None:
    prior = random_prior(PICTURE)
    same = prior.interpolate("dog", "dog", 4, generator())
    assert torch.equal(same, same[:1].expand_as(same))
    fine = prior.interpolate("cat", "dog", 65, generator())
    changed = (fine[1:] != fine[:-1]).flatten(1).any(1)
    assert 0 < changed.sum() < 40  # most neighbours are equal


def test_the_middle_is_of_the_mean_embedding() -> None:
    prior = random_prior(PICTURE)
    table = prior.class_embedding.weight
    with torch.no_grad():
        table[1] = (table[0] + table[2]) / 2
    middle = prior.interpolate("cat", "owl", 3, generator())[1]
    assert torch.equal(middle, prior.interpolate("dog", "dog", 2, generator())[0])


def test_no_class_is_an_end_where_the_prior_knows_it() -> None:
    prior = random_prior(PICTURE)
    codes: Tensor = prior.interpolate(-1, "cat", 2, generator())
    seed = int(torch.randint(1 << 62, (), generator=generator()))
    assert torch.equal(codes[0], prior.sample(1, None, generator=[torch.Generator().manual_seed(seed)])[0])
    without = random_prior(dataclasses.replace(PICTURE, unconditional=False))
    with pytest.raises(ValueError, match=r"without a label.* p\(codes\) .*train with label dropout"):
        without.interpolate(-1, "cat", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat", "cow", 3), "label: .*'cow'.*cat, dog, owl"),
        (("cat", "dog", 1), "steps: expected 2 .*got 1"),
        ((3, "dog", 2), "label: expected -1 .* to 2, got 3"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_prior(PICTURE).interpolate(*arguments)
