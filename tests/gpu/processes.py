"""Checks of collectives on a device, in one process: the group answers, and training in it or sharded over
it is training alone.

Left out: several processes, which others test on CPUs (tests/processes/).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from prior import Prior, PriorConfig
from tests.gpu.training import MIB, peak_since
from tests.helpers import tiny
from tests.helpers.decoders import codes_of, random_prior
from tokenizer import distributed
from tokenizer.distributed import Step


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """A group of this process alone: NCCL's on a GPU, gloo's on a CPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(minutes=2)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=wait)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collectives(device: torch.device) -> str:
    """Sums, broadcasts and objects come back as they went in; a patient group on the CPU stands beside."""
    x = torch.arange(1000.0, device=device)
    with group(device), patch.object(distributed, "world_size", lambda: 2):
        assert torch.equal(distributed.all_reduce_sum(x.clone()), x)
        assert torch.equal(distributed.broadcast(x.clone()), x)
        parts = [torch.empty_like(x)]
        dist.all_gather(parts, x)
        assert torch.equal(parts[0], x)
        objects: list[object] = [None]
        dist.all_gather_object(objects, {"step": 3})
        assert objects == [{"step": 3}]
        dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(minutes=2)))
        return str(dist.get_backend())


def steps_of(device: torch.device, kind: str) -> tuple[dict[str, Tensor], int]:
    """State of a bottleneck after some steps in training, and how many sums were taken."""
    torch.manual_seed(0)
    bottleneck = tiny.bottleneck_config(kind).build().to(device).train()
    sums, plain = [0], dist.all_reduce

    def counted(x: Tensor, *rest: object, **options: object) -> object:
        assert x.is_contiguous() and x.device.type == device.type
        sums[0] += 1
        return plain(x, *rest, **options)

    with patch.object(dist, "all_reduce", counted):
        for index in range(6):
            z = tiny.latents(bottleneck, 8, 3, 4, seed=index).to(device)
            bottleneck(z, Step(0, index, 0, 8))
    return bottleneck.state_dict(), sums[0]


def trained_in_a_group(device: torch.device, kinds: list[str]) -> str:
    """Bottlenecks learn in a group of one process what they learn alone."""
    total = 0
    for kind in kinds:
        alone, none = steps_of(device, kind)
        with group(device), patch.object(distributed, "world_size", lambda: 2):
            together, sums = steps_of(device, kind)
        assert none == 0
        for name, value in alone.items():
            # Sums on a GPU are taken in any order.
            torch.testing.assert_close(
                together[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, kind=kind: f"{kind}: {text}"
            )
        total += sums
    return f"{len(kinds)} bottlenecks, {total} sums"


def learn(prior: Prior, codes: Tensor, steps: int) -> list[float]:
    """Losses of some steps on these codes."""
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = prior(codes).losses["nll"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def sharded(device: torch.device, config: PriorConfig, batch: int, steps: int = 5) -> str:
    """FSDP2 over one process learns what a prior alone does; the peaks of memory of both."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    codes = codes_of(config, batch).to(device)
    peak_since(device)
    torch.manual_seed(0)
    alone = learn(random_prior(config).to(device).train(), codes, steps)
    peaks = [peak_since(device)]
    with group(device):
        torch.manual_seed(0)
        prior = random_prior(config).to(device).train()
        mesh = init_device_mesh(device.type, (1,))
        for block in prior.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(prior, mesh=mesh)
        found = learn(prior, codes, steps)
        peaks.append(peak_since(device))
        whole = 0.0
        for value in prior.state_dict().values():
            if isinstance(value, DTensor):
                whole += value.full_tensor().nbytes / MIB
        peaks.append(peak_since(device))
    assert max(abs(a - b) for a, b in zip(found, alone, strict=True)) < 1e-3, f"{found} instead of {alone}"
    assert found[-1] < found[0]
    return (
        f"{whole:.0f} MiB of weights; peak MiB alone {peaks[0]:.0f}, sharded {peaks[1]:.0f}, "
        f"gathered one at a time {peaks[2]:.0f}"
    )
