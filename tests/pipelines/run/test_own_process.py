"""A function in a process of its own: what goes in and comes back, and that nothing of it stays.

Left out: what the benchmarks measure there.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.run.own_process import in_own_process
from tests.helpers.own_process_jobs import fail, seen, wait
from tests.helpers.running import ROOT, environment


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that ended and was not waited for is none.
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def ends(process: int) -> bool:
    """Whether it ends within ten seconds."""
    for _ in range(100):
        if not is_there(process):
            return True
        time.sleep(0.1)
    return False


def test_values_go_in_and_come_back() -> None:
    found = in_own_process(seen, [1, "a", None, 2.5], threads=2, environment={"MADE_UP": "b"})
    assert found["values"] == [1, "a", None, 2.5] and found["process"] != os.getpid()
    assert found["threads"] == min(2, os.cpu_count() or 1) and found["variables"] == ["2", "b"]
    assert not is_there(found["process"])


@pytest.mark.parametrize("words", ["of the error", "x" * 5000 + " at its end"])
def test_the_error_of_the_process_is_raised_with_its_text(words: str) -> None:
    with pytest.raises(
        ValueError, match=r"own_process_jobs\.fail\(.* exit code 1: (.|\n)*" + words[-12:]
    ) as error:
        in_own_process(fail, words)
    assert len(str(error.value)) < 2500


def test_it_ends_with_the_call(tmp_path: Path) -> None:
    there = tmp_path / "process"

    class Enough(Exception):
        """Not an InterruptedError, which selectors take for a system call to be tried again."""

    def interrupt(*_: object) -> None:
        raise Enough

    def interrupt_once_it_is_there() -> None:
        while not (there.exists() and there.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    watch = threading.Thread(target=interrupt_once_it_is_there, daemon=True)
    watch.start()
    try:
        with pytest.raises(Enough):
            in_own_process(wait, str(there))
    finally:
        watch.join()
        signal.signal(signal.SIGALRM, before)
    assert ends(int(there.read_text()))


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    file = tmp_path / "process"
    ask = (
        "from pipelines.run.own_process import in_own_process\n"
        "from tests.helpers.own_process_jobs import wait\n"
        f"in_own_process(wait, {str(file)!r})"
    )
    asking = subprocess.Popen([sys.executable, "-c", ask], cwd=ROOT, env=environment())
    try:
        for _ in range(600):
            if file.exists() and file.read_text():
                break
            time.sleep(0.1)
        process = int(file.read_text())
        assert is_there(process)
    finally:
        asking.kill()
        asking.wait()
    assert ends(process)
