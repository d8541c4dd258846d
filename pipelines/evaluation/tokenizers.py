"""Measuring a tokenizer of any modality on held-out data: the registry, and what all measures have.

Left out: what is measured, which stands in a file beside this one for each modality, under its name; a new
file is found without touching others.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor

from pipelines.data.kinds import ByModality, Split
from pipelines.run.processes import gather_objects
from tokenizer import Tokenizer

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


class Means:
    """Sums of measures, and how many items each was taken of."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, total: float, count: float) -> None:
        """Take in `count` items whose values add up to `total`."""
        self.sums[name] += total
        self.counts[name] += count

    def over_processes(self, accelerator: Accelerator) -> dict[str, float]:
        """The means of what all processes took in; without those that nothing could be measured of."""
        parts = gather_objects(accelerator, (dict(self.sums), dict(self.counts)))
        names = list(dict.fromkeys(name for sums, _ in parts for name in sums))
        totals = {
            n: (sum(s.get(n, 0.0) for s, _ in parts), sum(c.get(n, 0.0) for _, c in parts)) for n in names
        }
        return {name: total / count for name, (total, count) in totals.items() if count > 0}


# Measures a tokenizer on the examples of its modality, each counted once over all processes: (tokenizer,
# split, accelerator, batch size, whether what takes long is measured too). No metrics if there are none.
# Every process must call it, and gets the same.
Measures = Callable[[Tokenizer, Any, Accelerator, int, bool], Measured]
MEASURES = ByModality[Measures]("pipelines.evaluation", "measures")


def measure_tokenizer(
    tok: Tokenizer,
    examples: Split,
    accelerator: Accelerator,
    batch_size: int = EVAL_BATCH,
    thorough: bool = False,
) -> Measured:
    """By the measures of the tokenizer's modality; `ValueError` if it has none."""
    return MEASURES.of(tok.modality)(tok, examples, accelerator, batch_size, thorough)


def evaluate_tokenizer(
    tok: Tokenizer, examples: Split, accelerator: Accelerator, batch_size: int = EVAL_BATCH
) -> dict[str, float]:
    """The headline of what is measured in and after training."""
    return measure_tokenizer(tok, examples, accelerator, batch_size).headline()
