"""The benchmark `sampling`: what it compares, prints and writes, of a tiny model.

Left out: how fast anything is.
"""

from pathlib import Path

import pytest
import torch

from pipelines.benchmarks.prior.parallel import COMPILED, ONE_BY_ONE, SamplingBenchmark, parallel_jobs
from pipelines.benchmarks.prior.training import build
from prior import PriorConfig
from prior.sampling.cpu.products import installed
from tests.helpers.running import read, run_script

NAMES = {ONE_BY_ONE, *(f"{n} steps, {order}" for n in (2, 3) for order in ("random", "confidence"))}
NAMES |= {COMPILED} if installed() else set()
CONFIG = PriorConfig(8, grid=(2, 3), class_names=("a",), dim=16, depth=1, heads=2, order="any")


def test_all_jobs_draw_as_much() -> None:
    jobs = parallel_jobs(build(CONFIG, torch.device("cpu")), 3, (2, 3), 2.0)
    assert jobs.keys() == NAMES
    for job in jobs.values():
        drawn = job()
        assert isinstance(drawn, torch.Tensor) and drawn.shape == (3, 1, 2, 3) and drawn.min() >= 0


def test_it_prints_and_writes_its_numbers(tmp_path: Path) -> None:
    sizes = ("--grid", 2, 3, "--codebook-size", 8, "--dim", 16, "--depth", 1, "--heads", 2)
    words = ("--batch-sizes", 2, "--steps", 2, 3, "--turns", 2, "--device", "cpu", "--output", tmp_path)
    finished = run_script("benchmark", "sampling", *sizes, *words)
    found = read(tmp_path / "benchmark-sampling.json")["sampling"]["2"]
    assert found.keys() == NAMES and found[ONE_BY_ONE]["faster"]["median"] == 1
    assert "2 steps, random" in finished.out and "times as fast as one by one" in finished.out


@pytest.mark.parametrize(("steps", "named"), [((0,), "steps are"), ((50,), "expected 1 to 49")])
def test_steps_that_do_not_fit_are_refused(steps: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingBenchmark(steps=steps)
