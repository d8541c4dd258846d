"""What benchmarks share: their registry, timing in turns, ratios with their spread, and the machine they
ran on.

Left out: the benchmarks themselves. Each has a room beside this file; a new one is found without touching
others.
"""

import dataclasses
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from tokenizer.hub.model import library_version

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R", bound=Callable[..., dict[str, Any]])


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by name: `measure` takes its options, prints tables and returns what goes into the file."""

    options: type
    measure: Callable[..., dict[str, Any]]
    about: str


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, options: type, about: str) -> Callable[[R], R]:
    """Enter a function that takes `options` and returns JSON values into the registry under `name`."""

    def add(measure: R) -> R:
        BENCHMARKS[name] = Benchmark(options, measure, about)
        return measure

    return add


@dataclass(frozen=True)
class Spread:
    """Several measurements of one value."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g}..{self.high:.4g})"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(statistics.median(values), min(values), max(values))


def in_turns(
    jobs: Mapping[str, Callable[[], object]],
    turns: int,
    warm_up: int,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Wall-clock seconds of every job in each of `turns` turns, after `warm_up` turns that do not count.

    A turn runs every job once, and every other turn in the opposite order: what else the machine does falls
    on all of them alike. `synchronize` waits until the device is done.
    """

    def timed(job: Callable[[], object]) -> float:
        synchronize()
        started = time.perf_counter()
        job()
        synchronize()
        return time.perf_counter() - started

    return alternately({name: partial(timed, job) for name, job in jobs.items()}, turns, warm_up)


def alternately(jobs: Mapping[K, Callable[[], T]], turns: int, warm_up: int) -> dict[K, list[T]]:
    """What every job returns in each of `turns` turns as those of `in_turns`."""
    found: dict[K, list[T]] = {name: [] for name in jobs}
    for turn in range(-warm_up, turns):
        for name in list(jobs)[:: -1 if turn % 2 else 1]:
            value = jobs[name]()
            if turn >= 0:
                found[name].append(value)
    return found


def ratios(ours: Sequence[float], peer: Sequence[float], scale: float = 1.0) -> Spread:
    """The spread of ours / peer · scale, turn by turn."""
    return spread([scale * a / b for a, b in zip(ours, peer, strict=True)])


def chosen_device(name: str) -> torch.device:
    """The device that an option names; auto: a GPU if there is one. `ValueError` for a GPU that is not
    there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no GPU that torch can use; leave it out or give cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def plain(value: Any) -> Any:
    """Spreads as JSON objects, in dicts too."""
    if isinstance(value, Spread):
        return dataclasses.asdict(value)
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits until `device` has done all that it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def machine(device: torch.device, *packages: str) -> dict[str, Any]:
    """Where and with what a benchmark ran: device, threads, the versions of `packages` too, the command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "versions": {
            "tokenloom": library_version(),
            "python": platform.python_version(),
            **{package: _version(package) for package in ("torch", *packages)},
        },
        "command": shlex.join(["python", f"pipelines/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    """The model of the CPU, as the kernel gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(title: str, rows: Sequence[Sequence[object]]) -> None:
    """Rows as aligned columns under a title; the first row is the head."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    print(title)
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"  {line.rstrip()}")
    print()
