"""A model without its memory: names, shapes and sizes of what it would hold, known before any is taken; and
the same model filled with what a file holds.

Left out: files (`tokenizer.hub.files`).
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenizer.hub.files import AGAIN

M = TypeVar("M", bound=nn.Module)

# Bytes of what a model makes anew when it is loaded; a codebook of 2^24 entries has 200 MB of statistics.
MAX_TABLES = 1 << 31
# What fills tensors with random numbers. On the device meta it fills nothing, and takes most of the time.
FILLS = {"normal_", "uniform_", "kaiming_uniform_"}


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def outline_of(build: Callable[[], M]) -> M:
    """What `build` returns, on the device meta."""
    with torch.device("meta"), _Unfilled():
        return build()


def check_tables(outline: nn.Module, stored: int, where: str) -> None:
    """`ValueError` for a model with far more memory in tables than the `stored` bytes of its weights, such as
    statistics of codebooks that need no weights."""
    tables = sum(b.numel() * b.element_size() for b in outline.buffers())
    if tables > MAX_TABLES + 8 * stored:
        raise ValueError(
            f"{where}: asks for {tables >> 20} MiB of tables beside {stored >> 20} MiB of weights, expected "
            f"at most {MAX_TABLES >> 20} MiB beyond 8 times the weights; make its codebooks smaller, or "
            f"{AGAIN}"
        )


def fill(outline: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model of `outline_of` the tensors of `state`, all that it saves, in the layouts of memory that
    its constructor chose; what it does not save its modules make: those that have any have a method
    `make_unsaved`, which their constructors call too.
    """
    with torch.device("cpu"):
        for name, like in outline.state_dict().items():
            if state[name].stride() != like.stride():  # one after the other: memory is not taken twice
                laid_out = torch.empty_strided(like.shape, like.stride(), dtype=state[name].dtype)
                state[name] = laid_out.copy_(state[name])
        outline.load_state_dict(state, strict=True, assign=True)
        for module in outline.modules():
            if (make_unsaved := getattr(module, "make_unsaved", None)) is not None:
                make_unsaved()
    tensors = chain(outline.named_parameters(), outline.named_buffers())
    left = [name for name, value in tensors if value.is_meta]
    assert not left, f"{left}: neither saved nor made by a method make_unsaved of their module"
