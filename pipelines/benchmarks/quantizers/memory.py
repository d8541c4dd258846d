"""The memory that a training step of a bottleneck takes: its peak in a fresh process, above that before.

Left out: memory of encoder, decoder and optimizers, which is the same for all, and of GPUs.
"""

import os
from pathlib import Path

import torch

from pipelines.benchmarks.process_memory import MIB, status
from pipelines.benchmarks.quantizers.contestants import contestants
from pipelines.run.own_process import in_own_process
from tokenizer.distributed import Step

CLEAR = Path("/proc/self/clear_refs")
STEPS = 3


def available() -> bool:
    """Whether the system can forget a process's peak, so that a start by k-means does not count: Linux."""
    return os.access(CLEAR, os.W_OK)


def bottleneck_memory(name: str, bits: int, dim: int, batch_size: int, grid: tuple[int, int]) -> float:
    """`growth_of_a_step` in a process of its own, with as many threads as here."""
    # Freed tensors go back to the system (mallopt(3)), instead of being kept for the step that is measured.
    environment = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    sizes, threads = (bits, dim, batch_size, grid), torch.get_num_threads()
    value: float = in_own_process(growth_of_a_step, name, *sizes, threads=threads, environment=environment)
    return value


def growth_of_a_step(name: str, bits: int, dim: int, batch_size: int, grid: tuple[int, int]) -> float:
    """MiB by which the resident memory grows at most during a forward and backward pass in training, after
    the codes have started; z (batch_size, in_dim, *grid) and its gradient are not in it."""
    (contestant,), _ = contestants(bits, dim, [name])
    torch.manual_seed(0)
    bottleneck = contestant.config.starting_within(1).build().train()
    z = torch.randn(batch_size, bottleneck.in_dim, *grid, requires_grad=True)
    index, ready_for, growth = 0, 0, 0
    while ready_for <= STEPS:
        CLEAR.write_text("5")
        before = status("VmRSS")
        out = bottleneck(z, Step(0, index, 0, batch_size))
        (out.z_q.square().mean() + sum(out.losses.values())).backward()
        del out
        if ready_for:  # the first step after the start makes the workspaces of its operations
            growth = max(growth, status("VmHWM") - before)
        index, ready_for = index + 1, ready_for + bottleneck.ready
    return growth / MIB
