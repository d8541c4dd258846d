"""Checks of what callers hand to a tokenizer: data, codes, lengths and sizes, each a `ValueError` with the
fix.

Left out: configs, which check themselves, and files (`tokenizer.files`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizer.distributed import Step


def check_input(x: Tensor, channels: int, axes: Sequence[str], empty: bool = False) -> None:
    """x must be (B, channels, *size) float with as many sizes as `axes`; `empty` allows sizes of 0."""
    if x.ndim != 2 + len(axes) or x.shape[1] != channels or 0 in (x.shape[:2] if empty else x.shape):
        expected = f"(B, {channels}, {', '.join(axes)})"
        raise ValueError(f"expected x {expected} with no empty axis, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected x as float in [-1, 1], got {x.dtype}; preprocess() makes it so")


def check_codes(codes: Tensor, num_codebooks: int, codebook_size: int, axes: Sequence[str]) -> None:
    """codes must be (B, k, *grid) int64 in [0, codebook_size), 1 ≤ k ≤ num_codebooks."""
    if codes.dtype != torch.int64 or codes.ndim != 2 + len(axes):
        shape = ", ".join(a.lower() for a in axes)
        raise ValueError(f"expected codes (B, K, {shape}) int64, got {tuple(codes.shape)} {codes.dtype}")
    if not 1 <= codes.shape[1] <= num_codebooks or 0 in codes.shape:
        raise ValueError(
            f"expected codes of 1 to {num_codebooks} codebooks and no empty axis, got {tuple(codes.shape)}"
        )
    low, high = (int(v) for v in codes.aminmax())
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"codes range from {low} to {high}, but the codebook has entries 0 to {codebook_size - 1}"
        )


def check_lengths(lengths: Tensor, x: Tensor) -> None:
    """lengths must be (B,) int64, from 1 to the T of x (B, C, T)."""
    if lengths.shape != x.shape[:1] or lengths.dtype != torch.int64:
        raise ValueError(f"expected lengths ({len(x)},) int64, got {tuple(lengths.shape)} {lengths.dtype}")
    if int(lengths.min()) < 1 or int(lengths.max()) > x.shape[2]:
        raise ValueError(f"expected lengths from 1 to {x.shape[2]}, got {lengths.tolist()}")


def checked_size(size: int | tuple[int, ...] | None, grid: Sequence[int], stride: int) -> tuple[int, ...]:
    """The size to crop to, one number per axis of the grid; None: all that the grid decodes to."""
    full = tuple(n * stride for n in grid)
    size = full if size is None else ((size,) if isinstance(size, int) else tuple(size))
    lowest = tuple(n - stride + 1 for n in full)
    if len(size) != len(full) or not all(a <= s <= b for a, s, b in zip(lowest, size, full, strict=True)):
        raise ValueError(f"size is {size}; a grid of {tuple(grid)} decodes to between {lowest} and {full}")
    return size


class NotFinite(ValueError):
    """Values in which there is NaN or infinity."""


def require_finite(x: Tensor, name: str, step: Step | None = None) -> None:
    """`NotFinite` that names the tensor, and the optimizer step of training, if x holds NaN or infinity.

    Not checked while torch.compile traces: a look at a value would break its graph, and the search looks
    itself.
    """
    if torch.compiler.is_compiling() or all_finite(x):
        return
    where = "" if step is None else f" at step {step.index + 1}"
    raise NotFinite(f"{name} {tuple(x.shape)} holds NaN or infinity{where}; nothing was learnt from it")


def all_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in x, in one pass over it unless its sum is too large."""
    x = x.detach()
    return bool(torch.isfinite(x.sum(dtype=torch.float32))) or bool(torch.isfinite(x).all())
