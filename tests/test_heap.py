"""Freed memory is kept for reuse, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from pipelines.heap import TUNED_BY

# Pages that a process takes anew for 20 more tensors of 64 MiB, one after the other.
PAGES = """
import resource, sys
import torch
from pipelines import cli, heap

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


def pages_taken(argument: str, **environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if name not in TUNED_BY}
    command = [sys.executable, "-c", PAGES, argument]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    kept, pages = done.stdout.split()
    return kept == "1", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again() -> None:
    assert pages_taken("keep")[0]
    assert pages_taken("keep")[1] * 10 < pages_taken("leave")[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_every_script_does_so() -> None:
    assert pages_taken("script")[1] * 10 < pages_taken("leave")[1]


def test_the_environment_comes_first() -> None:
    assert not pages_taken("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
