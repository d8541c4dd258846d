"""A function in a process of its own: a new interpreter, whose memory and threads nothing else has touched.

Left out: many jobs for one process (`evaluation/speech.py` has a line to each of its own), and what is
measured in one (`benchmarks/process_memory.py`).
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Where the packages lie.
ROOT = Path(__file__).resolve().parents[2]
# What libraries of threads read when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Of what the process wrote to stderr, characters that an error shows.
SHOWN = 2000


def in_own_process(
    function: Callable[..., Any],
    *arguments: Any,
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What `function(*arguments)` returns in a new interpreter; both are plain JSON values, and tuples become
    lists. The function is one that its module has by name.

    `threads` (None: as without) and `environment` are there before anything is imported. `ValueError` with
    the end of its stderr if the process fails. It ends with this call, and with this process, however these
    end.
    """
    named = (function.__module__, function.__qualname__)
    job = json.dumps([*named, arguments])
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    counts = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    held, line = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from pipelines.run.own_process import answer; answer()", str(held)],
            input=job,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **counts, **(environment or {})},
            pass_fds=(held,),
        )
    finally:
        os.close(held)
        os.close(line)
    if done.returncode:
        raise ValueError(
            f"{'.'.join(named)}{arguments!r:.200} failed in a process of its own with exit code "
            f"{done.returncode}: {done.stderr.strip()[-SHOWN:]}"
        )
    return json.loads(done.stdout)


def answer() -> None:
    """Read a job from stdin and write what it returns to stdout; what it prints goes to stderr."""
    line = int(sys.argv[1])

    def watch() -> None:
        os.read(line, 1)  # until nobody is left who could write
        os._exit(1)

    threading.Thread(target=watch, name="asker", daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        module, name, arguments = json.load(sys.stdin)
        json.dump(getattr(importlib.import_module(module), name)(*arguments), out)
