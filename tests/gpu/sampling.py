"""Checks of sampling on a device: compiled steps give the codes of others, in graphs that are not skipped.

Left out: what a step computes (tests/prior/sampling/).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from pipelines.benchmarks.registry import in_turns, ratios, spread, synchronizer
from prior import Prior, PriorConfig
from tests.helpers.decoders import random_prior


def drawn(prior: Prior, rows: int, **options: float) -> Tensor:
    return prior.sample(rows, 0, generator=list(range(rows)), **options)  # type: ignore[arg-type]


def compiled_codes(device: torch.device, config: PriorConfig, rows: Sequence[int]) -> str:
    """Codes by compiled steps equal those of others for so many sequences in this order, guided too."""
    counters.clear()
    torch.compiler.reset()
    prior = random_prior(config).to(device)
    ready = prior.for_sampling(compile=True)
    count = 0
    for options in ({}, {"cfg_scale": 2.0}):
        for n in rows:
            differing = int((drawn(ready, n, **options) != drawn(prior, n, **options)).sum())
            assert not differing, f"{differing} codes of {n} sequences differ ({options})"
            count += 1
    skips, breaks = counters["inductor"]["cudagraph_skips"], sum(counters["graph_break"].values())
    assert skips == 0 and breaks == 0, f"{skips} skipped graphs, {breaks} graph breaks"
    return f"{count} calls, {counters['stats']['unique_graphs']} graphs compiled, none skipped"


def speed(device: torch.device, config: PriorConfig, batch: int, turns: int) -> str:
    """Milliseconds of a code by compiled steps, and their time beside that of others."""
    prior = random_prior(config).to(device)
    jobs = {}
    for compiled in (True, False):
        ready = prior.for_sampling(compile=compiled)
        jobs[str(compiled)] = lambda ready=ready: drawn(ready, batch)  # type: ignore[misc]
    seconds = in_turns(jobs, turns, 2, synchronizer(device))
    steps = prior.pattern.num_steps
    each = spread([1000 * s / steps for s in seconds["True"]])
    return f"{batch} at once: {each} ms a step compiled, / eager {ratios(seconds['True'], seconds['False'])}"
