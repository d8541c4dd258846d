"""The memory that the search for nearest entries takes: its peak in a fresh process, above its inputs.

Left out: memory of GPUs.
"""

import torch

from pipelines.benchmarks.process_memory import MIB, peak
from pipelines.run.own_process import in_own_process
from tokenizer.search.exact import nearest


def search_memory(shape: tuple[int, int, int]) -> dict[str, float]:
    """`peak_of_search` in a process of its own, with as many threads as here: a peak never falls again."""
    values: dict[str, float] = in_own_process(peak_of_search, *shape, threads=torch.get_num_threads())
    return values


def peak_of_search(size: int, entries: int, dim: int) -> dict[str, float]:
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
