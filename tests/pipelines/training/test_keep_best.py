"""Keeping the averaged weights that held-out items liked best: which are saved, and that a
resume ends alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.training.averaging import Best, WeightAverage
from tests.helpers.running import Script, assert_refused, whole_prior
from tests.helpers.tokens import some_codes, write
from tests.helpers.whole_runs import assert_same_run, stopped_at

OFFER = Best.offer


def judge(patch: pytest.MonkeyPatch, bits: dict[int, float]) -> None:
    """Let the weights of some steps be worth so many bits per code, whatever they are worth."""

    def offer(self: Best, value: float, step: int) -> bool:
        assert 0 < value < 10
        return OFFER(self, bits[step], step)

    patch.setattr(Best, "offer", offer)


def words(tokens: Path, output: Path) -> tuple[Any, ...]:
    return (*whole_prior(tokens), "--keep", "best", "--eval-every", "4", "--output", output)


def averages(run: Path, step: int) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "average.safetensors")


@pytest.fixture(scope="module")
def judged(tiny_tokens: Path, script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights of step 8 of 12 are the best."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        judge(patch, {4: 3.0, 8: 1.0, 12: 2.0})
        finished = script("train_prior", *words(tiny_tokens, folder), "--keep-checkpoints", "9")
    assert "averaged weights of step 8" in finished.err
    return folder


def test_the_best_averages_are_saved_and_measured(judged: Path) -> None:
    saved, best, last = load_file(judged / "model.safetensors"), averages(judged, 8), averages(judged, 12)
    assert saved.keys() == best.keys() and all(torch.equal(saved[name], best[name]) for name in best)
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert "averaged weights of step 8" in (judged / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_resumed_run_keeps_the_same(
    step: int, judged: Path, script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = stopped_at(step, judged, tmp_path / "run")
    judge(monkeypatch, {8: 1.0, 12: 2.0})  # that of step 4 comes from the checkpoint
    script("train_prior", "--output", folder, "--resume", "latest")
    assert_same_run(folder, judged)


def test_the_last_averages_are_saved_if_none_were_better(
    tiny_tokens: Path, script: Script, no_plots: None, tmp_path: Path
) -> None:
    finished = script("train_prior", *words(tiny_tokens, tmp_path / "run"))
    saved, last = load_file(tmp_path / "run" / "model.safetensors"), averages(tmp_path / "run", 12)
    assert all(torch.equal(saved[name], last[name]) for name in last)
    assert "averaged weights of step" not in finished.err


def test_the_first_is_the_best_so_far_and_an_equal_one_is_not_better() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    best = Best(average)
    first = {name: value.clone() for name, value in average.shadow.items()}
    assert best.offer(9.0, 3)
    for value in average.shadow.values():
        value.add_(1)
    assert not best.offer(9.0, 4) and not best.offer(float("nan"), 5) and int(best.step) == 3
    best.put_back()
    assert all(torch.equal(average.shadow[name], first[name]) for name in first)
    for value in average.shadow.values():
        value.add_(1)
    assert best.offer(8.5, 6) and int(best.step) == 6
    best.put_back()
    assert all(torch.equal(average.shadow[name], first[name] + 1) for name in first)


def test_a_number_is_better_than_none() -> None:
    best = Best(WeightAverage(nn.Linear(2, 2), 0.5))
    assert best.offer(float("nan"), 2) and not best.offer(float("nan"), 4)
    assert best.offer(9.0, 6) and not best.offer(float("nan"), 8) and int(best.step) == 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ema-decay", "0"), ("--ema-decay",)),
        (("--data.valid-fraction", "0"), ("--keep best", "held out", "--keep last")),
    ],
)
def test_what_cannot_be_judged_is_refused_first(
    flags: tuple[str, ...], said: tuple[str, ...], script: Script, tmp_path: Path
) -> None:
    write(tmp_path / "tokens", some_codes(40))
    finished = script("train_prior", *words(tmp_path / "tokens", tmp_path / "run"), *flags, code=2)
    assert_refused(finished, *said)
    assert not (tmp_path / "run").exists()
