"""Losses and gradients that are not finite: the run stops and says where, or leaves the step out and counts
it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType
from safetensors.torch import load_file
from torch import nn

from pipelines import train_prior, train_tokenizer
from pipelines.data.batches import load_splits, order
from pipelines.data.config import DataConfig
from pipelines.training.checkpoints import list_checkpoints
from tests.helpers.running import TINY_PRIOR, TINY_TOKENIZER, Script, assert_refused
from tests.helpers.whole_runs import rows_of
from tokenizer.checks import NotFinite
from tokenizer.distributed import Step
from tokenizer.modalities.image import ImageConfig

STEPS = ("--max-steps", 8, "--checkpoint-every", 2, "--keep-checkpoints", 9, "--tracker", "none")
RUN: tuple[Any, ...] = ("emoji", *TINY_TOKENIZER, *STEPS)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], what: str, module: Any = train_tokenizer) -> None:
    """In some steps (from 1), make a loss or z_e of the batch's third row, or the gradient, not finite."""
    losses_of, now = module.losses_of, [0]

    def spoilt(net: nn.Module, rows: slice, step: Step | None, **given: Any) -> Any:
        now[0] = now[0] if step is None else step.index + 1
        third = range(*rows.indices(16)).index(2) if 2 in range(*rows.indices(16)) else None
        if what == "z_e" and now[0] in steps and third is not None:
            hook = net.encoder.register_forward_hook(
                lambda *of: of[-1].index_fill(0, torch.tensor(third), torch.inf)
            )
            try:
                losses, stats = losses_of(net, rows, step, **given)
            finally:
                hook.remove()
        else:
            losses, stats = losses_of(net, rows, step, **given)
        if now[0] in steps:
            name = next(iter(losses))
            if what == "gradient":
                # sqrt has no slope at 0.
                losses[name] = losses[name] + (0 * losses[name]).sqrt()
            elif what == "loss" and third is not None:
                losses[name] = losses[name] * torch.nan
        return losses, stats

    monkeypatch.setattr(module, "losses_of", spoilt)


def name_of_third(step: int) -> str:
    """The third example of a step's batch."""
    train = load_splits(DataConfig(path="embedded:emoji", limit=32), ImageConfig().build()).train
    return train.id(int(order(len(train), 0, (step - 1) * 16, 16)[2]))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_example(
    accumulation: int, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {5}, "loss")
    more = ("--gradient-accumulation", accumulation, "--output", tmp_path)
    finished = script("train_tokenizer", *RUN, *more, code=2)
    assert_refused(
        finished, "step 5: ", "and the gradient are not finite", "of 16 examples these give it alone: "
    )
    assert name_of_third(5) in finished.err
    assert_refused(finished, f"{tmp_path}/checkpoints/step-4", "--skip-non-finite")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_is_named(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {1}, "gradient")
    finished = script("train_tokenizer", *RUN, "--clip-norm", 0, "--output", tmp_path, code=2)
    assert_refused(finished, "step 1: the gradient is not finite", "no example alone gives it")
    assert "there is no checkpoint yet" in finished.err


def test_a_prior_names_its_items(
    script: Script, monkeypatch: pytest.MonkeyPatch, tiny_tokens: Path, tmp_path: Path
) -> None:
    spoil(monkeypatch, {3}, "loss", train_prior)
    words = ("small", *TINY_PRIOR, "--tokens", tiny_tokens, *STEPS, "--output", tmp_path)
    finished = script("train_prior", *words, code=2)
    assert_refused(finished, "step 3: the loss nll and the gradient are not finite", "training item ")


def test_without_being_asked_to_nothing_is_left_out(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {5}, "z_e")
    finished = script("train_tokenizer", *RUN, "--output", tmp_path, code=2)
    assert_refused(finished, "z_e (16, 8, 8, 8)", "NaN", "at step 5", name_of_third(5))
    assert "--skip-non-finite 10" in finished.err


@pytest.mark.parametrize(("form", "recommended"), [("FSDP", True), ("DEEPSPEED", False)])
def test_a_sharded_run_is_told_to_leave_steps_out_only_where_that_works(
    form: str, recommended: bool, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def losses_of(*_: Any, **__: Any) -> None:
        AcceleratorState._shared_state["distributed_type"] = DistributedType[form]
        raise NotFinite("z_e holds NaN")

    monkeypatch.setattr(train_tokenizer, "losses_of", losses_of)
    finished = script("train_tokenizer", *RUN, "--output", tmp_path, code=2)
    assert_refused(finished, "z_e holds NaN", "lower --learning-rate")
    assert ("--skip-non-finite" in finished.err) == recommended


@pytest.mark.parametrize(
    ("what", "blamed"),
    [("gradient", "no example alone gives it"), ("z_e", "of 16 examples these give it alone: ")],
)
def test_such_steps_are_left_out_and_counted(
    what: str, blamed: str, script: Script, no_plots: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {3, 4, 7}, what)  # the third would start the codebook
    words = (*RUN, "--model.bottleneck.kmeans-steps", 3, "--checkpoint-every", 1)
    words += ("--ema-decay", 0.9, "--skip-non-finite", 2)
    finished = script("train_tokenizer", *words, "--output", tmp_path / "run")
    assert finished.err.count(f"not finite: left out ({blamed}") == 3
    rows = [row for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 2, 3, 3]

    # Nothing of a step that is left out stays: neither in weights nor in what the codebook counts.
    for of in ("model", "average", "training_state"):
        found = list_checkpoints(tmp_path / "run" / "checkpoints")
        steps = [load_file(folder / f"{of}.safetensors") for folder in found]
        changed = [
            a.keys() != b.keys() or any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(steps)
        ]
        assert changed == [True, False, False, True, True, False, True], of
    finished = script(
        *("train_tokenizer", "--output", tmp_path / "run", "--resume"),
        *(str(tmp_path / "run" / "checkpoints" / "step-6"), "--max-steps", 8),
    )
    rows = [row for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 2, 3, 3]


def test_too_many_in_a_row_end_the_run(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {2, 4, 5, 6}, "gradient")
    words = (*RUN, "--skip-non-finite", 2, "--output", tmp_path)
    finished = script("train_tokenizer", *words, code=2)
    assert_refused(finished, "step 6: the gradient is not finite")
    # A resume goes on counting: after step 4 one was left out already.
    finished = script("train_tokenizer", "--output", tmp_path, "--resume", "latest", code=2)
    assert_refused(finished, "step 6: the gradient is not finite")
