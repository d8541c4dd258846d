"""The memory that the search for nearest entries takes: its peak in a fresh process, above its inputs.

Left out: memory of GPUs.
"""

import json
import sys

import torch

from pipelines.benchmarks.own_process import MIB, peak, run_module
from tokenizer.search.exact import nearest


def measure_in_a_process(shape: tuple[int, int, int]) -> dict[str, float]:
    """`measure` in a process of its own, with as many threads as here: a peak never falls again."""
    values: dict[str, float] = run_module("pipelines.benchmarks.search.memory", *shape)
    return values


def measure(size: int, entries: int, dim: int) -> dict[str, float]:
    """MiB: the peak's growth while the codes of `size` vectors among `entries` of `dim` are searched, what
    the vectors and entries take themselves, and what the table of all distances would."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, dim, generator=generator) for n in (size, entries))
    before = peak()
    codes = nearest(z, codebook)
    return {
        "additional_mib": (peak() - before) / MIB,
        "inputs_mib": (z.nbytes + codebook.nbytes) / MIB,
        "codes_mib": codes.nbytes / MIB,
        "table_mib": 4 * size * entries / MIB,
    }


if __name__ == "__main__":
    *_shape, _threads = map(int, sys.argv[1:])
    torch.set_num_threads(_threads)
    print(json.dumps(measure(*_shape)))
