"""Processes that are forked from one that has imported what scripts import, which takes longer than most of
them: `run_words` for one, `run_each` for several, `run_ranks` for several that are connected. Trainings draw
no pictures in them unless the variable DRAW is set.

Left out: accelerate's launcher (launching.py), and processes that these start, which are not forked. The
first process has computed nothing, so that no thread of OpenMP is missing in the others. What is read while
torch is imported is as here, whatever `variables` say.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.helpers.ports import held_port
from tests.helpers.running import ROOT, Finished, draw_nothing, environment

PRELOAD = (
    *("pipelines.encode_dataset", "pipelines.evaluate", "pipelines.sample"),
    *("pipelines.train_prior", "pipelines.train_tokenizer", "tests.helpers.tiny"),
    *("torchmetrics.functional.image", "matplotlib.pyplot", "torch._dynamo", "pandas", "pyarrow.parquet"),
)
# Of a request, in bytes; a packet is sent whole or not at all.
MOST = 1 << 17
# Of the number of a process, which comes before its status.
DIGITS = 10


def run_words(*words: object, variables: Mapping[str, str] | None = None, timeout: float = 600) -> Finished:
    """`python words…` (`-c CODE`, `-m MODULE` or a file, and its words), in a group of its own and with these
    variables besides those of `environment()`. As from subprocess, the code of a signal is negative, and all
    that hold stdout or stderr have ended when this returns."""
    return _run([(words, variables or {})], timeout)[0]


def run_each(*lines: Sequence[object], variables: Mapping[str, str], timeout: float = 600) -> list[Finished]:
    """The same for the words of several processes at the same time."""
    return _run([(words, variables) for words in lines], timeout)


def run_ranks(
    world: int, *words: object, variables: Mapping[str, str] | None = None, timeout: float = 600
) -> list[Finished]:
    """The same as so many connected ranks, each with one thread on the CPU."""
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    common |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", **(variables or {})}
    with held_port() as port:
        own = [{"RANK": str(n), "LOCAL_RANK": str(n), "MASTER_PORT": str(port)} for n in range(world)]
        return _run([(words, common | variables) for variables in own], timeout)


def _run(processes: Sequence[tuple[Sequence[object], Mapping[str, str]]], timeout: float) -> list[Finished]:
    """A process for each of these words and variables."""
    until, pids, pipes = time.monotonic() + timeout, [], []
    try:
        for words, own in processes:
            ends = [os.pipe() for _ in ("stdout", "stderr", "status")]
            pipes += [read for read, _ in ends]
            request = json.dumps([list(map(str, words)), {**environment(), **own}]).encode()
            assert len(request) < MOST
            socket.send_fds(_server(), [request], [write for _, write in ends])
            for _, write in ends:
                os.close(write)
            pids.append(int(os.read(pipes[-1], DIGITS)))
        texts = _read_all(pipes, until)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what is left of it
        for pipe in pipes:
            os.close(pipe)
    return [Finished(int(code), out, err) for out, err, code in zip(*[iter(texts)] * 3, strict=True)]


def _read_all(pipes: Sequence[int], until: float) -> list[str]:
    """What comes from each until nobody holds it any more."""
    texts = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            if not (ready := selector.select(max(0.0, until - time.monotonic()))):
                said = b"\n".join(texts.values()).decode(errors="replace")
                raise TimeoutError(f"not all processes have ended in time; they said\n{said}")
            for key, _ in ready:
                if part := os.read(key.fd, 1 << 16):
                    texts[key.fd] += part
                else:
                    selector.unregister(key.fd)
    return [text.decode() for text in texts.values()]


@functools.cache
def _server() -> socket.socket:
    """Where the process takes requests; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"from tests.helpers.warm import serve; serve({theirs.fileno()})"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(), pass_fds=[theirs.fileno()]
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(number: int) -> None:
    """Answer requests until nobody is left to make any. In a process that was asked for this returns when it
    has done what its words say, and must be the last that it does."""
    codes: list[int] = []
    atexit.register(_leave, codes)  # first, so that it runs last
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # pages stay shared
    control, running = socket.socket(fileno=number), dict[int, tuple[int, int]]()
    while True:
        ready, _, _ = select.select([control, *running], [], [])
        for ended in ready:
            if ended is not control:
                pid, status = running.pop(ended)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # who asked waits no more
                    os.write(status, str(code).encode())
                os.close(status)
                os.close(ended)
        if control not in ready:
            continue
        request, files, *_ = socket.recv_fds(control, MOST, 3)
        if not request:
            return
        *pipes, status = files
        if (pid := os.fork()) == 0:
            control.close()
            for open_file in (status, *running, *(status for _, status in running.values())):
                os.close(open_file)
            codes.append(_become(*json.loads(request), *pipes))
            return
        os.write(status, f"{pid:{DIGITS}}".encode())
        running[os.pidfd_open(pid)] = (pid, status)
        for pipe in pipes:
            os.close(pipe)


def _leave(codes: list[int]) -> None:
    """End a process that was asked for, without taking apart what it shares, which takes a second or two."""
    if codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


def _become(words: list[str], variables: dict[str, str], out: int, err: int) -> int:
    """Go on as a process of its own that was started with these words; returns the code to end with."""
    os.setsid()
    for number, pipe in ((1, out), (2, err)):
        os.dup2(pipe, number)
        os.close(pipe)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    if "DRAW" not in variables:
        draw_nothing()
    try:
        _run_main(*words)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run_main(kind: str, *rest: str) -> None:
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = list(rest)
        sys.modules.pop(rest[0], None)  # or runpy warns of it
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
