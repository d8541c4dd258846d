"""Measuring memory in a process of its own, whose peak nothing else has raised.

Left out: what is measured (`memory.py` in the rooms), and GPUs.
"""

import json
import multiprocessing
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
STATUS = Path("/proc/self/status")
# Of a process's smaps_rollup (proc_pid_smaps(5)): memory that no file backs, as a part of the pages that it
# shares with others, such as those that it was forked from.
OWN = ("Pss_Anon", "Pss_Shmem")


def run_module(module: str, *words: object, environment: Mapping[str, str] | None = None) -> Any:
    """What `python -m module words... threads` prints last, as JSON, with as many threads as here.
    `ValueError` with the end of its errors if it fails."""
    command = ["-m", module, *map(str, words), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise ValueError(
            f"measuring memory failed with exit code {done.returncode}: python {shlex.join(command)}: "
            f"{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> int:
    """Bytes of this process's largest resident memory so far."""
    # Linux's ru_maxrss begins with the peak of the process that started this one; VmHWM is its own (proc(5)).
    if STATUS.exists():
        return status("VmHWM")
    # The unit is KiB on Linux and bytes on macOS (getrusage(2) of each).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def status(field: str) -> int:
    """Bytes of one of Linux's numbers about this process (proc(5))."""
    return _number(STATUS, field)


def own_memory() -> int:
    """Bytes of this process and those that it started with multiprocessing, but for pages of files.

    Pages that they share count once, so that a page which one of them comes to write into shows. Pages of
    mapped files do not count: the kernel takes them back when it needs them. `ValueError` where the system
    does not tell.
    """
    pids = ["self", *(child.pid for child in multiprocessing.active_children())]
    paths = [Path(f"/proc/{pid}/smaps_rollup") for pid in pids]
    try:
        return sum(_number(path, field) for path in paths for field in OWN)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the memory of processes cannot be read from /proc/*/smaps_rollup ({error}); that takes Linux "
            "5.9 or later"
        ) from error


def _number(path: Path, field: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
