"""The helper that forks processes instead of starting them: they end and speak as python's own do."""

import subprocess
import sys

import pytest

from tests.helpers.warm import run_ranks, run_words

PROGRAMS = (
    "import sys; print(sys.argv, __name__)",
    "raise SystemExit(3)",
    "raise SystemExit",
    "raise SystemExit('a reason')",
    "1 / 0",
    "import os; os._exit(4)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import atexit; atexit.register(print, 'end'); print('begin')",
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_forked_process_ends_as_one_of_its_own_does(program: str) -> None:
    forked = run_words("-c", program, "a word")
    done = subprocess.run([sys.executable, "-c", program, "a word"], capture_output=True, text=True)
    assert (forked.code, forked.out) == (done.returncode, done.stdout)
    assert forked.err.splitlines()[-1:] == done.stderr.splitlines()[-1:]


def test_who_holds_stdout_is_waited_for() -> None:
    late = "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 0.3; echo late'])"
    assert run_words("-c", late).out == "late\n"


def test_what_does_not_end_in_time_is_ended() -> None:
    with pytest.raises(TimeoutError, match="not all processes have ended in time"):
        run_words("-c", "import time; print('waiting', flush=True); time.sleep(1000)", timeout=1)
    assert run_words("-c", "pass").code == 0


def test_ranks_know_each_other() -> None:
    program = (
        "import os; print(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')))"
    )
    said = [rank.out.split() for rank in run_ranks(3, "-c", program)]
    assert [words[:3] for words in said] == [[str(n), str(n), "3"] for n in range(3)]
    assert len({words[3] for words in said}) == 1
