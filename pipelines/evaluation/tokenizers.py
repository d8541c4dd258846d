"""Measuring a tokenizer of any modality on held-out data: the registry, and what all measures have.

Left out: what is measured, which stands in a file beside this one for each modality, under its name; a new
file is found without touching others.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator
from torch import Tensor

from pipelines.data.kinds import Split
from tokenizer import Tokenizer
from tokenizer.variants import import_modules

# Items that go through a network at once, in each process.
EVAL_BATCH = 128

# {number of codebooks: {measure: mean}}
Rates = Mapping[int, dict[str, float]]


class Measured(NamedTuple):
    """What was measured of a tokenizer: means with all of its codebooks, and, of some modalities, `rates`,
    the means by number of codebooks, and how often each code occurred, `counts` (K, N)."""

    metrics: dict[str, float]
    rates: Rates = MappingProxyType({})
    counts: Tensor | None = None

    def headline(self) -> dict[str, float]:
        """The metrics, less those of the machine."""
        return {k: v for k, v in self.metrics.items() if not k.endswith("_speed")}


# Measures a tokenizer on the examples of its modality, each counted once over all processes: (tokenizer,
# split, accelerator, batch size, whether what takes long is measured too). No metrics if there are none.
# Every process must call it, and gets the same.
Measures = Callable[[Tokenizer, Any, Accelerator, int, bool], Measured]
M = TypeVar("M", bound=Callable[..., Measured])

_MEASURES: dict[str, Measures] = {}


def measures(modality: str) -> Callable[[M], M]:
    """Enter a function as the measures of a modality."""

    def enter(function: M) -> M:
        _MEASURES[modality] = function
        return function

    return enter


def measure_tokenizer(
    tok: Tokenizer,
    examples: Split,
    accelerator: Accelerator,
    batch_size: int = EVAL_BATCH,
    thorough: bool = False,
) -> Measured:
    """By the measures of the tokenizer's modality; `ValueError` if it has none."""
    import_modules("pipelines.evaluation")
    name = tok.modality.name
    if name not in _MEASURES:
        raise ValueError(f"there are no measures for modality {name!r}; known: {', '.join(_MEASURES)}")
    return _MEASURES[name](tok, examples, accelerator, batch_size, thorough)


def evaluate_tokenizer(
    tok: Tokenizer, examples: Split, accelerator: Accelerator, batch_size: int = EVAL_BATCH
) -> dict[str, float]:
    """The headline of what is measured in and after training."""
    return measure_tokenizer(tok, examples, accelerator, batch_size).headline()
