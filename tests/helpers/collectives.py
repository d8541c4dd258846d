"""What a process says to the others: every collective in its order, those of DDP's own code among them.

Left out: point-to-point messages, and what a store is asked.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Told(NamedTuple):
    """A tensor of a collective."""

    dtype: str
    shape: list[int]
    device: str
    contiguous: bool


class Collective(NamedTuple):
    """An operation of torch.distributed, and on which group of processes."""

    name: str
    group: str
    tensors: list[Told]


class RecordedCollectives(TorchDispatchMode):
    """Those within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            leaves = tree_leaves((args, kwargs or {}))
            told = [
                Told(str(t.dtype), list(t.shape), str(t.device), t.is_contiguous())
                for t in leaves
                if isinstance(t, Tensor)
            ]
            boxed = [leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject)]
            groups = [dist.ProcessGroup.unbox(leaf).group_name for leaf in boxed if _is_group(leaf)]
            self.found.append(Collective(func.name(), ",".join(groups), told))
        return func(*args, **(kwargs or {}))


def _is_group(boxed: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(boxed._type())
