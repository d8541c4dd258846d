"""Scripts in two processes, by accelerate's own launcher, and ports over which processes find each other.

Left out: processes without a launcher, which start faster (warm.py).
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.helpers.running import (
    ROOT,
    Finished,
    environment,
)


@contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given within the context: it is bound, but nobody listens there, so that
    servers which reuse addresses, as torch's do, can bind it again."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


def launch(*words: object) -> Finished:
    """What `words` name, a script or `-m` and a module, in two processes; all are gone when this returns."""
    return launch_as(("--multi_gpu", "--num_machines", "1"), {"ACCELERATE_USE_CPU": "true"}, *words)


def launch_as(how: Sequence[object], variables: Mapping[str, str], *words: object) -> Finished:
    """`launch`, with flags of the launcher and variables for the processes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *map(str, how), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    with held_port() as port:
        process = subprocess.Popen(
            [*launcher, "--main_process_port", str(port), *map(str, words)],
            cwd=ROOT,
            env={**environment(), "OMP_NUM_THREADS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.returncode == 0, err
    return Finished(process.returncode, out, err)


# How several scripts run in one launch, because most of the time of a launch goes into imports. The processes
# stay connected until `leave_group()`.
IN_ONE_LAUNCH = """
import importlib, json, os, sys
from accelerate import Accelerator
from pipelines import train_prior
from pipelines.run import command_line as cli

Accelerator.end_training = lambda self: None
leave_group, cli.leave_group = cli.leave_group, lambda: None
train_prior.loss_plot = lambda *paths: None

def run(name, words):
    sys.argv = [f"{name}.py", *words]
    try:
        cli.run(importlib.import_module(f"pipelines.{name}").main)
    except SystemExit as stop:
        sys.stdout.write(f"{name} ended with {stop.code}\\n")
        sys.stdout.flush()
"""
