"""Two machines, as two launchers on this one: the same result as two processes of one, and no hang when a
process of the other machine dies.

Left out: a network that is slow or breaks; both talk through gloo on the loopback device.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file
from torch.testing import assert_close

from tests.helpers.launching import LAUNCHER, PLAIN
from tests.helpers.ports import held_port
from tests.helpers.running import TINY_TOKENIZER, Finished, Script
from tests.helpers.warm import run_each
from tests.helpers.whole_runs import rows_of
from tests.processes.test_interruption import AT_STEP_5, KILL

RUN = ("emoji", *TINY_TOKENIZER, "--tracker", "none", "--checkpoint-every", 4)


def two_machines(what: str, *words: object) -> list[Finished]:
    """A launcher for each machine with one process each, of which the second does something in the fifth
    step of training a tokenizer."""
    with held_port() as port:
        flags = ("--multi_gpu", "--num_processes", 2, "--num_machines", 2, *PLAIN)
        flags += ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
        program = ("--no_python", sys.executable, "-c", AT_STEP_5, "train_tokenizer", 1, what, *words)
        lines = [(*LAUNCHER, *flags, "--machine_rank", machine, *program) for machine in (0, 1)]
        return run_each(*lines, variables={"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})


def test_two_machines_learn_what_one_process_learns(no_plots: None, script: Script, tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 3)
    launchers = two_machines("pass", *words, "--output", tmp_path / "two")
    assert [launcher.code for launcher in launchers] == [0, 0], launchers
    assert "saved to" in launchers[0].err and "saved to" not in launchers[1].err
    script("train_tokenizer", *words, "--output", tmp_path / "one")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, atol=1e-4, rtol=1e-4, msg=name)
    steps = [row["step"] for row in rows_of(tmp_path / "two") if "train/loss" in row]
    assert steps == [1, 2, 3]


def test_a_process_that_dies_ends_the_run_on_all_machines(tmp_path: Path) -> None:
    words = (*RUN, "--max-steps", 100000, "--output", tmp_path)
    launchers = two_machines(KILL.format("SIGKILL"), *words)
    assert all(launcher.code != 0 for launcher in launchers), launchers
    assert "SIGKILL" in launchers[1].err  # the launcher says who died
