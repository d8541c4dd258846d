"""STOI, PESQ and DNSMOS of many sounds, on all cores that a process may use: none takes more than one core,
and they take longer than all else that is measured.

Left out: the measures (`tokenizer.sound_metrics`), and what sounds they are taken of (`data/clips.py`).
"""

import contextlib
import os
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.run.signals import ignore_requests
from tokenizer.sound_metrics import dnsmos, pesq, stoi

# A helper takes 2 to 3 s to start, as long as it takes over some 70 s of sound.
SECONDS_EACH = 300
# Seconds of sound that take STOI and PESQ as long as a clip takes DNSMOS, of what is rebuilt and of the data.
DNSMOS_SECONDS = 30
# Each holds some 0.3 GiB.
MOST = 8
# More threads than processes would only get in each other's way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# Where this package and `tokenizer` lie.
ROOT = Path(__file__).resolve().parents[2]

MEASURES = {"stoi": stoi, "pesq": pesq, "dnsmos": dnsmos}
# What takes so long that it is not measured at every number of codebooks.
SLOW = ("dnsmos",)

# {measure: sum of the values, and of how many items}
Totals = dict[str, tuple[float, float]]
# The measures wanted, and x_hat and x, (B, C, T) both.
Job = tuple[tuple[str, ...], NDArray[np.float32], NDArray[np.float32]]


class Helper(NamedTuple):
    """A process that scores, and the line to it."""

    process: "subprocess.Popen[bytes]"
    line: "Connection[Any, Any]"


class SpeechScores:
    """Within the context, takes the measures `names` of pairs of sounds: in `helpers` processes while these
    have time for them, else here, so that every core has one thing to do.

    Helpers get no signals that go to the group of this process, start no threads, and end with the context or
    with this process, however that ends. All pairs are added when the context ends without an error.
    """

    def __init__(self, names: Sequence[str], sample_rate: int, helpers: int) -> None:
        self.names, self.sample_rate = tuple(names), sample_rate
        self.helpers = [start_helper(sample_rate) for _ in range(helpers if names else 0)]
        self._idle: SimpleQueue[Helper] = SimpleQueue()
        for helper in self.helpers:
            self._idle.put(helper)
        # Threads only wait for helpers; what does not fit into the line to one would block this one.
        self._threads = ThreadPoolExecutor(max(1, helpers))
        self._asked: deque[Future[Totals]] = deque()
        self._results: deque[tuple[Callable[[str, float, float], None], Future[Totals]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._results:
                self._add_first()
        finally:
            for helper in self.helpers:
                helper.process.kill()
            self._threads.shutdown(cancel_futures=True)
            for helper in self.helpers:
                helper.process.wait()
                helper.line.close()

    def measure(
        self, add: Callable[[str, float, float], None], x_hat: Tensor, x: Tensor, slow: bool = True
    ) -> None:
        """Give `add` each measure's name, its sum over the pairs of x_hat and x, (B, C, T) both, and how many
        it could be taken of: some time later, but in the order of the calls.

        dnsmos has no reference, so that of x comes too, as dnsmos_original; neither without `slow`. Raises
        what a measure of these or of earlier pairs raised; `ChildProcessError` if a helper has ended.
        """
        names = tuple(name for name in self.names if slow or name not in SLOW)
        if not names:
            return
        job = (names, x_hat.float().cpu().numpy(), x.float().cpu().numpy())
        self._asked = deque(future for future in self._asked if not future.done())
        if len(self._asked) < 2 * len(self.helpers):  # one that it works on, and one for when it is done
            future = self._threads.submit(self._ask, job)
            self._asked.append(future)
        else:
            future = Future()
            future.set_result(totals(job, self.sample_rate))
        self._results.append((add, future))
        while self._results and self._results[0][1].done():
            self._add_first()

    def _add_first(self) -> None:
        add, future = self._results.popleft()
        for name, (total, count) in future.result().items():
            add(name, total, count)

    def _ask(self, job: Job) -> Totals:
        """What a helper makes of a job."""
        helper = self._idle.get()
        try:
            helper.line.send(job)
            answer: Totals | Exception = helper.line.recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(
                f"a process that measured {' and '.join(self.names)} has ended with exit code "
                f"{helper.process.wait()}; if memory ran out, give the run fewer cores (taskset -c 0 COMMAND "
                "measures in one process)"
            ) from error
        finally:
            self._idle.put(helper)
        if isinstance(answer, Exception):
            raise answer
        return answer


def helper_count(seconds: float, local_processes: int) -> int:
    """How many helpers pay for `seconds` of sound, with each of `local_processes` like this one: this one's
    share of the cores, less the one that it keeps busy itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(cores // local_processes - 1, int(seconds // SECONDS_EACH), MOST))


def start_helper(sample_rate: int) -> Helper:
    """A new interpreter that answers jobs: a fork would hold this one's threads' locks, and GPU."""
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.evaluation.speech", str(sample_rate), str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,
        )
    return Helper(process, ours)


def totals(job: Job, sample_rate: int) -> Totals:
    """The measures that a job asks for."""
    names, *pair = job
    x_hat, x = map(torch.from_numpy, pair)
    scores = {name: MEASURES[name](x_hat, x, sample_rate) for name in names}
    if "dnsmos" in scores:
        scores["dnsmos_original"] = dnsmos(x, x, sample_rate)
    return {name: (float(s.values.double().sum()), float(s.measured.sum())) for name, s in scores.items()}


def main() -> None:
    """Answer the jobs that come on an open line, until that is closed."""
    ignore_requests()
    sample_rate, descriptor = map(int, sys.argv[1:])
    with Connection(descriptor) as line, contextlib.suppress(EOFError, ConnectionError):
        while True:
            job: Job = line.recv()
            try:
                answer: Totals | Exception = totals(job, sample_rate)
            except Exception as error:
                error.add_note("".join(traceback.format_exception(error)))
                answer = error
            line.send(answer)


if __name__ == "__main__":
    main()
