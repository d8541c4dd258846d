"""The same as `tiles.propose` in compiled loops for CPUs, with numba (the extra `fast`) where it is
installed: for few dimensions the table of distances is never written at all.

Left out: float64, and deciding between numba and torch (`tiles.py`).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows at once, and entries whose least one is all that is kept in the first pass. Measured on a CPU with
# AVX-512: 64 beside 16, 32, 128 rows; 16 beside 64 entries.
LANES, GROUP = 64, 16
# Lanes in which a row of products is scanned.
STRIDE = 16
# Distances from which on compiled loops are worth the second that compiling them takes.
COMPILED_FROM = 1 << 21
# Factors of a product up to which the fused loops are faster than a matrix product into tiles.
WIDTH = 16
# Loops may fuse a product with its sum, and rely on there being no NaN; the order of sums stays.
FAST_MATH = {"contract", "nnan", "nsz"}

Nearest = tuple[Tensor, Tensor, Tensor]


@cache
def installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


def propose(z: Tensor, entries: Tensor, offset: Tensor) -> Nearest:
    """As `tiles.propose`, of float32, contiguous, D up to `WIDTH`."""
    if missing := -len(entries) % GROUP:
        entries = torch.cat([entries, entries.new_zeros(missing, entries.shape[1])])
        offset = torch.cat([offset, offset.new_full((missing,), torch.inf)])
    kernel = product_kernel(z.shape[1])
    return _searched(kernel, LANES, z.numpy(), entries.numpy(), offset.numpy())


def two_least(products: Tensor) -> Nearest:
    """Of each row of products (R, N), contiguous float32: the least, its index, the least of all others."""
    return _searched(scan_kernel(), 1, products.numpy())


def _searched(kernel: Callable[..., None], rows_at_once: int, *arrays: Any) -> Nearest:
    """Run a kernel over the rows of the first array."""
    size = len(arrays[0])
    least, second = np.empty((2, size), np.float32)
    codes = np.empty(size, np.int64)
    with Threads(torch.get_num_threads()) as threads:
        threads.share(size, rows_at_once, kernel, *arrays, least, codes, second)
    return torch.from_numpy(least), torch.from_numpy(codes), torch.from_numpy(second)


class Threads:
    """`count` threads, the one that waits for them among these, for a single search: they must not be kept,
    as a process that is forked from this one would wait for threads that it does not have."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self.others = ThreadPoolExecutor(self.count - 1) if self.count > 1 else None

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        if self.others:
            self.others.shutdown()

    def share(self, size: int, rows_at_once: int, kernel: Callable[..., None], *arguments: Any) -> None:
        """`kernel(*arguments, start, stop)` over `size` rows, each thread with a part of them."""
        blocks = -(-size // rows_at_once)
        parts = min(self.count, blocks)
        bounds = [min(size, blocks * i // parts * rows_at_once) for i in range(parts)] + [size]
        waiting = []
        if self.others:
            waiting = [self.others.submit(kernel, *arguments, *bounds[i : i + 2]) for i in range(1, parts)]
        kernel(*arguments, *bounds[:2])
        for other in waiting:
            other.result()


@cache
def product_kernel(dim: int) -> Callable[..., None]:
    """Fused product and search for rows of `dim` factors, which the compiler unrolls."""
    from numba import njit

    inf = np.float32(np.inf)

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def kernel(z, entries, offset, least, codes, second, start, stop):  # type: ignore[no-untyped-def]
        block = np.zeros((dim, LANES), np.float32)
        best, runner_up, lowest = np.empty((3, LANES), np.float32)
        group = np.empty(LANES, np.int32)
        for first in range(start, stop, LANES):
            rows = min(LANES, stop - first)
            for l in range(rows):
                for k in range(dim):
                    block[k, l] = z[first + l, k]
            for l in range(LANES):
                best[l] = inf
                runner_up[l] = inf
                group[l] = 0
            for g in range(len(entries) // GROUP):
                for l in range(LANES):
                    lowest[l] = inf
                for four in range(g * GROUP, (g + 1) * GROUP, 4):
                    e, o = entries[four : four + 4], offset[four : four + 4]
                    for l in range(LANES):
                        a, b, c, d = o[0], o[1], o[2], o[3]
                        for k in range(dim):
                            x = block[k, l]
                            a += e[0, k] * x
                            b += e[1, k] * x
                            c += e[2, k] * x
                            d += e[3, k] * x
                        a = a if a < b else b
                        c = c if c < d else d
                        a = a if a < c else c
                        lowest[l] = a if a < lowest[l] else lowest[l]
                for l in range(LANES):
                    new, old = lowest[l], best[l]
                    worse = old if old > new else new
                    runner_up[l] = worse if worse < runner_up[l] else runner_up[l]
                    group[l] = g if new < old else group[l]
                    best[l] = new if new < old else old
            for l in range(rows):
                found, code, other = inf, 0, runner_up[l]
                for j in range(group[l] * GROUP, (group[l] + 1) * GROUP):
                    new = offset[j]
                    for k in range(dim):
                        new += entries[j, k] * block[k, l]
                    if new < found:
                        found, new, code = new, found, j
                    other = min(other, new)
                least[first + l] = found
                codes[first + l] = code
                second[first + l] = other

    return kernel


@cache
def scan_kernel() -> Callable[..., None]:
    """Search in products that are there already: lane l holds the columns l, l + STRIDE, l + 2 STRIDE, ..."""
    from numba import njit

    inf = np.float32(np.inf)
    step, last = 8 * STRIDE, 7 * STRIDE

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def kernel(products, least, codes, second, start, stop):  # type: ignore[no-untyped-def]
        best, runner_up = np.empty((2, STRIDE), np.float32)
        group = np.empty(STRIDE, np.int32)
        size = products.shape[1]
        groups = size // step
        for r in range(start, stop):
            row = products[r]
            for l in range(STRIDE):
                best[l] = inf
                runner_up[l] = inf
                group[l] = 0
            for g in range(groups):
                p = row[g * step : (g + 1) * step]
                for l in range(STRIDE):
                    a, b = min(p[l], p[l + STRIDE]), min(p[l + 2 * STRIDE], p[l + 3 * STRIDE])
                    c, d = min(p[l + 4 * STRIDE], p[l + 5 * STRIDE]), min(p[l + 6 * STRIDE], p[l + last])
                    new, old = min(min(a, b), min(c, d)), best[l]
                    worse = old if old > new else new
                    runner_up[l] = worse if worse < runner_up[l] else runner_up[l]
                    group[l] = g if new < old else group[l]
                    best[l] = new if new < old else old
            lane, other = 0, inf
            for l in range(STRIDE):
                lane = l if best[l] < best[lane] else lane
            for l in range(STRIDE):
                other = min(other, runner_up[l])
                other = min(other, inf if l == lane else best[l])
            found, code = inf, 0
            # The members of the winning group, then the columns of no group.
            first = group[lane] * step + lane
            for j in range(first, first + min(groups, 1) * step, STRIDE):
                new = row[j]
                if new < found:
                    found, new, code = new, found, j
                other = min(other, new)
            for j in range(groups * step, size):
                new = row[j]
                if new < found:
                    found, new, code = new, found, j
                other = min(other, new)
            least[r] = found
            codes[r] = code
            second[r] = other

    return kernel
