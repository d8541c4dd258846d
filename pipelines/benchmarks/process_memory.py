"""The memory of a process and of those that it started, as the system tells it.

Left out: processes of their own, whose peak nothing else has raised (`pipelines/run/own_process.py`), what is
measured in them (`memory.py` in the rooms), and GPUs.
"""

import multiprocessing
import resource
import sys
from pathlib import Path

MIB = 1 << 20
STATUS = Path("/proc/self/status")
# Of a process's smaps_rollup (proc_pid_smaps(5)): memory that no file backs, as a part of the pages that it
# shares with others, such as those that it was forked from.
OWN = ("Pss_Anon", "Pss_Shmem")


def peak() -> int:
    """Bytes of this process's largest resident memory so far."""
    # Linux's ru_maxrss begins with the peak of the process that started this one; VmHWM is its own (proc(5)).
    if STATUS.exists():
        return status("VmHWM")
    # The unit is KiB on Linux and bytes on macOS (getrusage(2) of each).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def status(field: str) -> int:
    """Bytes of one of Linux's numbers about this process (proc(5))."""
    return _numbers(STATUS)[field]


def own_memory() -> int:
    """Bytes of this process and those that it started with multiprocessing, but for pages of files.

    Pages that they share count once, so that a page which one of them comes to write into shows. Pages of
    mapped files do not count: the kernel takes them back when it needs them. `ValueError` where the system
    does not tell.
    """
    pids = ["self", *(child.pid for child in multiprocessing.active_children())]
    paths = [Path(f"/proc/{pid}/smaps_rollup") for pid in pids]
    try:
        return sum(numbers[field] for numbers in map(_numbers, paths) for field in OWN)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"the memory of processes cannot be read from /proc/*/smaps_rollup ({error}); that takes Linux "
            "5.9 or later"
        ) from error


def _numbers(path: Path) -> dict[str, int]:
    """Bytes by the names of a file's fields in KiB."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {words[0][:-1]: int(words[1]) * 1024 for line in lines if (words := line.split())[-1] == "kB"}
