"""The benchmark `sampling`: speed of drawing several positions in a step beside one position at a time.

Left out: what is drawn, which `evaluate.py --samples` measures, and other weights (`sampling.py`).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipelines.benchmarks.prior.sampling import Jobs
from pipelines.benchmarks.prior.training import build
from pipelines.benchmarks.registry import (
    benchmark,
    chosen_device,
    in_turns,
    machine,
    plain,
    print_table,
    ratios,
    spread,
    synchronizer,
)
from prior import Prior, PriorConfig
from prior.sampling.cpu.products import installed
from tokenizer.variants import at_least, require

ONE_BY_ONE, COMPILED = "one by one", "one by one, compiled"


@dataclass(frozen=True)
class SamplingBenchmark:
    """Options of benchmark.py sampling. The defaults are the prior of the digits' 49 codes."""

    grid: tuple[int, int] = (7, 7)
    """Rows and columns of an item's codes."""
    codebook_size: int = 128
    """Entries N of the codebook."""
    dim: int = 128
    """Width of the transformer."""
    depth: int = 4
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads."""
    batch_sizes: tuple[int, ...] = (64,)
    """Items drawn at once, one measurement each."""
    steps: tuple[int, ...] = (8, 16)
    """Steps of drawing several positions in each."""
    cfg_scale: float = 1.0
    """Guidance; another value than 1 takes two passes for each item."""
    turns: int = 10
    """Timed turns; 10 or more for numbers that go elsewhere."""
    warm_up: int = 1
    """Turns before them that do not count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    output: Path | None = None
    """Folder for benchmark-sampling.json."""

    def __post_init__(self) -> None:
        positions = self.grid[0] * self.grid[1]
        require(len(self.batch_sizes) > 0, "batch_sizes is empty, expected one or more")
        require(min(self.batch_sizes) >= 1, f"batch_sizes are {self.batch_sizes}, expected 1 or more each")
        fit = all(1 <= n <= positions for n in self.steps)
        require(fit, f"steps are {self.steps}, expected 1 to {positions} (the positions) each")
        at_least(self, 1, "turns")
        at_least(self, 0, "warm_up")


def parallel_jobs(prior: Prior, batch: int, steps: tuple[int, ...], cfg_scale: float) -> Jobs:
    """What is timed: `sample` one position at a time, compiled too where it can be, and in so many steps
    in both orders."""
    ready = prior.for_sampling()
    draw = partial(ready.sample, batch, 0, cfg_scale=cfg_scale)
    found: Jobs = {ONE_BY_ONE: draw}
    if prior.head.device.type == "cuda" or installed():
        compiled = prior.for_sampling(compile=True)
        found[COMPILED] = partial(compiled.sample, batch, 0, cfg_scale=cfg_scale)
    for count in steps:
        for order in ("random", "confidence"):
            found[f"{count} steps, {order}"] = partial(draw, steps=count, order=order)
    return found


@benchmark(
    "sampling",
    SamplingBenchmark,
    "Speed of drawing from a prior of every order in few steps, beside one position at a time.",
)
def measure_sampling(options: SamplingBenchmark) -> dict[str, Any]:
    """Compare at every batch size."""
    device = chosen_device(options.device)
    config = PriorConfig(
        codebook_size=options.codebook_size,
        grid=options.grid,
        class_names=("class",),
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        order="any",
    )
    prior = build(config, device)
    where = machine(device, "numba")
    print(f"{where['device']}, {where['threads']} threads\n")
    results: dict[str, Any] = {}
    for batch in options.batch_sizes:
        jobs = parallel_jobs(prior, batch, options.steps, options.cfg_scale)
        seconds = in_turns(jobs, options.turns, options.warm_up, synchronizer(device))
        rows = results[str(batch)] = {
            name: {
                "items_per_second": spread([batch / s for s in values]),
                "faster": ratios(seconds[ONE_BY_ONE], values),
            }
            for name, values in seconds.items()
        }
        print_table(
            f"Drawing {config.num_codes} codes of {batch} at once: median over turns (least..greatest)",
            [
                ("", "items per second", f"times as fast as {ONE_BY_ONE}"),
                *((name, str(row["items_per_second"]), str(row["faster"])) for name, row in rows.items()),
            ],
        )
    print("  ".join(f"{k} {v}" for k, v in where["versions"].items()))
    print(f"{where['command']}\n")
    return {**where, "turns": options.turns, "sampling": plain(results)}
