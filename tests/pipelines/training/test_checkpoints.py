"""Resuming: a run that was stopped and resumed ends in the same bytes as one that was not, or says why not;
which checkpoints stay, and gradients accumulated over parts of a batch.

Left out: checkpoints that are broken or not the run's (robustness/test_broken_checkpoints.py), and resuming
with another number of processes, which is equal up to rounding only.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pipelines.training.checkpoints import list_checkpoints
from tests.helpers.running import WHOLE_TOKENIZER, Finished, Script, whole_prior
from tests.helpers.warm import run_words
from tests.helpers.whole_runs import assert_same_run, rows_of, stopped_at
from tokenizer.hub.files import SAVED

Train = Callable[..., Finished]


@pytest.fixture(params=["train_tokenizer", "train_prior"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def train(name: str, script: Script, no_plots: None) -> Train:
    """`train("--output", DIR, …)` runs the script of this test."""
    return lambda *words, **expected: script(name, *words, **expected)


@pytest.fixture
def options(name: str, tiny_tokens: Path) -> tuple[Any, ...]:
    """The words of a tiny run, but for its output."""
    return WHOLE_TOKENIZER if name == "train_tokenizer" else whole_prior(tiny_tokens)


@pytest.fixture
def whole(name: str, whole_runs: dict[str, Path]) -> Path:
    return whole_runs[name]


# Exact resume


def test_a_whole_run_logs_every_step_once(whole: Path) -> None:
    rows = rows_of(whole)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if any(k.startswith("valid/") for k in row)] == [5, 10, 12]


def test_a_checkpoint_is_json_and_safetensors(name: str, whole: Path) -> None:
    folder = whole / "checkpoints" / "step-4"
    files = {"model", "average", "optimizers", "rng", "training_state"}
    assert {p.name for p in folder.iterdir()} == {"state.json", *(f"{f}.safetensors" for f in files)}
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["processes"], state["scaler"]) == (4, 1, None)
    states = load_file(folder / "optimizers.safetensors")
    assert {k.split(".")[0] for k in states} == {"0", "1"}  # AdamW and Muon
    training = {k: len(v) for k, v in load_file(folder / "training_state.safetensors").items()}
    health = {"health.recent": 32, "health.age": 32, "health.seen": 2}
    assert training == ({"reservoir": 4, **health} if name == "train_tokenizer" else {})


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_ends_in_the_same_bytes(step: int, train: Train, whole: Path, tmp_path: Path) -> None:
    folder = stopped_at(step, whole, tmp_path / "run")
    finished = train("--output", folder, "--resume", "latest")
    assert f"resuming from {folder / 'checkpoints' / f'step-{step}'}" in finished.err
    assert_same_run(folder, whole)


def test_a_checkpoint_may_be_named_by_its_path(train: Train, whole: Path, tmp_path: Path) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    finished = train("--output", folder, "--resume", folder / "checkpoints" / "step-4")
    assert f"resuming from {folder / 'checkpoints' / 'step-4'}" in finished.err
    assert_same_run(folder, whole)
    # What lay after it belongs to a course that was left: it stays, but no resume takes it for the latest.
    assert (folder / "checkpoints" / "step-8.left-1" / "state.json").exists()


def test_a_model_older_than_the_last_checkpoint_is_not_the_runs_end(
    train: Train, whole: Path, tmp_path: Path
) -> None:
    folder = stopped_at(12, whole, tmp_path / "run")
    for name in SAVED:
        (folder / name).write_bytes(b"of an earlier, shorter run")
    edit(folder / "checkpoints" / "step-12" / "state.json", model_written=False)
    train("--output", folder, "--resume", "latest")
    assert_same_run(folder, whole)


def test_the_same_words_again_may_resume(
    train: Train, options: tuple[Any, ...], whole: Path, tmp_path: Path
) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    train(*options, "--output", folder, "--resume", "latest")
    assert_same_run(folder, whole)


# Kills its own process in the midst of writing the second checkpoint, whose files are the 6th to the 10th.
KILL = """
import itertools, os, signal
from pipelines import train_tokenizer
from pipelines.training import checkpoints
from pipelines.run import command_line as cli

saved = itertools.count(1)
save_file = checkpoints.save_file

def save_or_die(*arguments):
    save_file(*arguments)
    if next(saved) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_file = save_or_die
cli.run(train_tokenizer.main)
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(
    script: Script, whole_runs: dict[str, Path], no_plots: None, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed = run_words("-c", KILL, *WHOLE_TOKENIZER, "--output", folder)
    assert killed.code == -signal.SIGKILL, killed.err
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step-4"]
    assert len(list((folder / "checkpoints").iterdir())) == 2  # beside it the half of another
    assert max(row["step"] for row in rows_of(folder)) == 8
    finished = script("train_tokenizer", "--output", folder, "--resume", "latest")
    assert "step-4" in finished.err
    assert_same_run(folder, whole_runs["train_tokenizer"])


def test_how_often_a_run_is_measured_does_not_change_what_it_learns(
    name: str, script: Script, options: tuple[Any, ...], whole: Path, tmp_path: Path
) -> None:
    """As a resume may change it; a prior draws samples then, and loads its tokenizer."""
    script(name, *options, "--output", tmp_path / "run", "--eval-every", 3)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_max_steps_may_grow(train: Train, whole: Path, tmp_path: Path) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    finished = train("--output", folder, "--resume", "latest", "--max-steps", 14)
    assert finished.err.count("max_steps grows from 12 to 14") == 1
    rows = [row for row in rows_of(folder) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert rows[:8] == [row for row in rows_of(whole) if "train/loss" in row][:8]
    assert (folder / "checkpoints" / "step-14").is_dir()


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    train: Train, options: tuple[Any, ...], whole: Path, tmp_path: Path
) -> None:
    finished = train(*options, "--output", tmp_path / "run", "--resume", "latest")
    assert f"no checkpoint in {tmp_path / 'run' / 'checkpoints'}: starting from the beginning" in finished.err
    assert_same_run(tmp_path / "run", whole)


def test_resume_of_a_finished_run_says_so(train: Train, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.json"}
    finished = train("--output", folder, "--resume", "latest", code=0)
    assert f"{folder} is finished: 12 of 12 steps are done" in finished.err
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("release", ["this", "older"])
def test_a_copy_of_a_finished_run_is_finished(
    release: str, script: Script, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    """Times of files are those of the copy, in any order."""
    folder = tmp_path / "run"
    shutil.copytree(whole_runs["train_tokenizer"], folder)
    state = folder / "checkpoints" / "step-12" / "state.json"
    assert json.loads(state.read_text())["model_written"] is True
    if release == "older":
        edit(state, model_written=None)
    os.utime(folder / "config.json", (1, 1))
    finished = script("train_tokenizer", "--output", folder, "--resume", "latest")
    assert f"{folder} is finished: 12 of 12 steps are done" in finished.err


@pytest.mark.parametrize("release", ["this", "older"])
def test_the_model_of_a_shorter_run_is_not_the_end(
    release: str, script: Script, no_plots: None, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    """As a kill leaves it before the longer run's model is written; the times of the files say nothing."""
    whole, folder = whole_runs["train_tokenizer"], tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "checkpoints" / "step-8" / "model.safetensors", folder / "model.safetensors")
    edit(
        folder / "checkpoints" / "step-12" / "state.json", model_written=None if release == "older" else False
    )
    for name in SAVED:  # as if they were written last
        (folder / name).touch()
    finished = script("train_tokenizer", "--output", folder, "--resume", "latest")
    assert "is finished" not in finished.err
    assert_same_run(folder, whole)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_model(
    train: Train, whole: Path, tmp_path: Path
) -> None:
    folder = stopped_at(12, whole, tmp_path / "run")
    train("--output", folder, "--resume", "latest")
    assert_same_run(folder, whole)
    assert (folder / "README.md").exists() and (folder / "metrics.json").exists()


def test_a_warning_tells_of_another_number_of_threads(
    script: Script, no_plots: None, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = stopped_at(8, whole_runs["train_tokenizer"], tmp_path / "run")
    path = folder / "checkpoints" / "step-8" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 99}))
    finished = script("train_tokenizer", "--output", folder, "--resume", "latest")
    assert f"resuming with {torch.get_num_threads()} threads instead of 99" in finished.err


# What stays


def test_only_the_newest_checkpoints_stay(train: Train, options: tuple[Any, ...], tmp_path: Path) -> None:
    words = ("--max-steps", 5, "--checkpoint-every", 1, "--keep-checkpoints", 2, "--eval-every", 9)
    train(*options, "--output", tmp_path / "run", *words)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-4", "step-5"]


# Mistakes


def test_a_resume_with_another_option_is_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    folder = stopped_at(8, whole, tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    was = json.loads((folder / "run.json").read_text())["learning_rate"]
    finished = train("--output", folder, "--resume", "latest", "--learning-rate", 0.5, code=2)
    assert re.search(f"Error: --learning-rate .*0.5, .*{folder} .*{was}; .*--output", finished.err)
    assert {p: p.read_bytes() for p in before} == before


def test_a_run_is_not_written_over(
    train: Train, options: tuple[Any, ...], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    finished = train(*options, "--output", folder, code=2)
    assert re.search(f"Error: {folder} .*--output.*--resume latest", finished.err)
    assert {p: p.read_bytes() for p in before} == before


# Gradient accumulation


def test_accumulated_gradients_equal_the_whole_batch(
    train: Train, options: tuple[Any, ...], tmp_path: Path
) -> None:
    """Dropout is off: its noise is the one thing that depends on how a batch is cut."""
    words = ("--max-steps", 5, "--keep-checkpoints", 1, "--eval-every", 9, "--log-every", 1)
    if "--tokens" in options:
        words += ("--model.dropout", 0)
    else:
        words += ("--model.bottleneck.kmeans-steps", 3)
    train(*options, *words, "--output", tmp_path / "one")
    train(*options, *words, "--output", tmp_path / "two", "--gradient-accumulation", 2)
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert_close(two, one, atol=1e-4, rtol=1e-4)
    # What is logged is that of the whole batch, not of its last part.
    for expected, found in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert found == {k: pytest.approx(v, abs=1e-3, rel=1e-3) for k, v in expected.items()}
