"""Nearest codebook entry: exact, in tiles of bounded memory, ties to the lowest index. Every bottleneck uses
it.

Left out: approximate search, and anything that would hold the whole (M, N) table of distances.

A product in float32 cannot tell entries apart that lie closer together than its rounding, and how it rounds
depends on shapes, threads and devices. So the product only proposes: for each vector, the entries that its
rounding allows to be the nearest, which are a single one for most. Where there are several, their distances
in float64 decide. Codes are then those of the distances written out in float64, whatever computed the
product, and a vector has the same code alone, in any batch and on any device.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from tokenizer.checks import NotFinite
from tokenizer.precision import full_precision
from tokenizer.search.tiles import FAR, NEAR, TILE, propose

Distance = Literal["euclidean", "cosine"]

# Coordinates of pairs of a vector and an entry that are held at once in float64.
PAIRS = 1 << 21
# Rows with more proposals than this on average are searched in float64, among distinct entries.
CROWDED = 32
# The centre is the median of about this many entries.
SAMPLE = 32
FAR_IN_FLOAT64 = 1e150


def nearest(z: Tensor, codebook: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Index of the codebook entry nearest to each row of `z`, of equally near ones the lowest.

    z: (M, D) float, codebook: (N, D) float → codes: (M,) int64. `distance` is the Euclidean one, or that of
    the directions (cosine: both are first scaled to length 1 in at least float32; zeros stay, at distance 1
    of all others). Half precision is read as float32. Peak extra memory is O((M + N) · D + TILE).

    Raises `ValueError` for shapes that do not fit, an empty codebook, and values that are not finite.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"expected z (M, D) and codebook (N, D), got {tuple(z.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise ValueError("the codebook has no entries")
    if codebook.shape[1] == 0:
        raise ValueError("z and the codebook have no dimensions")
    if not (z.is_floating_point() and codebook.is_floating_point()):
        raise ValueError(f"expected floats, got z of {z.dtype} and a codebook of {codebook.dtype}")
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance is {distance!r}, expected euclidean or cosine")
    codes: Tensor = torch.ops.tokenloom.nearest(z.detach(), codebook.detach(), distance)
    return codes


# It looks at values, which a CUDA graph cannot: torch.compile(..., mode="reduce-overhead") goes around it.
@torch.library.custom_op("tokenloom::nearest", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _nearest(z: Tensor, codebook: Tensor, distance: str) -> Tensor:
    """One operator for torch.compile, which would otherwise break its graph at the first look at a value."""
    dtype = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False), full_precision():
        z, codebook = z.to(dtype), codebook.to(dtype)
        if distance == "cosine":
            z, codebook = directions(z, "z"), directions(codebook, "the codebook")
        # Made anew in each search, which takes a tenth of a small one (64 vectors, 8192 entries: 0.2 of 2 ms)
        # and less of others: one that is kept must be compared with the codebook to not go stale unseen.
        return CentredCodebook(codebook).search(z)


@_nearest.register_fake
def _(z: Tensor, codebook: Tensor, distance: str) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def directions(x: Tensor, name: str) -> Tensor:
    """Rows of x (M, D) scaled to length 1; computed in float64, so that they do not depend on the batch."""
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    if not bool(torch.isfinite(lengths).all()):
        raise not_finite(name)
    scaled: Tensor = x / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    return scaled.to(x.dtype)


def middle(codebook: Tensor) -> Tensor:
    """A point (D,) to centre on, as ‖z‖² − 2 z·e + ‖e‖² would cancel far from the origin. Of a median, unlike
    of a mean, a single entry far away does not take it along."""
    sample = codebook[:: max(1, len(codebook) // SAMPLE)]
    return sample.sort(0).values[len(sample) // 2]


class CentredCodebook:
    """A codebook (N, D), float32 or float64, centred and made ready for products with vectors."""

    def __init__(self, codebook: Tensor, final: bool = False) -> None:
        dim = codebook.shape[1]
        self.codebook, self.final = codebook, final
        self.centre = middle(codebook)
        info = torch.finfo(codebook.dtype)
        # Rounding, u = eps / 2 each: z − c and e − c (2 u), their product and ½‖e‖² in any order of summation
        # ((D + 1) u), ½‖e‖² itself ((D + 6) u / 2), sums of bounds (2 u). Together less than (D + 10) u times
        # ‖e‖ (‖z‖ + ‖e‖), and 4 (D + 10)² u² for what is of second order. Products of tiny numbers round to
        # multiples of the least one, or to zero.
        rounding = (dim + 10) * info.eps / 2
        self.unit = rounding * (1 + 4 * rounding)
        self.least_error = 4 * (dim + 10) * info.tiny
        # The same of distances written out in float64, which must not choose what the product ruled out.
        self.unit64 = (dim + 10) * torch.finfo(torch.float64).eps / 2
        # ½‖e‖² − z · e is ½‖z − e‖² less ½‖z‖², which is the same for every entry.
        self.entries = self.centre - codebook  # −e
        lengths = torch.linalg.vector_norm(self.entries, dim=1)
        self.offset = lengths.square().div_(2)
        self.lengths = self.at_most(lengths)
        self.longest = self.lengths.amax()

    def search(self, z: Tensor) -> Tensor:
        """Codes (M,) of rows z (M, D); `ValueError` if they or the codebook are not finite."""
        if len(z) == 0:
            return torch.zeros(0, dtype=torch.int64, device=z.device)
        centred = z - self.centre
        lengths = self.at_most(torch.linalg.vector_norm(centred, dim=1))
        bounds = [lengths.amax(), self.longest]
        # Loops for CPUs must not meet NaN. On a GPU nothing breaks by it, and each look would wait for it, so
        # there is one for all.
        if z.device.type == "cpu" and not self._serves(z.dtype, *torch.stack(bounds).tolist()):
            return CentredCodebook(self.codebook.double()).search(z.double())
        least, codes, second = propose(centred, self.entries, self.offset)
        # The nearest entry is at most `least` away, but for rounding; so it is no longer than `reach`, and
        # the product puts it at most `within` away.
        nearest_at_most = least + self.error(lengths, self.lengths[codes])
        reach = self.at_most(lengths + (lengths.square() + 2 * nearest_at_most).clamp(min=0).sqrt())
        within = nearest_at_most + self.error(lengths, torch.minimum(reach, self.longest))
        unsure = second <= within
        of_z, of_entries, count = torch.stack([*(b.double() for b in bounds), unsure.sum()]).tolist()
        if not self._serves(z.dtype, of_z, of_entries):
            return CentredCodebook(self.codebook.double()).search(z.double())
        # Unlike nonzero this need not look for how many there are.
        rows = torch.nonzero_static(unsure, size=int(count))[:, 0]
        crowded = []
        for part in torch.split(rows, max(1, TILE // len(self.entries))) if count else ():
            products = torch.addmm(self.offset, centred[part], self.entries.T)
            row, code = (products <= within[part, None]).nonzero(as_tuple=True)
            if len(row) > CROWDED * len(part) and not self.final:
                crowded.append(part)
            else:
                codes[part] = self.decide(z[part], row, code)
        if crowded:
            rows = torch.cat(crowded)
            distinct = first_of_equal(self.codebook)
            table = CentredCodebook(self.codebook[distinct].double(), final=True)
            codes[rows] = distinct[table.search(z[rows].double())]
        return codes

    def _serves(self, dtype: torch.dtype, of_z: float, of_entries: float) -> bool:
        """Whether the range of `dtype` does for vectors up to `of_z` and entries up to `of_entries` long;
        float64 can do all, and where it cannot this raises `NotFinite`."""
        if dtype != torch.float64:
            return of_z <= FAR and NEAR <= of_entries <= FAR
        if not of_entries <= FAR_IN_FLOAT64:
            raise not_finite("the codebook")
        if not of_z <= FAR_IN_FLOAT64:
            raise not_finite("z")
        return True

    def at_most(self, lengths: Tensor) -> Tensor:
        """What vectors with these rounded lengths may at most be long."""
        return lengths * (1 + self.unit) + math.sqrt(self.least_error)

    def error(self, z_lengths: Tensor, lengths: Tensor) -> Tensor:
        """How far the product may be off for vectors and entries of these lengths."""
        both = z_lengths + lengths
        return (self.unit * lengths + self.unit64 * both) * both + self.least_error

    def decide(self, z: Tensor, row: Tensor, code: Tensor) -> Tensor:
        """Codes (R,) of rows z (R, D) by distances in float64 of the pairs (`row`, `code`), each (P,)."""
        exact = torch.empty(len(row), dtype=torch.float64, device=z.device)
        for part in torch.split(torch.arange(len(row), device=z.device), max(1, PAIRS // z.shape[1])):
            exact[part] = squared_distances(z[row[part]], self.codebook[code[part]])
        best: Tensor = exact.new_full((len(z),), torch.inf).scatter_reduce_(0, row, exact, "amin")
        beyond = len(self.codebook)
        decided: Tensor = code.new_full((len(z),), beyond)
        decided.scatter_reduce_(0, row, torch.where(exact == best[row], code, beyond), "amin")
        return decided


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² (P,) in float64 of rows a and b (P, D), added in an order that depends on D alone."""
    squares = (a.double() - b.double()).square_()
    width = squares.shape[1]
    while width > 1:
        half = (width + 1) // 2
        squares[:, : width - half] += squares[:, half:width]
        width = half
    return squares[:, 0]


def first_of_equal(codebook: Tensor) -> Tensor:
    """Indices, ascending, of the entries that no earlier one equals."""
    unique, inverse = torch.unique(codebook, dim=0, return_inverse=True)
    first: Tensor = inverse.new_full((len(unique),), len(codebook))
    index = torch.arange(len(codebook), device=codebook.device)
    first.scatter_reduce_(0, inverse, index, "amin")
    ascending: Tensor = first.sort().values
    return ascending


def not_finite(name: str) -> NotFinite:
    return NotFinite(
        f"{name} holds values that are not finite, or too large to be squared; look for them in x, or "
        "whether the training diverged"
    )
