"""The same as `tiles.propose` in one pass on a GPU, with triton: product, least, its index and the
least of all others, without the table of distances.

Left out: float64, deciding when to use it (`tiles.py`), and tables of measured blocks (`blocks.py`).
"""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tokenizer.search.blocks import BlockSizes, blocks_for, table_path, tuned_widths

logger = logging.getLogger(__name__)


# Those without a table of the card at hand. Not measured on a GPU: float32 products in full precision run on
# plain cores, where reuse of registers counts. For sm_80, sm_86 and sm_90 ptxas takes up to 220 of 255 and
# spills none; with 128 entries it does.
BLOCKS = BlockSizes(128, 64, 16, 8, 3)
# Programs per multiprocessor that keep it busy; fewer rows are searched in as many parts of the codebook.
PROGRAMS = 4


@cache
def installed() -> bool:
    """Whether triton is there."""
    return find_spec("triton") is not None


@cache
def runs(device: torch.device) -> bool:
    """Whether the kernel runs on a device, which is tried once; a warning says why not. It is built where it
    runs, which takes a C compiler, and a card whose shared memory holds the blocks."""
    if not installed():
        return False
    try:
        return works(device, BLOCKS.factors, BLOCKS)
    except Exception as error:  # of any type: triton, its compiler and the driver have their own
        text = "the search has no kernel of its own on %s and is slower: %s (it takes a C compiler, as gcc)"
        logger.warning(text, device, in_short(error))
        return False


def works(device: torch.device, width: int, blocks: BlockSizes) -> bool:
    """Whether the kernel with these blocks finds the first of two entries that are alike; it raises what
    keeps it from running."""
    z = torch.zeros(2, width, device=device)
    with torch.cuda.device_of(z):  # triton launches on the current one
        return launch(z, z, z.new_zeros(2), blocks, 1)[1].tolist() == [0, 0]


def in_short(error: Exception) -> str:
    """What an error says, in one line that is not long."""
    return " ".join(str(error).split())[:500] or type(error).__name__


@cache
def blocks_on(device: torch.device, width: int) -> BlockSizes:
    """The blocks for vectors of `width` on a device: those of the table for its card, if there are any and
    they run, which is tried once, else `BLOCKS`."""
    path = table_path() if device.type == "cuda" else None
    if path is None:
        return BLOCKS
    blocks = blocks_for(tuned_widths(path, torch.cuda.get_device_name(device)), width, BLOCKS)
    if blocks != BLOCKS:
        why = "it finds other entries"
        try:
            if works(device, width, blocks):
                return blocks
        except Exception as error:  # as above; the table may be of the same card with less memory for it
            why = in_short(error)
        text = "%s: the kernel does not run on %s with %s (%s); write it anew: benchmark.py search --tune"
        logger.warning(text, path, device, blocks, why)
    return BLOCKS


def propose(z: Tensor, entries: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `tiles.propose`, of float32, contiguous. Memory is O(M)."""
    processors = torch.cuda.get_device_properties(z.device).multi_processor_count if z.is_cuda else 1
    with torch.cuda.device(z.device):
        return launch(z, entries, offset, blocks_on(z.device, z.shape[1]), PROGRAMS * processors)


def launch(
    z: Tensor, entries: Tensor, offset: Tensor, blocks: BlockSizes, programs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`propose` in about as many programs, each of which has a block of rows and a part of the codebook."""
    (size, width), total = z.shape, len(entries)
    row_blocks, entry_blocks = -(-size // blocks.rows), -(-total // blocks.entries)
    # Whole blocks of entries per part, so that none is empty.
    part = -(-entry_blocks // min(entry_blocks, max(1, programs // row_blocks)))
    parts = -(-entry_blocks // part)
    least, second = z.new_empty(2, parts, size).unbind()
    codes = torch.empty(parts, size, dtype=torch.int32, device=z.device)
    search_kernel()[row_blocks, parts](
        z, entries, offset, least, codes, second, size, total, part * blocks.entries,
        WIDTH=width, ROWS=blocks.rows, ENTRIES=blocks.entries, FACTORS=blocks.factors,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    if parts == 1:
        return least[0], codes[0].long(), second[0]
    best, which = least.min(0)
    others = least.scatter(0, which[None], torch.inf).amin(0)
    return best, codes.gather(0, which[None])[0].long(), torch.minimum(second.amin(0), others)


@cache
def search_kernel() -> Any:
    """The kernel; triton is imported only here."""
    import triton
    from triton import language as tl

    # Not one kernel for each divisor of sizes.
    @triton.jit(do_not_specialize=["size", "total", "part"])  # type: ignore[untyped-decorator]
    def kernel(  # type: ignore[no-untyped-def]
        z, entries, offset, least, codes, second, size, total, part,
        WIDTH: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, FACTORS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        first = tl.program_id(1) * part
        end = tl.minimum(first + part, total)
        best = tl.full([ROWS], float("inf"), tl.float32)
        runner_up = tl.full([ROWS], float("inf"), tl.float32)
        place = tl.zeros([ROWS], tl.int32)
        column = tl.arange(0, ENTRIES)
        # Not a `for`: triton's interpreter, which the tests run, takes no range of values.
        while first < end:
            entry = (first + column).to(tl.int64)
            products = tl.zeros([ROWS, ENTRIES], tl.float32)
            for start in range(0, WIDTH, FACTORS):
                factor = start + tl.arange(0, FACTORS)
                a = tl.load(
                    z + row[:, None] * WIDTH + factor[None, :],
                    mask=(row[:, None] < size) & (factor[None, :] < WIDTH),
                    other=0.0,
                )
                b = tl.load(
                    entries + entry[None, :] * WIDTH + factor[:, None],
                    mask=(entry[None, :] < total) & (factor[:, None] < WIDTH),
                    other=0.0,
                )
                # No TF32: the search's bound of rounding is that of float32.
                products = tl.dot(a, b, products, input_precision="ieee")
            beyond = float("inf")  # what is no entry
            products += tl.load(offset + entry, mask=entry < total, other=beyond)[None, :]
            found, index = tl.min(products, 1, return_indices=True)
            others = tl.min(tl.where(column[None, :] == index[:, None], float("inf"), products), 1)
            runner_up = tl.minimum(tl.minimum(runner_up, others), tl.maximum(best, found))
            place = tl.where(found < best, first + index, place)
            best = tl.minimum(best, found)
            first += ENTRIES
        to = tl.program_id(1).to(tl.int64) * size + row
        tl.store(least + to, best, mask=row < size)
        tl.store(codes + to, place, mask=row < size)
        tl.store(second + to, runner_up, mask=row < size)

    return kernel
