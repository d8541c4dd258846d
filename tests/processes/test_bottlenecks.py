"""Bottlenecks: accumulation passes and several processes train every registered one as one whole batch does.

Left out: the rest of the contract (tokenizer/bottlenecks/test_contract.py), and whole models in several
processes (test_two_processes.py).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.run.command_line import leave_group
from tests.helpers.tiny import bottleneck_config
from tests.helpers.warm import run_ranks
from tests.tokenizer.bottlenecks.test_contract import KINDS, assert_same
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Event
from tokenizer.distributed import Step, all_reduce_sum

# Enough for deaths and revivals; most of the time of several processes goes into waiting for each other.
STEPS = 24


def run_in_passes(
    bottlenecks: Sequence[Bottleneck], rank: int = 0, world: int = 1, passes: int = 1
) -> list[Tensor]:
    """Train all in turn, step by step, on global batches of `moving_clusters`, of which this rank sees its
    part, in several accumulation passes, with plain gradient descent. Returns for each the z_q (step, b, ...)
    of this rank's rows, in the order of the global batch's rows."""
    outputs: list[list[Tensor]] = [[] for _ in bottlenecks]
    data = [moving_clusters(bottleneck.in_dim, STEPS) for bottleneck in bottlenecks]
    for index in range(STEPS):
        for bottleneck, batches, found in zip(bottlenecks, data, outputs, strict=True):
            found.append(one_step(bottleneck, batches[index], index, rank, world, passes))
        parameters = [p for bottleneck in bottlenecks for p in bottleneck.parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters)
        if parameters:  # one collective for all of them
            total = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for p, gradient in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
                p.data -= 0.02 * gradient.view_as(p)
                p.grad = None
    return [torch.stack(found) for found in outputs]


def one_step(bottleneck: Bottleneck, z: Tensor, index: int, rank: int, world: int, passes: int) -> Tensor:
    """The passes of this rank over its part of a global batch; returns their z_q and leaves gradients."""
    total, outputs = z.shape[0], []
    rows = total // (world * passes)
    for micro in range(passes):
        offset = (rank * passes + micro) * rows
        out = bottleneck(z[offset : offset + rows], Step(1, index, offset, total, last=micro == passes - 1))
        outputs.append(out.z_q.detach())
        if any(p.requires_grad for p in bottleneck.parameters()):
            loss = torch.stack([out.z_q.square().mean(), *out.losses.values()]).sum()
            (loss / (passes * world)).backward()
    return torch.cat(outputs)


def moving_clusters(dim: int, steps: int) -> list[Tensor]:
    """Global batches (24, dim, 2) float64 around few centres that jump halfway, so that entries die."""
    generator = torch.Generator().manual_seed(3)
    centres = [5 * torch.randn(10, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    data = []
    for index in range(steps):
        which = torch.randint(10, (48,), generator=generator)
        z = centres[2 * index // steps][which]
        z = z + 0.3 * torch.randn(48, dim, generator=generator, dtype=torch.float64)
        data.append(rearrange(z, "(b p) d -> b d p", b=24))
    return data


@functools.cache
def trained(kind: str, passes: int) -> tuple[Bottleneck, list[Event], Tensor]:
    """A bottleneck that one process trained in so many passes, its events, and the z_q of all steps."""
    bottleneck = build(kind)
    (outputs,) = run_in_passes([bottleneck], passes=passes)
    return bottleneck, bottleneck.events(), outputs


def build(kind: str) -> Bottleneck:
    torch.manual_seed(0)
    return lively_config(kind).build().double().train()


@pytest.mark.parametrize("passes", [3, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_passes_equal_the_whole_batch(kind: str, passes: int) -> None:
    whole, whole_events, expected = trained(kind, 1)
    parts, parts_events, found = trained(kind, passes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-12, msg=name)
    assert parts_events == whole_events
    if kind == "vq":
        assert [e.text.split()[0] for e in whole_events] == ["k-means", "revived"]


def lively_config(kind: str) -> BottleneckConfig:
    """Small, with a quick decay where there is one, so that few steps see deaths and revivals."""
    changes = {"decay": 0.8, "kmeans_steps": 4, "revive_below": 0.2}
    return lively(bottleneck_config(kind), changes)


def lively(config: BottleneckConfig, changes: dict[str, float]) -> BottleneckConfig:
    values = {n: getattr(config, n) for n in config.__dataclass_fields__}
    inner = {n: lively(v, changes) for n, v in values.items() if isinstance(v, BottleneckConfig)}
    mine = {n: v for n, v in changes.items() if n in values}
    return dataclasses.replace(config, **mine, **inner)


def all_kinds_on_one_rank(folder: str) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    bottlenecks = [build(kind) for kind in KINDS]
    outputs = run_in_passes(bottlenecks, rank, world, passes=4 // world)
    for kind, bottleneck, z_q in zip(KINDS, bottlenecks, outputs, strict=True):
        saved = {**whole_state(bottleneck), "z_q": z_q}
        save_file({k: v.contiguous() for k, v in saved.items()}, f"{folder}/{kind}-{world}-{rank}")
        events = "\n".join(e.text for e in bottleneck.events())
        Path(f"{folder}/{kind}-{world}-{rank}-events").write_text(events)
    leave_group()


def whole_state(bottleneck: Bottleneck) -> dict[str, Tensor]:
    training = bottleneck.training_state()
    return {**bottleneck.state_dict(), **{f"training.{name}": value for name, value in training.items()}}


RANK = """
import sys
from tests.processes.test_bottlenecks import all_kinds_on_one_rank

all_kinds_on_one_rank(sys.argv[1])
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and what four processes learn from the same global batches."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in (2, 4):
        ranks = run_ranks(world, "-c", RANK, folder)
        assert not any(rank.code for rank in ranks), ranks
    return folder


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_equal_one(kind: str, world: int, processes: Path) -> None:
    single, events, outputs = trained(kind, 1)
    ranks = [load_file(processes / f"{kind}-{world}-{rank}") for rank in range(world)]
    z_q = rearrange(outputs, "s (r b) ... -> r s b ...", r=world)
    for rank in range(world):
        torch.testing.assert_close(ranks[rank].pop("z_q"), z_q[rank], rtol=1e-9, atol=1e-9)
        assert_same(ranks[0], ranks[rank])
    for name, value in whole_state(single).items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-9, atol=1e-9, msg=name)
    for rank in range(world):
        kept = (processes / f"{kind}-{world}-{rank}-events").read_text().splitlines()
        assert kept == [event.text for event in events]
    if kind.startswith("vq"):
        assert any("vectors" in e for e in kept) and any(e.startswith("revived") for e in kept)
    if kind == "vq":
        assert any(e.startswith("k-means") for e in kept) and any(e.startswith("revived") for e in kept)
