"""A step of training does not wait for its device, but for what the search looks at: twice at most.

Shown without a GPU by torch's fake tensors, which have a device and no values, so that any look at one
raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import tiny
from tests.helpers.tiny import VARIANTS, bottleneck_config, latents
from tokenizer.bottlenecks import kinds
from tokenizer.distributed import Step
from tokenizer.search.exact import CentredCodebook

KINDS = [*sorted(kinds()), *VARIANTS]
CUDA = torch.device("cuda")
# What needs a value of the device on the host. Fake tensors refuse most of them, and are asked for the rest.
LOOKS = {"_local_scalar_dense", "nonzero", "bincount", "_unique2", "unique_dim", "equal", "is_nonzero"}
trained = tiny.made_once(tiny.trained)


def devices_of(values: Any) -> set[str]:
    return {v.device.type for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Tensor)}


class Waits(TorchDispatchMode):
    """Names of what waited: looks at values, and copies between host and device that were not asked to go on
    by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        result = function(*args, **kwargs)
        if name in LOOKS:
            self.found.append(name)
        elif name in ("_to_copy", "copy_"):
            apart = len(devices_of((args, result))) > 1
            at_once = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            if apart and not at_once:
                self.found.append(name)
        return result


@contextmanager
def on_a_gpu(module: nn.Module) -> Iterator[nn.Module]:
    """`module` with fake tensors on a GPU in place of its own."""
    with FakeTensorMode(allow_non_fake_inputs=False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", lambda x: x)  # which torch has only beside a GPU
        for part in module.modules():
            for named in (part._parameters, part._buffers):
                for name, value in named.items():
                    if value is not None:
                        fake = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
                        named[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
        yield module


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_does_not_wait(kind: str, last: bool) -> None:
    bottleneck = trained(kind).train()
    bottleneck.events()
    shape = latents(bottleneck, 4, 5).shape
    with on_a_gpu(bottleneck), Waits() as waits:
        for index in (50, 51):
            out = bottleneck(torch.empty(shape, device=CUDA, requires_grad=True), Step(0, index, 0, 4, last))
            assert devices_of(out) == {"cuda"}
    assert waits.found == []


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_a_backward_pass(kind: str) -> None:
    bottleneck = trained(kind).train()
    z = latents(bottleneck, 4, 5, seed=1).requires_grad_()
    out = bottleneck(z, Step(0, 50, 0, 4))
    with Waits() as waits:  # on a CPU: without one, torch runs no backward pass for a GPU
        torch.stack([out.z_q.sum(), *out.losses.values()]).sum().backward()
    assert z.grad is not None and waits.found == []


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_the_start_of_a_codebook(kind: str) -> None:
    bottleneck = bottleneck_config(kind).build().train()
    shape = latents(bottleneck, 4, 5).shape
    with on_a_gpu(bottleneck), Waits() as waits:
        for index in range(bottleneck.config.start_steps + 1):
            assert devices_of(bottleneck(torch.empty(shape, device=CUDA), Step(0, index, 0, 4))) == {"cuda"}
        assert bottleneck.ready
    assert waits.found == []


@pytest.mark.parametrize("grid", [1.0, 0.5])
def test_the_search_looks_twice(grid: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many vectors are equally near to several entries, as on a lattice."""
    numbers = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, 4, generator=numbers) for n in (500, 64))
    if grid < 1:
        z, codebook = (x.div(grid).round().mul(grid) for x in (z, codebook))
    looks, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: looks.append(x) or tolist(x))
    with Waits() as waits:
        CentredCodebook(codebook).search(z)  # an operator around it would hide what it does
    # One of them is for CPUs alone, whose loops must not meet NaN.
    assert 2 <= len(looks) + len(waits.found) <= 3
