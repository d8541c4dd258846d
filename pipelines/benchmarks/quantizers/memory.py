"""The memory that a training step of a bottleneck takes: its peak in a fresh process, above that before.

Left out: memory of encoder, decoder and optimizers, which is the same for all, and of GPUs.
"""

import json
import os
import sys
from pathlib import Path

import torch

from pipelines.benchmarks.own_process import MIB, run_module, status
from pipelines.benchmarks.quantizers.contestants import contestants
from tokenizer.distributed import Step

CLEAR = Path("/proc/self/clear_refs")
STEPS = 3


def available() -> bool:
    """Whether the system can forget a process's peak, so that a start by k-means does not count: Linux."""
    return os.access(CLEAR, os.W_OK)


def measure_in_a_process(name: str, bits: int, dim: int, batch_size: int, grid: tuple[int, int]) -> float:
    """`measure` in a process of its own, with as many threads as here."""
    # Freed tensors go back to the system (mallopt(3)), instead of being kept for the step that is measured.
    environment = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    words = (name, bits, dim, batch_size, *grid)
    value: float = run_module("pipelines.benchmarks.quantizers.memory", *words, environment=environment)
    return value


def measure(name: str, bits: int, dim: int, batch_size: int, grid: tuple[int, int]) -> float:
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


if __name__ == "__main__":
    _name, *_numbers = sys.argv[1:]
    _bits, _dim, _batch_size, _height, _width, _threads = map(int, _numbers)
    torch.set_num_threads(_threads)
    print(json.dumps(measure(_name, _bits, _dim, _batch_size, (_height, _width))))
