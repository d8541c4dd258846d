"""A GPU that is not there, for tests on CPUs: its tensors say that they are on `cuda`, compute on the CPU,
and raise as a GPU does where an operation mixes devices.

Left out: autocast, kernels that torch has for GPUs alone, how long anything takes, and that `to` the device
where a tensor is already gives the tensor itself: here it gives a copy.

Each tensor is one of torch's fake ones, which know their device and check it, with a shadow on the CPU that
has the values. A look at a value (`item`, `tolist`, `nonzero`) asks the shadow, so code goes its usual ways.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tokenizer.search import cuda as search_cuda
from tokenizer.spectral import _mel_filters

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
GPU_ALONE = {aten._fused_rms_norm_backward.default}


class MixedDevices(RuntimeError):
    """An operation on several devices that torch's fake tensors allow and a GPU does not."""


class _Shadows(TorchDispatchMode):
    """Runs each operation on fake tensors, and on their shadows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            # Only C++ asks so. Its autograd would look for a stream of the GPU, but has none for `meta`.
            return META if args[0].fake_device == CUDA else args[0].fake_device
        kwargs = kwargs or {}
        if kwargs.get("device") == META:
            kwargs = {**kwargs, "device": CUDA}
        require_one_device(func, args, kwargs)
        try:
            out, known = func(*args, **kwargs), True
        except (DataDependentOutputException, DynamicOutputShapeException):
            known = False
        with _disable_current_modes():
            values = kernel(func)(*shadows(args), **shadows(kwargs))
        if not known:  # the shape, or the result itself, is a matter of values
            (device, *_) = (fake.fake_device for fake in fakes((args, kwargs)))
            out = tree_map(lambda v: _like(v, device) if isinstance(v, Tensor) else v, values)
        several = isinstance(out, (list, tuple))
        for fake, value in zip(out, values, strict=True) if several else ((out, values),):
            if isinstance(fake, FakeTensor) and not hasattr(fake, "shadow"):
                fake.shadow = _laid_out(value, fake, (args, kwargs))
        return out


def kernel(func: Any) -> Any:
    """What computes an operation on a CPU: torch's own kernel, or of a few for GPUs alone its formula."""
    return decomposition_table[func] if func in GPU_ALONE else func


def shadows(of: Any) -> Any:
    """The shadow of a fake tensor, the CPU for a device, all else as it is; of what is in lists too."""
    if isinstance(of, FakeTensor):
        return of.shadow
    if isinstance(of, torch.device):
        return CPU
    if isinstance(of, dict):
        return {name: shadows(value) for name, value in of.items()}
    return type(of)(map(shadows, of)) if type(of) in (list, tuple) else of


def fakes(of: Any) -> Iterator[FakeTensor]:
    """The fake tensors in there."""
    if isinstance(of, FakeTensor):
        yield of
    elif isinstance(of, (list, tuple, dict)):
        for part in of.values() if isinstance(of, dict) else of:
            yield from fakes(part)


def _like(value: Tensor, device: torch.device) -> Tensor:
    """A fake tensor on a device, without a shadow of its own values."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _laid_out(value: Tensor, fake: FakeTensor, inputs: Any) -> Tensor:
    """A shadow in its tensor's order in memory, in which a GPU's kernels may differ from a CPU's. A view of
    an input has it already."""
    # Some kernels of GPUs keep nothing for gradients where those of CPUs do.
    if value.stride() == fake.stride() or value.shape != fake.shape:
        return value
    places = {of.shadow.untyped_storage().data_ptr() for of in fakes(inputs)}
    if value.untyped_storage().data_ptr() in places:
        return value
    with _disable_current_modes():
        return torch.empty_strided(value.shape, fake.stride(), dtype=value.dtype).copy_(value)


def require_one_device(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """`MixedDevices` for what fake tensors do not check: generators, indices, and operators of one's own."""
    generator = kwargs.get("generator")
    if generator is not None:
        (place, *_) = [*(fake.fake_device for fake in fakes(args)), torch.device(kwargs.get("device") or CPU)]
        if generator.device.type != place.type:
            raise MixedDevices(f"{func}: a generator on device {generator.device} for a tensor on {place}")
    tensors: list[Any] = []
    if func in INDEXING:
        of, indices, *values = args
        tensors = [of, *(i for i in indices if i is not None and i.fake_device != CPU)]
        tensors += [value for value in values[:1] if value.ndim]
    elif func.namespace != "aten":
        tensors = [*fakes((args, kwargs))]
    if len(devices := sorted({str(tensor.fake_device) for tensor in tensors})) > 1:
        raise MixedDevices(f"{func}: tensors on devices {' and '.join(devices)}")


class GPU:
    """What tests move there."""

    def tensor(self, value: Tensor, device: torch.device = CUDA) -> Any:
        """A real tensor as one on the GPU, or on another device."""
        with _disable_current_modes():
            shadow = value.detach().clone()
        moved: Any = _like(shadow, device).requires_grad_(value.requires_grad)
        moved.shadow = shadow
        return moved

    def module(self, module: nn.Module) -> None:
        """Move a module as `to` does; what `to` leaves behind stays on the CPU."""
        move: Callable[[Tensor], Tensor] = self.tensor
        module._apply(move)
        for part in module.modules():
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    setattr(part, name, self.tensor(value, CPU))


def on_gpu(*trees: Any) -> bool:
    """Whether every tensor in there is on the GPU, and there is one."""
    tensors = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(tensor.device == CUDA for tensor in tensors)


def values_of(tree: Any) -> Any:
    """The same with real tensors, for use outside of the context."""
    return tree_map(shadows, tree)


def _pinned(x: FakeTensor) -> FakeTensor:
    """As it is: there is nothing to pin memory for. On a GPU there is no such memory."""
    if x.fake_device != CPU:
        raise MixedDevices(f"pin_memory: a tensor on device {x.fake_device}, expected the CPU")
    return x


@functools.cache
def _fake_mode() -> FakeTensorMode:
    """Takes long to make."""
    return FakeTensorMode(allow_non_fake_inputs=False)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[GPU]:
    """Within the context there is such a GPU; real tensors must be moved there, or made there."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.callback(_mel_filters.cache_clear)  # what it keeps is of use here alone
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        patch.setattr(FakeTensor, "is_cuda", property(lambda x: x.device == CUDA), raising=False)
        patch.setattr(FakeTensor, "tolist", lambda x: x.shadow.tolist())  # not number by number
        patch.setattr(FakeTensor, "data_ptr", lambda x: x.shadow.data_ptr(), raising=False)
        patch.setattr(FakeTensor, "pin_memory", _pinned, raising=False)
        patch.setattr(search_cuda, "runs", lambda device: False)
        _mel_filters.cache_clear()
        with _fake_mode(), _Shadows():
            yield GPU()
