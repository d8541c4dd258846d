"""How codes are chosen: from logits, by temperature, top-k, top-p, min-p and inverting the cumulative sum;
and in which order and how many steps.

Left out: the loops over steps, their cache and guidance (`generate.py`, `parallel.py`).
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prior.config import PriorConfig
from prior.orders import require_any_order
from prior.patterns import steps_per_position

# One for all examples, one for each (whose samples then do not depend on the others), or torch's own; seeds
# stand for generators.
Generators = torch.Generator | int | Sequence[torch.Generator | int] | NDArray[Any] | None
# Which positions come next: any of them, or those whose codes are likeliest.
ByName = Literal["random", "confidence"]
# From the share of the steps that is done, 0 to 1, to the share of `cfg_scale` - 1 that guides.
CFG_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
}


class CodeOptions(TypedDict, total=False):
    """What callers may say about how a code is chosen; `Choice` has the defaults."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    cfg_scale: float
    cfg_schedule: str


class SamplingOptions(CodeOptions, total=False):
    """And what they may say about which positions are drawn when."""

    steps: int | None
    order: ByName | None
    choice_temperature: float


@dataclass(frozen=True)
class Choice:
    """How codes are chosen. Raises `ValueError` for a value out of its range, but for those that `check`
    compares with a prior."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    cfg_scale: float = 1.0
    cfg_schedule: str = "constant"
    steps: int | None = None
    order: ByName | None = None
    choice_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature: expected 0 (the most likely code) or more, got {self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share in (0, 1] or None, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected a share in [0, 1] or None, got {self.min_p}")
        if not 0 <= self.cfg_scale < math.inf:
            raise ValueError(f"cfg_scale: expected 0 or more (1: no guidance), got {self.cfg_scale}")
        if self.cfg_schedule not in CFG_SCHEDULES:
            known = ", ".join(CFG_SCHEDULES)
            raise ValueError(f"cfg_schedule: unknown {self.cfg_schedule!r}; known: {known}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, or None (one position at a time), got {self.steps}")
        if self.order not in (None, *get_args(ByName)):
            raise ValueError(f"order: unknown {self.order!r}; known: {', '.join(get_args(ByName))}")
        if not 0 <= self.choice_temperature < math.inf:
            raise ValueError(
                "choice_temperature: expected 0 (always the likeliest codes' positions) or more, got "
                f"{self.choice_temperature}"
            )
        if self.order != "confidence" and self.choice_temperature != Choice.choice_temperature:
            raise ValueError(
                f"choice_temperature={self.choice_temperature} is for order confidence; give that too, or "
                "leave it out"
            )

    @property
    def in_parallel(self) -> bool:
        """Whether positions are chosen while drawing, several in a step (`parallel.py`)."""
        return self.steps is not None or self.order is not None

    def check(self, config: PriorConfig) -> None:
        """Raise `ValueError` for what a prior of this config cannot do."""
        codebook_size = config.codebook_size
        if self.top_k is not None and not 1 <= self.top_k <= codebook_size:
            raise ValueError(
                f"top_k: expected 1 to {codebook_size} (the codebook's size) or None, got {self.top_k}"
            )
        if not self.in_parallel:
            return
        require_any_order(config, "steps" if self.order is None else f"order {self.order}")
        if steps_per_position(config.pattern, config.num_codebooks) > 1:
            raise ValueError(
                f"steps: the pattern {config.pattern} takes a step for each of the {config.num_codebooks} "
                "codebooks of a position, so there can be no fewer; leave steps and order out, or train a "
                "prior with --model.pattern depth"
            )
        if self.steps is not None and self.steps > config.num_positions:
            raise ValueError(
                f"steps: expected 1 to {config.num_positions} (the positions of the grid), got {self.steps}"
            )

    def guidance(self, done: float) -> float:
        """The scale of guidance when the share `done` of all steps is done; 1 is none."""
        return 1 + (self.cfg_scale - 1) * CFG_SCHEDULES[self.cfg_schedule](done)

    def probabilities(self, logits: Tensor) -> Tensor:
        """As the function of that name."""
        return probabilities(logits, self.temperature, self.top_k, self.top_p, self.min_p)


def probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """logits (B, N) → probabilities (B, N) float64 of the filtered distribution.

    The temperature comes first (0 puts all mass on the most likely code), then the `top_k` most likely codes
    are kept, then the smallest set of these whose share is at least `top_p` (nucleus, arXiv 1904.09751), then
    those at least `min_p` times as likely as the most likely one (arXiv 2407.01082). Of equally likely codes
    the lower ones are kept.
    """
    logits = logits.double()
    if temperature == 0:
        temperature, top_k = 1.0, 1
    if temperature == 1 and top_k is None and top_p is None and min_p is None:
        return logits.softmax(dim=-1)
    # With the maximum at 0 no temperature, however small, can overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if min_p is not None:
        # The most likely code is never cut, so its share of what is left does not change the ratio.
        unlikely = logits < math.log(min_p) if min_p > 0 else torch.zeros_like(logits, dtype=torch.bool)
    if top_k is None and top_p is None:
        kept = logits if min_p is None else logits.masked_fill(unlikely, -math.inf)
        return kept.softmax(dim=-1)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -math.inf
    ordered = ordered.softmax(dim=-1)
    if top_p is not None:
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.where(before < top_p, 0)
    if min_p is not None:
        ordered = ordered.masked_fill(unlikely.gather(-1, order), 0)
    ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """codes (B,) int64, at which the cumulative sum of `probs` (B, N) float64 first exceeds `uniform` (B,) in
    [0, 1). A code of probability 0 is never drawn."""
    cumulative = probs.cumsum(dim=-1)
    # Scaled by the last value, which rounding may leave a little off 1.
    level = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0]


def generator_of(generator: torch.Generator | int | None) -> torch.Generator | None:
    """A generator, one on the CPU for a seed, or None; `TypeError` for anything else."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    try:
        return torch.Generator().manual_seed(operator.index(generator))
    except TypeError as error:
        what = type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator or a seed (int), got {what}") from error


def uniform_table(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) for B examples, `shape` (B, ...) float64, drawn where the generator lives.

    Raises `ValueError` unless a list of generators holds B of them.
    """
    generator = generator.tolist() if isinstance(generator, np.ndarray) else generator
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"generator: expected one for all or {shape[0]} of them, got {len(generator)}")
        rows = [uniform_table(shape[1:], g, device) for g in generator]
        return torch.stack(rows)
    generator = generator_of(generator)
    source = torch.device("cpu") if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)
