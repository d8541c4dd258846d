"""A soak: runs that are killed at random, seeded instants, spread over all that they do, and resumed until
they end: in the same files as those that were not. `pytest -m soak -s` says where the kills struck.

Left out: chosen instants (test_kills.py).
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.killed import START, Instant, place_of_death
from tests.helpers.ports import held_port
from tests.helpers.running import ROOT, WHOLE_TOKENIZER, environment, read, whole_prior
from tests.helpers.whole_runs import assert_same_files, rows_of

RESUME = ("--resume", "latest")
# Of each script by itself, and of two processes together.
KILLS, LAUNCHES = 26, 4
# Half a k-means reservoir in the first of three checkpoints, averaged weights, and pruning after each.
TOKENIZER = (*WHOLE_TOKENIZER, "--keep-checkpoints", 1, "--gradient-accumulation", 2)
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2),
    *("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"),
)
# The share of kills from outside, by the clock; the others are counted events.
BY_CLOCK = 0.3

pytestmark = pytest.mark.soak


def begin(said: Path, *command: object) -> "subprocess.Popen[bytes]":
    """A process that adds to the file `said` what it says."""
    env = {**environment(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with said.open("ab") as file:
        return subprocess.Popen([*map(str, command)], cwd=ROOT, env=env, stdout=file, stderr=file)


def wait_for(begun: Callable[[], bool], process: "subprocess.Popen[bytes]", most: float) -> float:
    """Wait until a process has begun, and then for its end or so many seconds; returns how many."""
    while not begun() and process.poll() is None:
        time.sleep(0.01)
    since = time.monotonic()
    while time.monotonic() - since < most and process.poll() is None:
        time.sleep(0.001)
    return time.monotonic() - since


class Script:
    """One of the training scripts with its words, to be killed again and again in folders of `top`."""

    def __init__(self, name: str, words: tuple[Any, ...], top: Path, seed: int) -> None:
        self.script, self.words, self.top = f"pipelines/{name}.py", words, top
        self.begin = partial(begin, top / "said.txt", sys.executable)
        self.random, self.struck, self.clocked = random.Random(seed), Counter[str](), 0
        self.whole, self.counts, self.seconds = top / "whole", Counter[str](), 0.0

    def words_for(self, run: Path, *more: Any) -> tuple[Any, ...]:
        """To begin the run, or to go on with it."""
        return (*(more if (run / "run.json").exists() else self.words), "--output", run)

    def watched(self, folder: Path, instant: Instant | None, *more: Any) -> "subprocess.Popen[bytes]":
        folder.mkdir(exist_ok=True)
        (folder / "place").unlink(missing_ok=True)
        fields = json.dumps(instant and dataclasses.asdict(instant))
        words = self.words_for(folder / "run", *self.words, *RESUME, *more)
        return self.begin(ROOT / "tests" / "helpers/killed.py", folder, fields, self.script, *words)

    def measure(self) -> None:
        """Make the run that is not killed, and see how much happens where in a new life and in a resumed one;
        to be looked at changes nothing."""
        assert self.begin(self.script, *self.words_for(self.whole)).wait() == 0
        folder = self.top / "counted"
        assert self.watched(folder, Instant("step", 9, "call", "learn")).wait() == -signal.SIGKILL
        for again in (folder, self.top / "counted-whole"):
            process = self.watched(again, None)
            self.seconds = wait_for(partial(has_begun, again), process, 600)
            assert process.wait() == 0
            self.counts |= Counter(json.loads((again / "counts.json").read_text()))
            assert_same_files(again / "run", self.whole)

    def live(self, folder: Path) -> bool:
        """Begin or resume a run and kill it at a random instant; whether it did not end before that."""
        # Workers may come and go between lives.
        more = ("--data.workers", self.random.choice((0, 2))) if "tokenizer" in self.script else ()
        by_clock = self.random.random() < BY_CLOCK
        if by_clock:
            process = self.watched(folder, None, *more)
            wait_for(partial(has_begun, folder), process, self.random.uniform(0, self.seconds))
            process.kill()
        else:
            # One of those that were struck least, or most kills would strike the few that every life reaches.
            places = [place for place in sorted(self.counts) if self.counts[place]]
            least = min(self.struck[place] for place in places)
            place = self.random.choice([place for place in places if self.struck[place] == least])
            instant = Instant(place, self.random.randint(1, self.counts[place]))
            process = self.watched(folder, instant, *more)
        if process.wait() == 0:
            return False
        assert process.returncode == -signal.SIGKILL
        self.struck[place_of_death(folder)] += 1
        self.clocked += by_clock
        return True

    def kill(self, times: int) -> str:
        """Kill runs so many times in all, each a few times, and let each come to its end; says where."""
        runs = 0
        while self.struck.total() < times:
            runs += 1
            folder = self.top / f"run-{runs}"
            for _ in range(self.random.randint(2, 6)):
                if not self.live(folder):
                    break
            words = self.words_for(folder / "run", *RESUME)
            assert self.begin(self.script, *words).wait() == 0
            assert_same_files(folder / "run", self.whole)
        text = (
            f"{self.script}: {self.struck.total()} kills of {runs} runs, {self.clocked} of them by the clock"
        )
        return f"{text}: {json.dumps(self.struck)}"


def has_begun(folder: Path) -> bool:
    place = folder / "place"
    return place.exists() and place.stat().st_size > 0 and place_of_death(folder) != START


def test_a_tokenizer_killed_at_random(tmp_path: Path) -> None:
    script = Script("train_tokenizer", TOKENIZER, tmp_path, seed=1)
    script.measure()
    print("", script.kill(KILLS), sep="\n")


def test_a_prior_killed_at_random(tiny_tokens: Path, tmp_path: Path) -> None:
    script = Script("train_prior", (*whole_prior(tiny_tokens), "--keep-checkpoints", 1), tmp_path, seed=2)
    script.measure()
    print("", script.kill(KILLS), sep="\n")


def family(pid: int) -> list[int]:
    """A process and all that it has started, and those have."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [
        pid,
        *(p for children in lists for child in children.read_text().split() for p in family(int(child))),
    ]


def test_two_processes_killed_at_random(tmp_path: Path) -> None:
    whole, folder, chosen, struck = tmp_path / "whole", tmp_path / "run", random.Random(3), []

    def launch(run: Path, most: float) -> tuple["subprocess.Popen[bytes]", float]:
        """In two processes, killed `most` seconds after they opened the log."""
        log = run / "metrics.jsonl"
        before = log.stat().st_mtime_ns if log.exists() else 0
        words = (*TOKENIZER, "--max-steps", 40, *(RESUME if (run / "run.json").exists() else ()))
        with held_port() as port:
            said, script = tmp_path / "said.txt", "pipelines/train_tokenizer.py"
            process = begin(said, *LAUNCH, port, script, *words, "--output", run)
            seconds = wait_for(lambda: log.exists() and log.stat().st_mtime_ns != before, process, most)
        for pid in family(process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        return process, seconds

    process, seconds = launch(whole, 600)
    assert process.wait() == 0
    while len(struck) < LAUNCHES:
        process, _ = launch(folder, chosen.uniform(0, seconds))
        if process.wait() == 0:  # it ended before: another one
            assert_same_files(folder, whole)
            shutil.rmtree(folder)
        else:
            rows = rows_of(folder)
            struck.append(rows[-1]["step"] if rows else 0)
    assert launch(folder, 600)[0].wait() == 0
    assert_same_files(folder, whole)
    assert read(folder / "checkpoints" / "step-40" / "state.json")["processes"] == 2
    print(f"\ntwo processes: {len(struck)} kills after steps {struck}")
