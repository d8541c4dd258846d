"""The nearest entries by products in bfloat16, for CPUs that multiply it several times as fast as float32
(AMX, AVX-512 BF16), with loops of numba (the extra `fast`).

Left out: float64, few dimensions, rows that have too many entries about equally near (`exact.py` takes
them), and GPUs.

The distance ½‖z − e‖² comes out of one product of lifted rows, [z, 1, ½‖z‖²] · [−e, ½‖e‖², 1]. z and e are
rounded to bfloat16, which puts an error bound on it that each row knows; the two halves are not: each is the
sum of three numbers of bfloat16. Whatever entries the bound allows to be the nearest are compared by their
distances in float64, while the row of products is still in the cache. So codes are those of `exact.py`.
"""

import os
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tokenizer.search import cpu as search_cpu
from tokenizer.search.cpu import COMPILED_FROM, Threads
from tokenizer.search.tiles import FAR, NEAR

# Products per tile at most, 8 MiB, and the entries that a tile spans at most.
TILE, WIDEST = 1 << 22, 1 << 14
# Lanes in which a row of products is scanned, a block at a time; entries are padded to a multiple of them.
LANES, BLOCK = 128, 32
# Factors of a product are padded to a multiple of this.
FACTORS = 32
# A row with more candidates than this is left undecided.
MOST = 64
# Fewer dimensions are faster in float32.
NARROW = search_cpu.WIDTH
UNDECIDED = -1
# Turns of a waiting thread (GOMP_SPINCOUNT) that are over before another thread misses the core.
FEW_TURNS = 10_000
# One and infinity in bfloat16, as int16.
ONE, LARGEST = 0x3F80, 0x7F80
FLOAT32 = torch.finfo(torch.float32)


def serves(z: Tensor, codebook: Tensor) -> bool:
    """Whether these products are faster in bfloat16 here."""
    floats = z.device.type == codebook.device.type == "cpu" and z.dtype == codebook.dtype == torch.float32
    large = z.shape[1] >= NARROW and len(z) * len(codebook) >= COMPILED_FROM
    return floats and large and bool(torch.backends.mkldnn.enabled) and search_cpu.installed() and fast()


@cache
def fast() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware and adds in float32, as it should."""
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    ones = torch.ones(512, 512, dtype=torch.bfloat16)
    # Added in bfloat16, ones would not get beyond 256.
    return any(map(features.get, ("amx-bf16", "avx512bf16"))) and bool((ones @ ones == 512).all())


def torch_spins() -> bool:
    """Whether threads of torch keep half of the cores busy for a while after each product, as OpenMP's do
    unless they were told otherwise before torch was imported."""
    turns = os.environ.get("GOMP_SPINCOUNT", "").strip()
    if turns.isdecimal():  # GNU's OpenMP heeds it before the policy
        return int(turns) > FEW_TURNS
    return os.environ.get("OMP_WAIT_POLICY", "").strip().lower() != "passive"


def search(z: Tensor, codebook: Tensor, centre: Tensor) -> Tensor:
    """Codes (M,) int64 of z (M, D) among `codebook` (N, D), ties to the lowest; `UNDECIDED` where bfloat16
    leaves too many candidates, and everywhere if values are not finite or out of range. `centre` (D,) is
    any point near the entries; all are float32."""
    undecided = torch.full((len(z),), UNDECIDED)
    if len(z) == 0:
        return undecided
    z, codebook = z.contiguous(), codebook.contiguous()
    dim, z_array, codes = z.shape[1], z.numpy(), undecided.numpy().copy()
    with Threads(torch.get_num_threads() // (2 if torch_spins() else 1)) as threads:
        entries, lengths, errors = lift(codebook, centre, True, threads)
        longest, worst = lengths.max(), errors.max()
        rows, lengths, errors = lift(z, centre, False, threads)
        if not (NEAR <= longest <= FAR and lengths.max() <= FAR):
            return undecided
        # Rounding of z and e to bfloat16; then that of float32, in sums of at most D + 20 terms in any order,
        # centring included, whose sizes add up to ½ (‖z‖ + ‖e‖)²; and last, what vanishes.
        both = lengths + longest
        off = errors * longest + (lengths + errors) * worst
        off += (dim + 20) * FLOAT32.eps * both * both / 2
        slack = (off + 4 * (dim + 20) * FLOAT32.tiny * (1 + both)).numpy()
        lowest, best = np.full(len(z), LARGEST, np.int16), np.full(len(z), np.inf)
        width = min(len(entries), WIDEST)
        height = max(1, TILE // width)
        tile = torch.empty(min(height, len(z)), width, dtype=torch.bfloat16)
        for start in range(0, len(entries), WIDEST):
            part, among = entries[start : start + WIDEST], codebook[start : start + WIDEST].numpy()
            for first in range(0, len(z), height):
                some = slice(first, first + height)
                products = tile[: len(rows[some]), : len(part)]
                torch.mm(rows[some], part.T, out=products)
                keys = products.view(torch.int16)
                lanes = keys.view(len(keys), -1, LANES).amin(1)
                of_rows = (a[some] for a in (z_array, slack, lowest, best, codes))
                arguments = (keys.numpy(), lanes.numpy(), among, *of_rows, start, len(entries) > WIDEST)
                threads.share(len(keys), 1, decide_kernel(), *arguments)
                if first == start == 0 and (best[some] < 0).sum() > len(keys) // 2:
                    return undecided
    return torch.from_numpy(codes)


def lift(x: Tensor, centre: Tensor, entries: bool, threads: Threads) -> tuple[Tensor, Tensor, Tensor]:
    """Rows x (R, D) less `centre`, lifted (R', K) bfloat16; their lengths (R,) and those of what rounding
    took from them, float64. Of entries R' is the next multiple of `LANES`: the last ones are infinitely far.
    """
    size, dim = x.shape
    width = -(-(dim + 6) // FACTORS) * FACTORS
    lifted = torch.empty(-(-size // LANES) * LANES if entries else size, width, dtype=torch.bfloat16)
    lifted[size:] = 0
    lifted[size:, dim] = torch.inf
    lengths, errors = torch.empty(2, size, dtype=torch.float64)
    arrays = [t.numpy() for t in (x, centre, lifted.view(torch.int16), lengths, errors)]
    threads.share(size, 1, lift_kernel(), *arrays, entries)
    return lifted, lengths, errors


@cache
def lift_kernel() -> Callable[..., None]:
    """See `lift`; bfloat16 is the upper half of a float32, here as int16."""
    from numba import njit

    @njit(nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
    def kernel(x, centre, lifted, lengths, errors, entries, start, stop):  # type: ignore[no-untyped-def]
        dim = x.shape[1]
        full, rounded = np.empty((2, dim), np.float32)
        bits, rounded_bits = full.view(np.uint32), rounded.view(np.uint32)
        half = np.empty(3, np.float32)
        half_bits = half.view(np.uint32)
        of_half, ones = (dim, dim + 3) if entries else (dim + 3, dim)
        for r in range(start, stop):
            for k in range(dim):
                full[k] = centre[k] - x[r, k] if entries else x[r, k] - centre[k]
            for k in range(dim):
                b = bits[k]
                b = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
                rounded_bits[k] = b
                lifted[r, k] = np.int16(b >> np.uint32(16))
            length, error = 0.0, 0.0
            for k in range(dim):
                length += np.float64(full[k]) * np.float64(full[k])
                off = np.float64(full[k]) - np.float64(rounded[k])
                error += off * off
            lengths[r], errors[r] = np.sqrt(length), np.sqrt(error)
            left = np.float32(length / 2)
            for i in range(3):  # the upper 8 bits of what is left, three times
                half[i] = left
                half_bits[i] &= np.uint32(0xFFFF0000)
                left -= half[i]
                lifted[r, of_half + i] = np.int16(half_bits[i] >> np.uint32(16))
                lifted[r, ones + i] = np.int16(ONE)
            for k in range(dim + 6, lifted.shape[1]):
                lifted[r, k] = 0

    return kernel


@cache
def decide_kernel() -> Callable[..., None]:
    """Which entry is nearest to each row of products (R, N') bfloat16 as int16, whose order is that of
    floats but among negative ones, which are candidates whatever they are. `lanes` (R, LANES) holds the least
    of the columns l, l + LANES, ...; all errors are at most `slack` (R,); `lowest` (R,) is the least product
    and `best` (R,) the squared distance of the best entry of earlier parts, negative for rows given up."""
    from numba import njit

    @njit(nogil=True, error_model="numpy")
    def kernel(  # type: ignore[no-untyped-def]
        products, lanes, codebook, z, slack, lowest, best, codes, offset, several, start, stop
    ):
        found = np.empty(MOST, np.int64)
        squares = np.empty(z.shape[1])
        one_float = np.empty(1, np.float32)
        its_bits = one_float.view(np.int32)
        for r in range(start, stop):
            if best[r] < 0:
                continue
            least = lowest[r]
            for l in range(LANES):
                least = min(least, lanes[r, l])
            lowest[r] = least = max(least, np.int16(0))
            # Before it was rounded to bfloat16, the least product was at most this, and that of the nearest
            # entry at most twice the slack more; it was rounded too.
            its_bits[0] = np.int32(least) << 16
            one_float[0] = np.float32(one_float[0] * (1 + 2.0**-9 + 2.0**-17) + 2.001 * slack[r])
            limit, count = (its_bits[0] >> 16) + 1, 0
            if limit < LARGEST:
                for block in range(0, LANES, BLOCK):
                    some = False
                    for l in range(block, block + BLOCK):  # in one vector
                        some |= lanes[r, l] <= limit
                    if not some:
                        continue
                    for l in range(block, block + BLOCK):
                        if lanes[r, l] <= limit:
                            for column in range(l, products.shape[1], LANES):
                                if products[r, column] <= limit:
                                    if count < MOST:
                                        found[count] = column
                                    count += 1
            if limit >= LARGEST or count > MOST:
                best[r], codes[r] = -1, UNDECIDED
                continue
            if count == 1 and not several:
                codes[r] = found[0]
                continue
            code, distance = UNDECIDED, np.inf
            for i in range(count):
                j = found[i]
                # In the order of search.squared_distances, so that both round alike.
                for k in range(len(squares)):
                    off = np.float64(z[r, k]) - np.float64(codebook[j, k])
                    squares[k] = off * off
                width = len(squares)
                while width > 1:
                    half = (width + 1) // 2
                    for k in range(width - half):
                        squares[k] += squares[half + k]
                    width = half
                if squares[0] < distance or (squares[0] == distance and j < code):
                    code, distance = j, squares[0]
            if distance < best[r]:
                best[r], codes[r] = distance, offset + code

    return kernel
