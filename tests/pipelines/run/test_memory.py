"""Freed memory is kept for reuse, and huge pages are asked for, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.environment import TUNED_BY
from tests.helpers.warm import run_words

# Pages that a process takes anew for 20 more tensors of 64 MiB, one after the other.
PAGES = """
import resource, sys
import torch
from pipelines.run import command_line as cli
from pipelines.run import environment as heap

kept = heap.keep_freed_memory() if sys.argv[1] == "keep" else False
if sys.argv[1] == "script":
    cli.run(lambda: None)
for _ in range(20):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No allocator that the user has tuned."""
    for name in TUNED_BY:
        monkeypatch.delenv(name, raising=False)


def pages_taken(argument: str, **variables: str) -> tuple[bool, int]:
    done = run_words("-c", PAGES, argument, variables=variables)
    assert done.code == 0, done.err
    kept, pages = done.out.split()
    return kept == "1", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again_when_it_is_kept_as_by_every_script() -> None:
    _, left = pages_taken("leave")
    kept, pages = pages_taken("keep")
    assert kept and pages * 10 < left
    assert pages_taken("script")[1] * 10 < left


# Whether a large tensor of a script lies on huge pages, where the system gives them.
HUGE = """
import os
from pathlib import Path
from pipelines.run.environment import prepare_environment

prepare_environment()
import torch

tensor = torch.ones(1 << 25)
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(os.environ["THP_MEM_ALLOC_ENABLE"], *(line.split()[1] for line in lines if "AnonHugePages" in line))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has these pages")
@pytest.mark.parametrize("value", [None, "0"])
def test_large_tensors_lie_on_huge_pages(value: str | None) -> None:
    clean = {name: v for name, v in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    env = clean if value is None else {**clean, "THP_MEM_ALLOC_ENABLE": value}
    done = subprocess.run([sys.executable, "-c", HUGE], env=env, capture_output=True, text=True, check=True)
    said, kib = done.stdout.split()
    assert said == (value or "1")
    given = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if given.exists() and "[madvise]" in given.read_text():
        assert (int(kib) > 1 << 16) == (value is None)


def test_the_environment_comes_first() -> None:
    assert not pages_taken("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
