"""Runs that are asked to stop, and processes that lose another: a checkpoint and a code, or an end, but no
hang.

Left out: kills that nothing can answer (`pipelines/training/test_checkpoints.py`).
"""

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.run import signals as interruption
from pipelines.run.signals import Stopped, StopRequests, end_with_launcher
from pipelines.training.checkpoints import list_checkpoints
from tests.helpers.launching import try_to_launch
from tests.helpers.running import (
    TINY_TOKENIZER,
    WHOLE_TOKENIZER,
    Finished,
    Script,
    whole_prior,
)
from tests.helpers.warm import run_ranks, run_words
from tests.helpers.whole_runs import assert_same_run, rows_of

# Does something in the midst of the fifth step, as the process of a rank.
AT_STEP_5 = """
import os, signal, sys, time
from pipelines import train_prior, train_tokenizer
from pipelines.run import command_line as cli
from pipelines.training.loop import Course

learn, (script, rank, what, *sys.argv[1:]) = Course.learn, sys.argv[1:]

def learn_and_more(self, batch, *others):
    if batch.step == 4 and os.environ.get("RANK", "0") == rank:
        exec(what)
    return learn(self, batch, *others)

Course.learn = learn_and_more
cli.run({"train_prior": train_prior, "train_tokenizer": train_tokenizer}[script].main)
"""
KILL = "os.kill(os.getpid(), signal.{})"
# From outside and to all processes, also those that load data, as schedulers, `timeout` and terminals do.
KILL_ALL = """
import subprocess
kill = f"import os; os.killpg({{os.getpid()}}, {{signal.{}.value}})"
subprocess.run([sys.executable, "-c", kill], stderr=subprocess.DEVNULL)  # it is hit too
"""


def at_step_5(name: str, what: str, *words: object) -> Finished:
    return run_words("-c", AT_STEP_5, name, 0, what, *words)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("train_tokenizer", "SIGTERM"), ("train_tokenizer", "SIGINT"), ("train_prior", "SIGUSR1")],
)
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_and_can_be_resumed(
    name: str,
    asked: str,
    script: Script,
    no_plots: None,
    whole_runs: dict[str, Path],
    tiny_tokens: Path,
    tmp_path: Path,
) -> None:
    folder, number = tmp_path / "run", signal.Signals[asked]
    words = whole_prior(tiny_tokens)
    if name == "train_tokenizer":
        words = (*WHOLE_TOKENIZER, "--data.workers", 2)
    stopped = at_step_5(name, KILL_ALL.format(asked), *words, "--output", folder)
    assert stopped.code == 128 + number, stopped.err
    assert f"Stopped by {asked} after step 5" in stopped.err
    assert stopped.err.count(f"\n{asked}: stopping after this step") == 1
    assert "--resume latest continues" in stopped.err and "Traceback" not in stopped.err
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step-4", "step-5"]
    assert not (folder / "model.safetensors").exists()
    script(name, "--output", folder, "--resume", "latest")
    assert_same_run(folder, whole_runs[name])


def test_what_happened_is_logged_before_a_run_stops(tmp_path: Path) -> None:
    words = (*WHOLE_TOKENIZER, "--log-every", 50, "--model.bottleneck.kmeans-steps", 3)
    stopped = at_step_5("train_tokenizer", KILL.format("SIGINT"), *words, "--output", tmp_path / "run")
    assert stopped.code == 130
    assert "\nstep 3: k-means placed 32 entries among" in stopped.err


def test_who_insists_is_not_kept_waiting(tmp_path: Path) -> None:
    twice = "from pipelines.run import signals; signals.REPEATED = -1; " + KILL.format("SIGTERM")
    twice += "; " + KILL.format("SIGTERM")
    stopped = at_step_5("train_tokenizer", twice, *WHOLE_TOKENIZER, "--output", tmp_path / "run")
    assert stopped.code == -signal.SIGTERM, stopped.err
    assert [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-4"]


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    script: Script, no_plots: None, whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    # As a full disk does: files may no longer grow beyond this.
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))"
    folder = tmp_path / "run"
    stopped = at_step_5("train_tokenizer", full, *WHOLE_TOKENIZER, "--output", folder)
    assert stopped.code == 2, stopped.err
    found = rf"Error: {folder}/checkpoints/step-8: .*{folder}/checkpoints/step-4.*--keep-checkpoints"
    assert re.search(found, stopped.err)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-4"]
    script("train_tokenizer", "--output", folder, "--resume", "latest")
    assert_same_run(folder, whole_runs["train_tokenizer"])


def test_signals_are_as_before_after_a_run() -> None:
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with StopRequests() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # as launchers pass on what all have got
        assert requests.agreed(torch.device("cpu")) == signal.SIGTERM
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before
    assert Stopped("", signal.SIGTERM).code == 143


# Two processes


def two_processes(what: str, rank: int, *words: object) -> Finished:
    """A launcher whose rank does something in the fifth step of training a tokenizer, when all its processes
    have ended."""
    program = ("--no_python", sys.executable, "-c", AT_STEP_5, "train_tokenizer", rank, what, *words)
    how = ("--multi_gpu", "--num_machines", 1)
    return try_to_launch(how, {"ACCELERATE_USE_CPU": "true"}, *program)


RUN: tuple[Any, ...] = ("emoji", *TINY_TOKENIZER, "--tracker", "none", "--checkpoint-every", 100)


def test_one_process_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 500, "--output", tmp_path / "run")
    ranks = run_ranks(2, "-c", AT_STEP_5, "train_tokenizer", 1, KILL.format("SIGTERM"), *words)
    assert [rank.code for rank in ranks] == [128 + signal.SIGTERM] * 2, ranks
    assert "Stopped by SIGTERM after step 5" in ranks[0].err
    assert [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-5"]
    assert max(row["step"] for row in rows_of(tmp_path / "run")) == 5


def test_a_process_that_dies_ends_the_run(tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 100000, "--output", tmp_path / "run")
    launcher = two_processes(KILL.format("SIGKILL"), 1, *words)
    assert launcher.code != 0
    assert "SIGKILL" in launcher.err  # the launcher says who died


def test_processes_end_with_their_launcher(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (*RUN, "--max-steps", 100000, "--output", folder)
    launcher = two_processes("os.kill(os.getppid(), signal.SIGKILL)", 0, *words)
    assert launcher.code == -signal.SIGKILL
    assert launcher.err.count("Stopped by SIGTERM") == 1
    (last,) = list_checkpoints(folder / "checkpoints")
    assert f"step-{max(row['step'] for row in rows_of(folder))}" == last.name


# What is stuck, as in a collective, answers no signal.
STUCK = """
import os, signal, time
from pipelines.run import signals as interruption

interruption.GRACE = interruption.PAUSE = 0.2
if (child := os.fork()) == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interruption.end_with_launcher()
    print("ready", flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(100)
os.waitpid(child, 0)
"""


def test_a_stuck_process_ends_with_its_launcher_too() -> None:
    # It waits for the stuck process too, which holds the launcher's output.
    launcher = run_words("-c", STUCK, variables={"TORCHELASTIC_RUN_ID": "none"}, timeout=50)
    assert (launcher.code, launcher.out) == (-signal.SIGKILL, "ready\n")


def test_without_a_launcher_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in interruption.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    before = threading.enumerate()
    end_with_launcher()
    assert threading.enumerate() == before
