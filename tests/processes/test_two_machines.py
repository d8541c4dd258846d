"""Two machines, as two launchers on this one: the same result as two processes of one, and no hang when a
process of the other machine dies.

Left out: a network that is slow or breaks; both talk through gloo on the loopback device.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch.testing import assert_close

from tests.helpers.launching import held_port
from tests.helpers.running import ROOT, TINY_TOKENIZER, Script, environment
from tests.helpers.whole_runs import rows_of
from tests.processes.test_interruption import AT_STEP_5, KILL

RUN = ("emoji", *TINY_TOKENIZER, "--tracker", "none", "--checkpoint-every", 4)


@contextmanager
def two_machines(what: str, *words: object) -> Iterator[list["subprocess.Popen[str]"]]:
    """A launcher for each machine with one process each, of which the second does something in the fifth
    step of training a tokenizer."""
    with held_port() as port:
        launchers = [start(machine, port, what, *words) for machine in (0, 1)]
        try:
            yield launchers
        finally:
            for launcher in launchers:
                launcher.kill()  # its process ends with it
                launcher.communicate()


def start(machine: int, port: int, what: str, *words: object) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "2", "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1"]
    launcher += ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--no_python", sys.executable, "-c", AT_STEP_5, "train_tokenizer", "1", what]
    env = {**environment(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launcher, *map(str, words)], cwd=ROOT, env=env, text=True, **pipes)


def test_two_machines_learn_what_one_process_learns(no_plots: None, script: Script, tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 3)
    with two_machines("pass", *words, "--output", tmp_path / "two") as launchers:
        errors = [launcher.communicate(timeout=600)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], errors
    assert "saved to" in errors[0] and "saved to" not in errors[1]
    script("train_tokenizer", *words, "--output", tmp_path / "one")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, atol=1e-4, rtol=1e-4, msg=name)
    steps = [row["step"] for row in rows_of(tmp_path / "two") if "train/loss" in row]
    assert steps == [1, 2, 3]


def test_a_process_that_dies_ends_the_run_on_all_machines(tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 100000, "--output", tmp_path)
    with two_machines(KILL.format("SIGKILL"), *words) as launchers:
        errors = [launcher.communicate(timeout=600)[1] for launcher in launchers]
    assert all(launcher.returncode != 0 for launcher in launchers), errors
    assert "SIGKILL" in errors[1]  # the launcher says who died
