"""Thousands of broken inputs in a process of their own, in which a crash, a hang, too much memory, a command
that is run and a file that is written elsewhere are all seen.

Left out: how inputs are broken (mutators.py, broken_*.py), and what is read (test_fuzz_*.py).
"""

import faulthandler
import multiprocessing
import os
import random
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

# Seconds for one input, and bytes of address space for all of them beyond what the process begins with.
LIMIT, MEMORY = 20, 4 << 30
# Memory that may be taken at any time; a transparent picture just under Pillow's limit takes 1.8 GiB.
RESIDENT = 2 << 30
# What is imported once for all processes that read.
PRELOAD = (
    "accelerate",
    "prior",
    "pipelines.training.checkpoints",
    "pipelines.data.batches",
    "pipelines.tokens.items",
    "tokenizer",
)
# Failures after which a run is not worth going on with.
ENOUGH = 5

ERROR, RESULT = "error", "result"

# A test of broken inputs reads the first quarter of its numbers, and with `-m slow` all of them.
shares = pytest.mark.parametrize(
    "share", [pytest.param(4, id="quarter"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)


@dataclass(frozen=True)
class Subject:
    """What is to be fed: `read` makes an input from the random numbers that it is given, reads it and checks
    what comes of it. A `ValueError` is a refusal; it must say one of `named`. `counts` is for the report."""

    read: Callable[[random.Random], None]
    named: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)


# Builds a subject in a folder, in the process that is to read.
Make = Callable[[Path], Subject]


@dataclass
class Report:
    """How often each end was met, what the subject counted, the refusals by their text without numbers and
    names, and what failed."""

    ends: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        ends = ", ".join(f"{n} {end}" for end, n in [*self.ends.items(), *self.counts.items()])
        kinds = f"{len(self.refusals)} kinds of refusal"
        return f"{self.ends.total()} inputs in {self.seconds:.1f} s: {ends}; {kinds}"


def fuzz(make: Make, numbers: Iterable[int], folder: Path, limit: float = LIMIT) -> Report:
    """Read the inputs of these `numbers` in a process of its own, which may write into `folder` / "inside".

    Each may take `limit` seconds. Fails with the numbers of inputs that ended in anything but a refusal or a
    right result; the same call with [number] repeats one.
    """
    inside, log = folder / "inside", folder / "log"
    inside.mkdir()
    log.touch()
    before = set(folder.iterdir())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOAD])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_read_all, args=(make, list(numbers), inside, log, limit, send))
    child.start()
    send.close()
    report, number = Report(), -1
    try:
        while isinstance(message := receive.recv(), int):
            number = message
        report = message
    except EOFError:
        report.failures.append(f"input {number}: the process ended\n{log.read_text()}")
    child.join()
    assert not report.failures, f"{make.__module__}.{make.__qualname__}\n" + "\n".join(report.failures)
    assert set(folder.iterdir()) == before, "something was written beside the folder"
    print(f"{make.__qualname__}: {report}")
    return report


def _read_all(make: Make, numbers: list[int], inside: Path, log: Path, limit: float, send: Any) -> None:
    report = Report()
    torch.set_num_threads(1)
    # As in a script: warnings are shown, none ends anything.
    warnings.simplefilter("ignore")
    os.chdir(inside)
    with log.open("w") as file:
        faulthandler.enable(file)
        os.dup2(file.fileno(), 2)  # and what libraries in C have to say
        subject = make(inside)
        _forbid(inside)
        _limit_memory()
        for number in numbers:
            send.send(number)
            # A thread in C that needs no lock of Python's: it ends the process even in the middle of a read.
            faulthandler.dump_traceback_later(limit, exit=True, file=file)
            _read_one(subject, number, report)
            if len(report.failures) >= ENOUGH:
                break
        faulthandler.cancel_dump_traceback_later()
    report.counts = subject.counts
    report.seconds = time.process_time()
    if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) > RESIDENT:
        report.failures.append(f"an input took {peak >> 20} MiB of memory")
    send.send(report)


def _read_one(subject: Subject, number: int, report: Report) -> None:
    FORBIDDEN.clear()
    try:
        subject.read(random.Random(number))
        end = RESULT
    except ValueError as error:
        end, text = ERROR, str(error)
        report.refusals[re.sub(r"\S*[/\d'][^ ]*", "_", text[:1000])[:80]] += 1
        if problem := _unclear(text, subject.named):
            report.failures.append(f"input {number}: {problem}: {text[:500]}\n{_traceback(error)}")
    except BaseException as error:  # also what Rust raises when it panics
        end = "failure"
        report.failures.append(f"input {number}: {_traceback(error)}")
    report.ends[end] += 1
    report.failures += [f"input {number}: {event}" for event in FORBIDDEN]


def _unclear(text: str, named: tuple[str, ...]) -> str:
    """What is wrong with the message of a refusal."""
    if not any(name in text for name in named):
        return f"the message names none of {named}"
    if len(text) > 2000:
        return f"the message has {len(text)} characters"
    # Something was allocated before it was checked, and the error then taken for one of the file.
    return "memory ran out" if re.search(r"MemoryError|alloc|out of memory", text) else ""


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]


FORBIDDEN: list[str] = []


def _forbid(inside: Path) -> None:
    """Note every file that is opened for writing outside of `inside`, every process that is started, every
    connection that is made and every object that is unpickled, from now on."""
    own = str(inside)

    def outside(path: object) -> bool:
        return not os.path.realpath(os.fsdecode(path)).startswith(own)  # type: ignore[arg-type]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1:]
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            wrong = bool(writes) and outside(arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link"):
            wrong = any(outside(a) for a in arguments if isinstance(a, str | bytes))
        else:
            wrong = event in RUNS_CODE
        if wrong:
            FORBIDDEN.append(f"{event} {arguments!r:.300}")

    sys.addaudithook(hook)


RUNS_CODE = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
    *("pickle.find_class", "socket.connect", "ctypes.dlopen", "shutil.unpack_archive"),
}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
