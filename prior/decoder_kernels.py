"""Loops of `decoder_cpu.py`, compiled by numba: one step of all blocks, shared by threads.

Left out: who calls them, and what is not float32 but weights.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from prior.numba_products import FAST_MATH, intrinsics, product_kernel

# Places in `signals`: how many threads came to a meeting, in all; whether workers are to stop.
ARRIVED, STOPPED = 0, 8
SIGNALS = 16
# Of a block: qkv, out, gate, up, down.
MATRICES = 5
# Rows of a matrix that all sequences take before the next ones are read.
BLOCK = 32


@cache
def step_kernel(weights: str) -> Callable[..., None]:
    """The steps `first` to `last` - 1 as one of `threads` threads, of which all must run at the same time.

    `origin` is the first step of all. h (rows, dim) holds the input and then the residual stream, `hidden`
    the last hidden layer, `out` (Q, rows, N) the logits of the codebooks that `books` (S, Q) names for the
    step. `norms` (2 depth + 1, dim) and `qk_norms` (depth, 2, width) or (0, 2, width) are scales of
    `decoder.Norm`, `shifts` its shifts. The others are as in `decoder_cpu.CompiledDecoder`.
    """
    from numba import njit

    arrive, look, _, as_float = intrinsics()
    products = product_kernel(weights)

    @njit(nogil=True, fastmath={"contract"}, error_model="numpy")
    def exp(x):  # type: ignore[no-untyped-def]
        """e^x in vectors, to some units in the last place: 2^n · e^f, f up to ln 2 / 2, by the polynomial of
        Cephes' expf (Moshier 1989)."""
        x = min(max(x, np.float32(-87)), np.float32(87))
        n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
        f = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4) * f + np.float32(1.3981999507e-3)
        p = p * f + np.float32(8.3334519073e-3)
        p = p * f + np.float32(4.1665795894e-2)
        p = p * f + np.float32(1.6666665459e-1)
        p = p * f + np.float32(5.0000001201e-1)
        power = as_float(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))
        return (p * f * f + f + np.float32(1)) * power

    @njit(nogil=True, error_model="numpy")
    def meet(signals, target):  # type: ignore[no-untyped-def]
        arrive(signals, ARRIVED)
        while look(signals, ARRIVED) < target:
            pass

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def normalise(x, scale, shift, y):  # type: ignore[no-untyped-def]
        total = shift * shift
        for k in range(len(x)):
            total += x[k] * x[k]
        factor = np.float32(1) / np.sqrt(total)
        for k in range(len(x)):
            y[k] = x[k] * factor * scale[k]

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def multiply(address, scales, stride, first, last, x, y):  # type: ignore[no-untyped-def]
        """As `products`, for every sequence, into the same places of y (rows, ...)."""
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            for r in range(len(x)):
                products(address, scales, stride, start, stop, x[r], y[r, start:stop])

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def add_product(address, scales, stride, first, last, x, found, h):  # type: ignore[no-untyped-def]
        """As `multiply`, onto the residual stream; `found` (rows, ...) is room for the products."""
        multiply(address, scales, stride, first, last, x, found)
        h[:, first:last] += found[:, first:last]

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def turn_pairs(x, turn):  # type: ignore[no-untyped-def]
        for pair in range(len(turn)):
            a, b = x[2 * pair], x[2 * pair + 1]
            x[2 * pair] = a * turn[pair, 0] - b * turn[pair, 1]
            x[2 * pair + 1] = a * turn[pair, 1] + b * turn[pair, 0]

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def attend(q, keys, values, scores, y):  # type: ignore[no-untyped-def]
        width = len(q)
        scale = np.float32(1 / np.sqrt(width))
        most = np.float32(-np.inf)
        for t in range(len(keys)):
            score = np.float32(0)
            for k in range(width):
                score += q[k] * keys[t, k]
            scores[t] = score * scale
            most = max(most, scores[t])
        total = np.float32(0)
        for t in range(len(keys)):
            scores[t] = exp(scores[t] - most)
            total += scores[t]
        for k in range(width):
            y[k] = 0
        for t in range(len(keys)):
            share = scores[t] / total
            for k in range(width):
                y[k] += share * values[t, k]

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def kernel(  # type: ignore[no-untyped-def]
        first, last, thread, threads, origin, signals, h, hidden, y, gates, cache, turn, norms, qk_norms,
        shifts, addresses, scales, strides, books, out,
    ):  # fmt: skip
        depth, rows, heads, width = cache.shape[0], cache.shape[2], cache.shape[3], cache.shape[5]
        dim, ffn, size = h.shape[1], gates.shape[1], out.shape[2]
        x, found = np.empty((rows, dim), np.float32), np.empty((rows, max(dim, ffn)), np.float32)
        qkv, scores = np.empty((3, width), np.float32), np.empty(cache.shape[4], np.float32)
        from_head, to_head = heads * thread // threads, heads * (thread + 1) // threads
        from_dim, to_dim = dim * thread // threads, dim * (thread + 1) // threads
        from_gate, to_gate = ffn * thread // threads, ffn * (thread + 1) // threads
        from_code, to_code = size * thread // threads, size * (thread + 1) // threads
        for step in range(first, last):
            target = (step - origin) * (4 * depth + 2) * threads + threads
            arrive(signals, ARRIVED)
            while look(signals, ARRIVED) < target:
                if look(signals, STOPPED):
                    return
            for layer in range(depth):
                m = layer * MATRICES
                for r in range(rows):
                    normalise(h[r], norms[2 * layer], shifts[0], x[r])
                for head in range(from_head, to_head):
                    for r in range(rows):
                        for part in range(3):
                            j = part * dim + head * width
                            products(addresses[m], scales[m], strides[m], j, j + width, x[r], qkv[part])
                        for part in range(2):
                            if len(qk_norms):
                                normalise(qkv[part], qk_norms[layer, part], shifts[1], qkv[part])
                            turn_pairs(qkv[part], turn[step])
                        keys, values = cache[layer, 0, r, head], cache[layer, 1, r, head]
                        keys[step] = qkv[1]
                        values[step] = qkv[2]
                        into = y[r, head * width : (head + 1) * width]
                        attend(qkv[0], keys[: step + 1], values[: step + 1], scores, into)
                target += threads
                meet(signals, target)
                m += 1
                add_product(addresses[m], scales[m], strides[m], from_dim, to_dim, y, found, h)
                target += threads
                meet(signals, target)
                for r in range(rows):
                    normalise(h[r], norms[2 * layer + 1], shifts[0], x[r])
                m += 1
                multiply(addresses[m], scales[m], strides[m], from_gate, to_gate, x, gates)
                m += 1
                multiply(addresses[m], scales[m], strides[m], from_gate, to_gate, x, found)
                for r in range(rows):
                    for j in range(from_gate, to_gate):
                        gates[r, j] = gates[r, j] / (np.float32(1) + exp(-gates[r, j])) * found[r, j]
                target += threads
                meet(signals, target)
                m += 1
                add_product(addresses[m], scales[m], strides[m], from_dim, to_dim, gates, found, h)
                target += threads
                meet(signals, target)
            for r in range(rows):
                normalise(h[r], norms[2 * depth], shifts[0], x[r])
                if thread == 0:
                    hidden[r] = x[r]
            for q in range(books.shape[1]):
                m = depth * MATRICES + books[step, q]
                if books[step, q] >= 0:
                    multiply(addresses[m], scales[m], strides[m], from_code, to_code, x, out[q])
            target += threads
            meet(signals, target)

    return kernel
