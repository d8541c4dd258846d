"""What training needs to know of the other processes: the position in a run, keyed noise, summed
statistics.

Left out: starting processes, moving data and wrapping models; `accelerate` does those in `pipelines/`.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.devices import send


@dataclass(frozen=True)
class Step:
    """Where a forward pass stands in a training run; keys its noise and places its rows in the global
    batch.

    `index` is the optimizer step, `offset` the row of the global batch (all processes, all accumulation
    steps) at which this pass's rows begin, `total` the rows of the global batch, and `last` says whether
    this is the last accumulation step, after which codebook statistics are summed over all processes and
    applied. `optional`: who trains leaves the step out if its gradient is not finite, so a tokenizer whose
    z_e is not gives a loss and a gradient that are not, instead of an error; all processes learn of it then.
    """

    seed: int
    index: int
    offset: int
    total: int
    last: bool = True
    optional: bool = False

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on `(seed, index, purpose)` alone, hence is equal on every process."""
        return keyed_generator(self.seed, self.index, purpose)

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal noise shaped as `like` (b, ...): rows `offset : offset + b` of one table for the
        global batch, so that the noise of an example does not depend on the number of processes."""
        rows = (self.total, *like.shape[1:])
        table = torch.randn(rows, generator=self.generator(purpose), dtype=torch.float32)
        return send(table[self.offset : self.offset + like.shape[0]].to(like.dtype), like.device)

    def uniform(self, count: int, purpose: str, *size: int) -> Tensor:
        """Uniform noise in [0, 1) for this pass's `count` rows, (count, *size) float64, cut from one table
        like `normal`."""
        table = torch.rand((self.total, *size), generator=self.generator(purpose), dtype=torch.float64)
        return table[self.offset : self.offset + count]


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU `torch.Generator` seeded by a hash of `key`: equal keys give equal streams on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (1 << 63))


def world_size() -> int:
    """Processes in the default group, 1 when none was started. Asked anew each time: nothing is cached."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """`x` summed over all processes, in place. Every process must call it, with the same shape."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast(x: Tensor) -> Tensor:
    """`x` of process 0 on every process, in place."""
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x
