"""The search's kernel with other blocks: which are the fastest on the GPU at hand, by width.

Left out: what reads the table of them (`tokenizer/search/blocks.py`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmarks.registry import Spread, in_turns, plain, print_table, spread, synchronizer
from tokenizer.distributed import keyed_generator
from tokenizer.search import cuda
from tokenizer.search.blocks import VARIABLE, BlockSizes, table_path, write_table

Shape = tuple[int, int, int]

# Compiled ahead of time for sm_90, of all products of 64 to 256 rows, 32 to 128 entries, 16 and 32 factors, 4
# and 8 warps: those that spill no registers, or next to none.
CANDIDATES = (
    cuda.BLOCKS,
    BlockSizes(64, 32, 16, 4, 3),
    BlockSizes(64, 32, 32, 4, 3),
    BlockSizes(64, 64, 16, 4, 3),
    BlockSizes(64, 64, 16, 8, 3),
    BlockSizes(64, 64, 32, 8, 3),
    BlockSizes(64, 128, 16, 8, 3),
    BlockSizes(64, 128, 32, 8, 3),
    BlockSizes(128, 32, 16, 4, 3),
    BlockSizes(128, 32, 16, 8, 3),
    BlockSizes(128, 32, 32, 8, 3),
    BlockSizes(128, 64, 32, 8, 3),
    BlockSizes(256, 32, 16, 8, 3),
    BlockSizes(256, 64, 16, 8, 3),
)
# Of the fastest candidates, other stages are tried too, and then the fastest of all in more turns.
STAGES, FINALISTS = (2, 4), 3
QUICK_TURNS = 3
# What is not faster than the usual blocks by more than this may be so by chance.
WORTH = 0.97


def chosen_table(named: Path | None) -> Path:
    """The file to write; `ValueError` where there is no folder for one."""
    path = named or table_path()
    if path is None:
        raise ValueError("there is no home folder for the table; name a file with --table")
    return path


def tune(
    shapes: Sequence[Shape], turns: int, warm_up: int, device: torch.device, table: Path
) -> dict[str, Any]:
    """Measure blocks at shapes (M, N, D), print tables, and write the best for each D to a file."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    widths = sorted({width for _, _, width in shapes})
    best, values = dict[int, BlockSizes](), dict[str, Any]()
    for width in widths:
        jobs = [kernels(shape, device) for shape in shapes if shape[2] == width]
        found = measured(jobs, fastest(jobs, warm_up, device), turns, warm_up, device)
        best[width] = chosen(found)
        by_name = {str(tuple(blocks)): ratio for blocks, ratio in found.items()}
        values[str(width)] = {"blocks": best[width]._asdict(), "ratio": plain(by_name)}
        show(card, [shape for shape in shapes if shape[2] == width], found, best[width])
    write_table(table, card, best)
    used = (
        "" if table == table_path() else f"; the search reads it with {VARIABLE}={table} in the environment"
    )
    print(f"written to {table}{used}")
    return {"card": card, "table": str(table), "widths": values}


Kernel = Callable[[BlockSizes], tuple[Tensor, Tensor, Tensor]]


def kernels(shape: Shape, device: torch.device) -> Kernel:
    """The search's products at a shape, with blocks that are given."""
    m, n, d = shape
    z = torch.randn(m, d, generator=keyed_generator(0, "z")).to(device)
    entries = torch.randn(n, d, generator=keyed_generator(0, "codebook")).to(device)
    offset = entries.square().sum(1) / 2
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return lambda blocks: cuda.launch(z, entries, offset, blocks, cuda.PROGRAMS * processors)


def runs(jobs: Sequence[Kernel], blocks: BlockSizes) -> bool:
    """Whether these blocks run at all shapes, and give what the usual ones do but for rounding."""
    for job in jobs:
        least, _, second = job(cuda.BLOCKS)
        try:
            found = job(blocks)
        except Exception:  # of triton's own types, as too much shared memory or too many registers
            return False
        alike = partial(torch.allclose, rtol=1e-3, atol=1e-3)
        if not (alike(found[0], least) and alike(found[2], second)):
            return False
    return True


def fastest(jobs: Sequence[Kernel], warm_up: int, device: torch.device) -> list[BlockSizes]:
    """The usual blocks, and those that some quick turns find to be the fastest."""

    def order(candidates: Sequence[BlockSizes]) -> list[BlockSizes]:
        found = measured(jobs, candidates, QUICK_TURNS, warm_up, device)
        return sorted(found, key=lambda blocks: found[blocks].median)

    usable = [blocks for blocks in CANDIDATES if runs(jobs, blocks)]
    first = order(usable)[:FINALISTS]
    staged = [blocks._replace(stages=stages) for blocks in first for stages in STAGES]
    last = order([cuda.BLOCKS, *first, *(blocks for blocks in staged if runs(jobs, blocks))])[:FINALISTS]
    return [cuda.BLOCKS, *(blocks for blocks in last if blocks != cuda.BLOCKS)]


def measured(
    jobs: Sequence[Kernel], candidates: Sequence[BlockSizes], turns: int, warm_up: int, device: torch.device
) -> dict[BlockSizes, Spread]:
    """By blocks, their time as a part of that of the usual ones, turn by turn; of several shapes the
    geometric mean."""
    names = {str(tuple(blocks)): blocks for blocks in [cuda.BLOCKS, *candidates]}
    usual = str(tuple(cuda.BLOCKS))
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for job in jobs:
        timed = {name: partial(job, blocks) for name, blocks in names.items()}
        seconds = in_turns(timed, turns, warm_up, synchronizer(device))
        for name, values in seconds.items():
            found[name].append([a / b for a, b in zip(values, seconds[usual], strict=True)])
    return {
        names[name]: spread([math.prod(turn) ** (1 / len(turn)) for turn in zip(*values, strict=True)])
        for name, values in found.items()
    }


def chosen(found: dict[BlockSizes, Spread]) -> BlockSizes:
    """The fastest, if it is faster than the usual ones by more than chance."""
    best = min(found, key=lambda blocks: found[blocks].median)
    return best if found[best].median < WORTH else cuda.BLOCKS


def show(card: str, shapes: Sequence[Shape], found: dict[BlockSizes, Spread], best: BlockSizes) -> None:
    """The table of one width on stdout."""
    print_table(
        f"{card}, {', '.join('x'.join(map(str, shape)) for shape in shapes)}: time / that of "
        f"{tuple(cuda.BLOCKS)}, median over turns (least..greatest)",
        [
            (*BlockSizes._fields, "ratio", ""),
            *((*blocks, ratio, "chosen" if blocks == best else "") for blocks, ratio in found.items()),
        ],
    )
