"""What the loops of `kernels.py` are made of: products with weights of every form, and what numba
itself has not.

Left out: how a matrix is laid out for them (`layout.py`), and float64.

A product goes by tiles: some rows of x times `VECTORS` vectors of outputs, whose sums stay in registers while
the weights pass by (Goto and van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication, section
6). Every sum takes its terms in order whatever the tile, so that what a row gets does not depend on how many
there are.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

# Sums may be added in any order, as vectors do.
FAST_MATH = {"reassoc", "contract", "nsz"}
# Of outputs, in a tile.
VECTORS = 2
# Bytes that come from memory at once.
LINE = 64


def installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


@cache
def lanes() -> int:
    """Numbers in a vector of this CPU, in float32."""
    from llvmlite.binding import get_host_cpu_features

    has = get_host_cpu_features()
    return 16 if has.get("avx512f") else 8 if has.get("avx") else 4


@cache
def tile_rows() -> tuple[int, ...]:
    """Rows of x in a tile, for each kind of tile there is: as many as 32 or 16 registers hold sums for."""
    from llvmlite.binding import get_host_cpu_features

    has = get_host_cpu_features()
    return (8, 4, 2, 1) if has.get("avx512f") or has.get("neon") else (4, 2, 1)


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
def tile_kernel(weights: str, rows: int) -> Any:
    """The products of `rows` rows of x and a panel of weights, for numba: addresses of the weights, of x and
    of y, numbers from one row to the next of x and of y, terms of a sum (at least 1), and an address from
    which on the largest tiles fetch a line for each term: what is read next, while they compute."""
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic

    wide = lanes()
    single, index, whole = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    stored = {"full": single, "bf16": ir.IntType(16), "int8": ir.IntType(8)}[weights]
    size = {"full": 4, "bf16": 2, "int8": 1}[weights]
    floats, wholes, numbers = (ir.VectorType(kind, wide) for kind in (single, whole, stored))
    fused = ("contract",)

    def offset(value: int) -> Any:
        return ir.Constant(index, value)

    def as_floats(build: Any, vector: Any) -> Any:
        """Stored numbers, each as the float32 it stands for."""
        if weights == "bf16":
            bits = build.shl(build.zext(vector, wholes), ir.Constant(wholes, [16] * wide))
            return build.bitcast(bits, floats)
        return build.sitofp(build.sext(vector, wholes), floats) if weights == "int8" else vector

    def everywhere(build: Any, value: Any) -> Any:
        """A vector of one value."""
        nothing = ir.Constant(floats, ir.Undefined)
        first = build.insert_element(nothing, value, ir.Constant(whole, 0))
        return build.shuffle_vector(first, nothing, ir.Constant(wholes, [0] * wide))

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        w, x, y, step_x, step_y, terms, ahead = arguments
        w = build.inttoptr(w, stored.as_pointer())
        ahead = build.inttoptr(ahead, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [ahead.type, whole, whole, whole])
        prefetch = get_or_insert_function(build.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        x, y = (build.inttoptr(address, single.as_pointer()) for address in (x, y))
        xs = [build.gep(x, [build.mul(step_x, offset(row))]) for row in range(rows)]
        before, loop, after = build.block, build.append_basic_block(), build.append_basic_block()
        build.branch(loop)
        build.position_at_end(loop)
        k = build.phi(index)
        k.add_incoming(offset(0), before)
        sums = [[build.phi(floats) for _ in range(VECTORS)] for _ in range(rows)]
        if rows == tile_rows()[0]:  # smaller tiles wait for nothing but the weights they read in order
            line, how = build.gep(ahead, [build.mul(k, offset(LINE))]), (0, 2, 1)  # to read, level 2, data
            build.call(prefetch, [line, *(ir.Constant(whole, value) for value in how)])
        vectors = []
        for vector in range(VECTORS):
            where = build.add(build.mul(k, offset(VECTORS * wide)), offset(vector * wide))
            loaded = build.load(build.bitcast(build.gep(w, [where]), numbers.as_pointer()))
            loaded.align = size
            vectors.append(as_floats(build, loaded))
        for row in range(rows):
            value = everywhere(build, build.load(build.gep(xs[row], [k])))
            for vector in range(VECTORS):
                total = sums[row][vector]
                product = build.fmul(value, vectors[vector], flags=fused)
                added = build.fadd(product, total, flags=fused)
                total.add_incoming(ir.Constant(floats, [0.0] * wide), before)
                total.add_incoming(added, loop)
                sums[row][vector] = added
        following = build.add(k, offset(1))
        k.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, terms), loop, after)
        build.position_at_end(after)
        for row in range(rows):
            for vector in range(VECTORS):
                where = build.add(build.mul(step_y, offset(row)), offset(vector * wide))
                into = build.bitcast(build.gep(y, [where]), floats.as_pointer())
                build.store(sums[row][vector], into).align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, w, x, y, step_x, step_y, terms, ahead):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 7), generate

    return tile


@cache
def product_kernel(weights: str) -> Callable[..., None]:
    """y (rows, ...) = the products of x (rows, ...) and the panels `first` to `last` - 1 of a matrix with
    `terms` inputs; the first panel's outputs are the first of y."""
    from numba import carray, njit  # type: ignore[attr-defined]

    _, _, at, _ = intrinsics()
    floats = np.empty(0, np.float32)
    panel, scaled = VECTORS * lanes(), weights == "int8"
    size = panel * {"full": 4, "bf16": 2, "int8": 1}[weights]
    # A tile fetches a line for each input; so many are the next panel.
    lines = max(1, size // LINE)
    most = tile_rows()[0]
    # Where there is no tile of eight rows, its branch is never taken.
    of_eight, of_four, of_two, of_one = (tile_kernel(weights, min(n, most)) for n in (8, 4, 2, 1))

    @njit(nogil=True, error_model="numpy")
    def products(address, scales, terms, first, last, x, y):  # type: ignore[no-untyped-def]
        rows, step_x, step_y = len(x), x.strides[0] // 4, y.strides[0] // 4
        for p in range(first, last):
            w = address + p * terms * size
            row = tiles = 0
            while row < rows:
                from_x = x.ctypes.data + 4 * row * step_x
                to_y = y.ctypes.data + 4 * (row * step_y + (p - first) * panel)
                left = rows - row
                ahead = w + terms * (size + LINE * min(tiles, lines - 1))
                tiles += 1
                if most == 8 and left >= 8:
                    of_eight(w, from_x, to_y, step_x, step_y, terms, ahead)
                    row += 8
                elif left >= 4:
                    of_four(w, from_x, to_y, step_x, step_y, terms, ahead)
                    row += 4
                elif left >= 2:
                    of_two(w, from_x, to_y, step_x, step_y, terms, ahead)
                    row += 2
                else:
                    of_one(w, from_x, to_y, step_x, step_y, terms, ahead)
                    row += 1
            if scaled:
                of_outputs = carray(at(scales + 4 * p * panel, floats), (panel,))
                for row in range(rows):
                    into = y[row, (p - first) * panel : (p - first + 1) * panel]
                    for j in range(panel):
                        into[j] *= of_outputs[j]

    return products
