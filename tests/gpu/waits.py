"""How often a step waits for the device, and where: in searches for the nearest entry, or outside them.

Left out: on a CPU, waits that torch's dispatcher does not see, as `tolist` of a tensor there.
"""

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenizer.search.exact import CentredCodebook

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(str(ROOT / name) for name in ("tokenizer", "prior", "pipelines"))
# Operations that wait on a GPU for a value; on a CPU they are counted in place of torch's own warnings.
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
# What a step may wait for besides: the gradient's norm, or in fp16 whether it is finite.
AFTER_BACKWARD = 2
PER_SEARCH = 2


@dataclass
class Waits:
    """By (phase, place), how often was waited outside of searches; and in how many searches how often."""

    outside: Counter[tuple[str, str]] = field(default_factory=Counter)
    inside: int = 0
    searches: int = 0
    phase: str = "step"
    depth: int = 0

    def add(self, place: str) -> None:
        if self.depth:
            self.inside += 1
        else:
            self.outside[self.phase, place] += 1

    def search(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run` as a search, and what it calls as the same one."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.searches += not self.depth
            self.depth += 1
            try:
                return run(*arguments, **options)
            finally:
                self.depth -= 1

        return counted

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Waits here belong to a phase of the step."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def reset(self) -> None:
        """Count from here on."""
        self.outside.clear()
        self.inside = self.searches = 0

    def of(self, phase: str) -> dict[str, int]:
        """Waits outside of searches in a phase, by place."""
        return {place: n for (p, place), n in self.outside.items() if p == phase}

    def check(self, steps: int) -> None:
        """`AssertionError` if these steps waited in passes outside of searches, or too often elsewhere."""
        for phase in ("forward", "backward"):
            assert not self.of(phase), f"the {phase} pass waits for the device: {self.of(phase)}"
        assert self.inside <= PER_SEARCH * self.searches, f"{self.inside} waits in {self.searches} searches"
        after = self.of("step")
        assert sum(after.values()) <= AFTER_BACKWARD * steps, f"after the passes: {after} in {steps} steps"

    def text(self, steps: int) -> str:
        """What was counted, for each step."""
        passes = sum(sum(self.of(phase).values()) for phase in ("forward", "backward"))
        parts = {
            "in searches": self.inside,
            "in passes": passes,
            "after them": sum(self.of("step").values()),
        }
        each = ", ".join(f"{n / steps:.3g} {name}" for name, n in parts.items() if n) or "none"
        return f"waits a step: {each} ({self.searches / steps:.3g} searches)"


def place() -> str:
    """The innermost line of the packages that is being run."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if frame.filename.startswith(PACKAGES):
            return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"


class Dispatched(TorchDispatchMode):
    """Counts `WAITING` operations."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            self.waits.add(place())
        return func(*args, **(kwargs or {}))


class Operator:
    """An operator of torch whose calls are searches."""

    def __init__(self, operator: Any, waits: Waits) -> None:
        self.operator, self.call = operator, waits.search(operator)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operator, name)


@contextmanager
def counted(device: torch.device) -> Iterator[Waits]:
    """Waits for the device within the context."""
    waits = Waits()
    with ExitStack() as stack:
        # The operator, and the search itself for whoever calls that.
        operator = Operator(torch.ops.tokenloom.nearest, waits)
        stack.enter_context(patch.object(torch.ops.tokenloom, "nearest", operator))
        stack.enter_context(patch.object(CentredCodebook, "search", waits.search(CentredCodebook.search)))
        if device.type == "cuda":
            stack.enter_context(warned(waits))
        else:
            stack.enter_context(Dispatched(waits))
        yield waits


@contextmanager
def warned(waits: Waits) -> Iterator[None]:
    """torch warns at each wait; what it warns of is counted instead, other warnings are shown."""
    show = warnings.showwarning

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if "called a synchronizing" in str(message):
            waits.add(place())
        elif "Synchronization debug mode" not in str(message):
            show(message, category, filename, lineno, *rest)

    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
