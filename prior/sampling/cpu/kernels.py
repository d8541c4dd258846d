"""Loops of `decoder.py`, compiled by numba: one step of all blocks, shared by threads.

Left out: who calls them, and what is not float32 but weights.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from prior.sampling.cpu.products import FAST_MATH, VECTORS, intrinsics, lanes, product_kernel

# Places in `signals`: how many threads came to a meeting, in all; whether workers are to stop.
ARRIVED, STOPPED = 0, 8
SIGNALS = 16
# Looks at a counter before a thread gives way to what waits for its core: the thread it waits for may.
PATIENCE = 4096
# Of a block: qkv, out, gate, up, down.
MATRICES = 5


@cache
def shared_kernels() -> tuple[Callable[..., Any], ...]:
    """exp, meet, normalise, turn_pairs and attend, of which steps are made for weights of any form."""
    from numba import njit, types

    arrive, look, _, as_float = intrinsics()

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

    give_way = types.ExternalFunction("sched_yield", types.int32())

    @njit(nogil=True, error_model="numpy")
    def meet(signals, target):  # type: ignore[no-untyped-def]
        """Wait until `target` threads came in all; whether they did, and are not to stop."""
        arrive(signals, ARRIVED)
        looks = 0
        while look(signals, ARRIVED) < target:
            if look(signals, STOPPED):
                return False
            looks += 1
            if looks > PATIENCE:
                give_way()
        return True

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def normalise(x, scale, shift, y):  # type: ignore[no-untyped-def]
        total = shift * shift
        for k in range(len(x)):
            total += x[k] * x[k]
        factor = np.float32(1) / np.sqrt(total)
        for k in range(len(x)):
            y[k] = x[k] * factor * scale[k]

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
        t = 0
        while t + 4 <= len(keys):  # four at once, for each number of q that is read
            k0, k1, k2, k3 = keys[t], keys[t + 1], keys[t + 2], keys[t + 3]
            a = b = c = d = np.float32(0)
            for k in range(width):
                a += q[k] * k0[k]
                b += q[k] * k1[k]
                c += q[k] * k2[k]
                d += q[k] * k3[k]
            scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a, b, c, d
            t += 4
        while t < len(keys):
            score = np.float32(0)
            for k in range(width):
                score += q[k] * keys[t, k]
            scores[t] = score
            t += 1
        for t in range(len(keys)):
            scores[t] *= scale
            most = max(most, scores[t])
        total = np.float32(0)
        for t in range(len(keys)):
            scores[t] = exp(scores[t] - most)
            total += scores[t]
        for k in range(width):
            y[k] = 0
        t = 0
        while t + 4 <= len(keys):
            v0, v1, v2, v3 = values[t], values[t + 1], values[t + 2], values[t + 3]
            a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
            for k in range(width):
                y[k] += a * v0[k] + b * v1[k] + c * v2[k] + d * v3[k]
            t += 4
        while t < len(keys):
            for k in range(width):
                y[k] += scores[t] * values[t, k]
            t += 1
        for k in range(width):
            y[k] /= total

    return exp, meet, normalise, turn_pairs, attend


@cache
def step_kernel(weights: str) -> Callable[..., None]:
    """The steps `first` to `last` - 1 as one of `threads` threads, of which all must run at the same time; or
    step `first` and those after it, `span` in all, at once.

    `origin` is the first step of all. h (rows · span, dim) holds the inputs and then the residual stream,
    `hidden` (rows, dim) the last hidden layer, `out` (Q, rows, N and more) the logits of the codebooks that
    `books` (S, Q) names for the (last) step. y (rows · span, dim), `found` (rows · span, dim and more) and
    `gates` (2, rows · span, ffn and more) are room for what threads tell each other. `cache` (depth, 2, rows,
    heads, S, width) has keys and values. `norms` to `panels` are those of `layout.PackedPrior`; the others
    are as in `decoder.CompiledDecoder`.
    """
    from numba import njit

    exp, meet, normalise, turn_pairs, attend = shared_kernels()
    products = product_kernel(weights)
    panel = VECTORS * lanes()

    @njit(nogil=True, error_model="numpy")
    def add_product(address, scales, terms, first, last, x, found, h):  # type: ignore[no-untyped-def]
        """As `products`, onto the residual stream; `found` (rows, ...) is room for the products."""
        start, stop = first * panel, min(last * panel, h.shape[1])
        products(address, scales, terms, first, last, x, found[:, start:])
        for r in range(len(h)):
            for j in range(start, stop):
                h[r, j] += found[r, j]

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def kernel(  # type: ignore[no-untyped-def]
        first, last, thread, threads, origin, span, ffn, signals, h, hidden, y, found, gates, cache, turn,
        norms, head_norms, shifts, addresses, scales, panels, books, out,
    ):  # fmt: skip
        depth, heads, width = cache.shape[0], cache.shape[3], cache.shape[5]
        rows, dim = h.shape
        of_head, of_dim = panels[0] // heads, panels[1]
        of_gate, of_codes = panels[2], panels[len(panels) - 1]
        x, scores = np.empty((rows, dim), np.float32), np.empty(cache.shape[4], np.float32)
        qkv = np.empty((rows, of_head * panel), np.float32)
        from_head, to_head = heads * thread // threads, heads * (thread + 1) // threads
        from_dim, to_dim = of_dim * thread // threads, of_dim * (thread + 1) // threads
        from_gate, to_gate = of_gate * thread // threads, of_gate * (thread + 1) // threads
        from_code, to_code = of_codes * thread // threads, of_codes * (thread + 1) // threads
        for step in range(first, last):
            target = (step - origin) * (4 * depth + 2) * threads + threads
            if not meet(signals, target):
                return
            for layer in range(depth):
                m = layer * MATRICES
                for r in range(rows):
                    normalise(h[r], norms[2 * layer], shifts[0], x[r])
                for head in range(from_head, to_head):
                    one, after = head * of_head, (head + 1) * of_head
                    products(addresses[m], scales[m], dim, one, after, x, qkv)
                    for r in range(rows):
                        sequence, at = r // span, step + r % span
                        for part in range(2):
                            of_part = qkv[r, part * width : (part + 1) * width]
                            if len(head_norms):
                                normalise(of_part, head_norms[layer, part], shifts[1], of_part)
                            turn_pairs(of_part, turn[at])
                        keys, values = cache[layer, 0, sequence, head], cache[layer, 1, sequence, head]
                        keys[at] = qkv[r, width : 2 * width]
                        values[at] = qkv[r, 2 * width : 3 * width]
                        into = y[r, head * width : (head + 1) * width]
                        attend(qkv[r, :width], keys[: at + 1], values[: at + 1], scores, into)
                target += threads
                meet(signals, target)
                m += 1
                add_product(addresses[m], scales[m], dim, from_dim, to_dim, y, found, h)
                target += threads
                meet(signals, target)
                for r in range(rows):
                    normalise(h[r], norms[2 * layer + 1], shifts[0], x[r])
                start, stop = from_gate * panel, to_gate * panel
                gate, up = gates[0], gates[1]
                m += 1
                products(addresses[m], scales[m], dim, from_gate, to_gate, x, gate[:, start:])
                m += 1
                products(addresses[m], scales[m], dim, from_gate, to_gate, x, up[:, start:])
                for r in range(rows):
                    for j in range(start, stop):
                        gate[r, j] = gate[r, j] / (np.float32(1) + exp(-gate[r, j])) * up[r, j]
                target += threads
                meet(signals, target)
                m += 1
                add_product(addresses[m], scales[m], ffn, from_dim, to_dim, gate, found, h)
                target += threads
                meet(signals, target)
            sequences = rows // span
            for r in range(sequences):
                normalise(h[(r + 1) * span - 1], norms[2 * depth], shifts[0], x[r])
                if thread == 0:
                    hidden[r] = x[r]
            for q in range(books.shape[1]):
                book = books[step + span - 1, q]
                m = depth * MATRICES + book
                if book >= 0:
                    into = out[q][:, from_code * panel :]
                    products(addresses[m], scales[m], dim, from_code, to_code, x[:sequences], into)
            target += threads
            meet(signals, target)

    return kernel
