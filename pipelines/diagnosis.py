"""Why a loss or a gradient is not finite: which examples give it, in words for the user.

Left out: looking for it, and steps that are left out (`course.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizer.checks import NotFinite
from tokenizer.distributed import Step

# Names of examples in a message.
LISTED = 8

# (network, some rows of the batch, where the pass stands) → losses and what else is logged. Without a place
# in the run nothing may be learnt.
Forward = Callable[[nn.Module, slice, Step | None], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]


@torch.no_grad()
def offending(net: nn.Module, passes: Sequence[tuple[Forward, Sequence[str]]]) -> list[str]:
    """The examples of a step's passes, each with the names of its own, that alone give a loss which is not
    finite. Leaves `net` in training mode."""
    found = []
    net.eval()
    for forward, names in passes:
        for i, name in enumerate(names):
            try:
                losses, _ = forward(net, slice(i, i + 1), None)
                finite = all(bool(torch.isfinite(v)) for v in losses.values())
            except NotFinite:
                finite = False
            if not finite:
                found.append(name)
    net.train()
    return found


def blame(examples: Sequence[str], total: int) -> str:
    """In words, which of a step's `total` examples give alone what is wrong with it."""
    if not examples:
        return "no example alone gives it"
    if len(examples) == total:
        return "every example gives it alone"
    more = f" and {len(examples) - LISTED} more" if len(examples) > LISTED else ""
    return f"of {total} examples these give it alone: {', '.join(examples[:LISTED])}{more}"


def diagnosis(what: str, blame: str, last: Path | None, may_skip: bool) -> str:
    """The message for a step with `what` wrong; `last` is the newest checkpoint, and `may_skip` whether such
    steps can be left out."""
    intact = "there is no checkpoint yet" if last is None else f"the last checkpoint, {last}, is intact"
    skip = "; or resume this one with --skip-non-finite 10, which leaves out such steps" if may_skip else ""
    return (
        f"{what}: the training diverged; {blame}; {intact}. Start a new run with lower --learning-rate "
        f"and --muon-learning-rate, or in float32{skip}"
    )
