"""What the loops of `decoder_kernels.py` are made of: products with weights of every form, where they lie in
memory, and what numba itself has not.

Left out: float64, and products of many rows, which are torch's.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

# Sums may be added in any order, as vectors do.
FAST_MATH = {"reassoc", "contract", "nsz"}


def installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


@cache
def intrinsics() -> tuple[Any, Any, Any, Any]:
    """Atomic add and load, arrays at an address, and bits of float32 as such: what numba itself has not."""
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import gep_inbounds
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    def pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
        data = make_array(kind)(context, builder, array).data  # type: ignore[no-untyped-call]
        return gep_inbounds(builder, data, index)  # type: ignore[no-untyped-call]

    @intrinsic
    def arrive(typing, signals, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            where = pointer(context, builder, signature.args[0], *arguments)
            return builder.atomic_rmw("add", where, ir.Constant(ir.IntType(64), 1), "seq_cst")

        return types.int64(signals, index), generate

    @intrinsic
    def look(typing, signals, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            where = pointer(context, builder, signature.args[0], *arguments)
            return builder.load_atomic(where, "seq_cst", 8)

        return types.int64(signals, index), generate

    @intrinsic
    def at(typing, address, like):  # type: ignore[no-untyped-def]
        kind = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(address, like), generate

    @intrinsic
    def as_float(typing, bits):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], ir.FloatType())

        return types.float32(types.uint32), generate

    return arrive, look, at, as_float


@cache
def product_kernel(weights: str) -> Callable[..., None]:
    """y = the products of x and the rows `first` to `last` - 1 of a matrix, of `stride` numbers each."""
    from numba import carray, njit  # type: ignore[attr-defined]

    _, _, at, as_float = intrinsics()
    floats = np.empty(0, np.float32)
    like = np.empty(0, {"full": np.float32, "bf16": np.uint16, "int8": np.int8}[weights])
    size, scaled = like.itemsize, weights == "int8"
    if weights == "bf16":

        @njit(inline="always")
        def number(w):  # type: ignore[no-untyped-def]
            return as_float(np.uint32(w) << np.uint32(16))
    else:

        @njit(inline="always")
        def number(w):  # type: ignore[no-untyped-def]
            return np.float32(w)

    @njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
    def products(address, scales, stride, first, last, x, y):  # type: ignore[no-untyped-def]
        n = len(x)
        w = carray(at(address + size * stride * first, like), ((last - first) * stride,))
        j = 0
        while j + 4 <= last - first:  # four rows at once, for each number of x that is read
            w0, w1, w2, w3 = (
                w[j * stride :],
                w[(j + 1) * stride :],
                w[(j + 2) * stride :],
                w[(j + 3) * stride :],
            )
            a = b = c = d = np.float32(0)
            for k in range(n):
                a += number(w0[k]) * x[k]
                b += number(w1[k]) * x[k]
                c += number(w2[k]) * x[k]
                d += number(w3[k]) * x[k]
            y[j], y[j + 1], y[j + 2], y[j + 3] = a, b, c, d
            j += 4
        while j < last - first:
            w0 = w[j * stride :]
            a = np.float32(0)
            for k in range(n):
                a += number(w0[k]) * x[k]
            y[j] = a
            j += 1
        if scaled:
            of_rows = carray(at(scales + 4 * first, floats), (last - first,))
            for j in range(last - first):
                y[j] *= of_rows[j]

    return products
