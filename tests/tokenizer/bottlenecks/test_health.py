"""Health of a codebook: what usage, perplexity and age mean, and when a warning comes."""

import pytest
import torch

from tokenizer.bottlenecks.parts.health import WARN_AGAIN, WINDOW, Health, batch_stats
from tokenizer.distributed import Step


def counted(*steps: list[int], size: int = 4) -> Health:
    health = Health(size, "try this")
    for codes in steps:
        health.count(torch.tensor(codes), None)
    return health


def test_usage_is_over_the_window() -> None:
    health = counted([0, 0, 1])
    assert health.stats()["usage"].item() == 0.5
    for _ in range(WINDOW - 1):
        health.count(torch.tensor([0]), None)
    assert health.stats()["usage"].item() == 0.5
    health.count(torch.tensor([0]), None)
    assert health.stats()["usage"].item() == 0.25  # code 1 was used WINDOW steps ago


def test_perplexity_is_that_of_recent_use() -> None:
    assert counted([0, 1, 2, 3]).stats()["perplexity"].item() == pytest.approx(4)
    assert counted([0, 0, 0, 0]).stats()["perplexity"].item() == pytest.approx(1)
    fading = counted([0, 0, 0, 0], *[[1, 1, 1, 1]] * 1000)
    assert fading.stats()["perplexity"].item() < 1.01


def test_the_age_of_dead_codes() -> None:
    health = counted([0], [1], [1])
    assert health.age.tolist() == [2, 0, torch.inf, torch.inf]
    assert health.stats()["dead_age"].item() == 3  # never used, in three steps
    health = counted([0, 1, 2, 3], [1, 2, 3], [2, 3])
    assert health.stats()["dead_age"].item() == 2


def test_a_step_is_all_its_accumulation_passes() -> None:
    parts = Health(4, "")
    parts.count(torch.tensor([0, 1]), Step(0, 0, 0, 4, last=False))
    assert parts.stats()["usage"].item() == 0
    parts.count(torch.tensor([[2], [2]]), Step(0, 0, 2, 4, last=True))
    whole = counted([0, 1, 2, 2])
    assert parts.age.tolist() == whole.age.tolist() and parts.recent.tolist() == whole.recent.tolist()
    assert parts.seen.tolist() == whole.seen.tolist() == [1, 4]


def test_low_usage_is_warned_of_now_and_then() -> None:
    health, warnings = Health(100, "use fewer"), []
    for step in range(1, (2 + 2 * WARN_AGAIN) * WINDOW + 2):
        health.count(torch.arange(30), None)
        warnings += [(step, event.text) for event in health.events()]
    assert [step for step, _ in warnings] == [200, 1200, 2200]
    text = "warning: 30.0% of 100 codes were used in the last 100 steps, of 100.0% that so many codes could"
    assert warnings[0][1] == f"{text} reach; use fewer"


def test_few_codes_are_no_reason_for_a_warning() -> None:
    health = Health(10_000, "")
    for step in range(3 * WINDOW):
        health.count(torch.arange(10) + 10 * step, None)  # a tenth of the entries, all different
        assert health.events() == []
    assert health.stats()["usage"].item() == pytest.approx(0.1)


def test_training_state_restores_everything() -> None:
    health, other = counted([0, 1, 1], [2]), counted([3])
    other.count(torch.tensor([3]), Step(0, 0, 0, 2, last=False))
    other.load_training_state({k: v.clone() for k, v in health.training_state().items()})
    for each in (health, other):
        each.count(torch.tensor([1]), None)
    assert all(torch.equal(v, other.training_state()[k]) for k, v in health.training_state().items())


def test_stats_of_a_batch_alone() -> None:
    stats = batch_stats(torch.tensor([[0, 1], [1, 1]]), 8, torch.float64)
    assert stats["usage"].item() == 0.25 and stats["usage"].dtype == torch.float64
    assert stats["perplexity"].item() == pytest.approx(4 / 27**0.25)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 6)])
def test_a_state_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    health = Health(6, "")
    state = {k: v.clone() for k, v in health.training_state().items()}
    with pytest.raises(ValueError, match=r"health\.recent is .*, expected \(6,\)"):
        health.load_training_state({**state, "health.recent": torch.ones(shape)})
