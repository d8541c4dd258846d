"""Scripts in two processes, by accelerate's own launcher. It is forked; what it starts is not.

Left out: processes without a launcher, which start faster (warm.py).
"""

from collections.abc import Mapping, Sequence

from tests.helpers.ports import held_port
from tests.helpers.running import Finished
from tests.helpers.warm import run_words

LAUNCHER = ("-m", "accelerate.commands.launch")
# As nothing asks about them.
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no")


def launch(*words: object) -> Finished:
    """What `words` name, a script or `-m` and a module, in two processes; all are gone when this returns."""
    return launch_as(("--multi_gpu", "--num_machines", "1"), {"ACCELERATE_USE_CPU": "true"}, *words)


def launch_as(how: Sequence[object], variables: Mapping[str, str], *words: object) -> Finished:
    """`launch`, with flags of the launcher and variables for the processes."""
    finished = try_to_launch(how, variables, *words)
    assert finished.code == 0, finished.err
    return finished


def try_to_launch(how: Sequence[object], variables: Mapping[str, str], *words: object) -> Finished:
    """`launch_as`, however the launcher ends."""
    with held_port() as port:
        flags = (*how, "--num_processes", 2, *PLAIN, "--main_process_port", port)
        return run_words(*LAUNCHER, *flags, *words, variables={"OMP_NUM_THREADS": "1", **variables})


# How several scripts run in one launch, because most of the time of a launch goes into imports. The processes
# stay connected until `leave_group()`.
IN_ONE_LAUNCH = """
import importlib, json, os, sys
from accelerate import Accelerator
from pipelines import train_prior, train_tokenizer
from pipelines.run import command_line as cli

Accelerator.end_training = lambda self: None
leave_group, cli.leave_group = cli.leave_group, lambda: None
train_prior.loss_plot = train_prior.write_prior_sample = lambda *_: None
train_tokenizer.write_tokenizer_report = lambda *_: None

def run(name, words):
    sys.argv = [f"{name}.py", *words]
    try:
        cli.run(importlib.import_module(f"pipelines.{name}").main)
    except SystemExit as stop:
        sys.stdout.write(f"{name} ended with {stop.code}\\n")
        sys.stdout.flush()
"""
