"""What callers hand to a tokenizer: data, codes, lengths, sizes and seeds, taken in any form that can mean
one thing only; the rest is a `ValueError`, or a `TypeError` for what is no array, with the fix.

Left out: configs, which check themselves, and files (`tokenizer.hub.files`).
"""

import logging
import operator
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.distributed import Step

_said: set[str] = set()


def first_time(what: str) -> bool:
    """Whether `what` is met for the first time in this process."""
    if what in _said:
        return False
    _said.add(what)
    return True


logger = logging.getLogger(__name__)

Array: TypeAlias = Tensor | NDArray[Any]
# To preprocess to: the training's (None), one for each axis, one for all axes, or the data's own.
Size: TypeAlias = int | Sequence[int] | Literal["keep"] | None

# Beyond this, data are not in [-1, 1]: what sharpening or a lossy codec adds stays well below.
FAR = 1.5


def as_tensor(values: Any, name: str, fix: str) -> Tensor:
    """A tensor as it is, a numpy array as a tensor; `TypeError` for anything else."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray):
        # A copy, in this machine's order of bytes; numbers of which torch knows only the type are int64.
        odd = values.dtype.kind == "u" and values.dtype.itemsize > 1
        return torch.from_numpy(values.astype(np.int64 if odd else values.dtype.newbyteorder("=")))
    raise TypeError(f"expected {name} as a tensor or numpy array, got {type(values).__name__}; {fix}")


def as_integers(values: Any, name: str, fix: str) -> Tensor:
    """Integers of any width as int64; others as they are, for the check that follows."""
    tensor = as_tensor(values, name, fix)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return tensor
    integers: Tensor = tensor.long()
    return integers


def warn_of_range(x: Tensor) -> None:
    """One line in the log, the first time that x lies far outside of [-1, 1] in this process. Not while
    torch.compile or a trace looks on: a look at a value would break its graph."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if torch.compiler.is_compiling() or tracing or x.numel() == 0:
        return
    low, high = (float(v) for v in torch.stack(torch.aminmax(x.detach())).tolist())
    if (low < -FAR or high > FAR) and first_time("range of x"):
        logger.warning(
            "x ranges from %.3g to %.3g, but is to lie in [-1, 1], or codes mean little; preprocess() makes "
            "it so: pixels p of 0..255 are p / 127.5 - 1, and no mean of a data set is subtracted",
            low,
            high,
        )


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
            f"codes range from {low} to {high}, but the codebook has entries 0 to {codebook_size - 1}; are "
            "they codes of another tokenizer?"
        )


def checked_lengths(lengths: Any, x: Tensor) -> Tensor:
    """lengths as (B,) int64, which must be from 1 to the T of x (B, C, T); a list, too."""
    if isinstance(lengths, Sequence):
        lengths = np.asarray(lengths)
    checked = as_integers(lengths, "lengths", "give one number of samples for each example")
    if checked.shape != x.shape[:1] or checked.dtype != torch.int64:
        raise ValueError(f"expected lengths ({len(x)},) int64, got {tuple(checked.shape)} {checked.dtype}")
    if int(checked.min()) < 1 or int(checked.max()) > x.shape[2]:
        raise ValueError(f"expected lengths from 1 to {x.shape[2]}, got {checked.tolist()}")
    return checked


def checked_size(size: int | tuple[int, ...] | None, grid: Sequence[int], stride: int) -> tuple[int, ...]:
    """The size to crop to, one number per axis of the grid; None: all that the grid decodes to."""
    full = tuple(n * stride for n in grid)
    size = full if size is None else ((size,) if isinstance(size, int) else tuple(size))
    lowest = tuple(n - stride + 1 for n in full)
    if len(size) != len(full) or not all(a <= s <= b for a, s, b in zip(lowest, size, full, strict=True)):
        raise ValueError(f"size is {size}; a grid of {tuple(grid)} decodes to between {lowest} and {full}")
    return size


def checked_preprocess_size(
    size: Size, training: tuple[int, ...] | None, axes: Sequence[str], most: int
) -> tuple[int, ...] | None:
    """The size that data are brought to, one number from 1 to `most` for each of the `axes`; None: their own.
    `ValueError` for what is no such size."""
    if size is None:
        return training
    if isinstance(size, str) and size == "keep":
        return None
    numbers: Sequence[Any] = size if isinstance(size, Sequence) else [size] * len(axes)
    try:
        checked = tuple(operator.index(n) for n in numbers if not isinstance(n, bool))
    except TypeError:
        checked = ()
    if len(checked) != len(axes) or len(numbers) != len(axes) or not all(1 <= n <= most for n in checked):
        shape = f"({', '.join(axes)}) or one number" if len(axes) > 1 else f"a number {axes[0]}"
        raise ValueError(
            f"size is {size!r}, expected {shape}, whole numbers from 1 to {most}, or 'keep' for the size "
            "that the data have"
        )
    return checked


def checked_list(sources: Any) -> list[Any]:
    """A list with something in it; `TypeError` for what is none, `ValueError` for an empty one."""
    if not isinstance(sources, list):
        raise TypeError(f"expected a list of sources, got {type(sources).__name__}; for one, give [source]")
    if not sources:
        raise ValueError("preprocess got an empty list; give it at least one source")
    return sources


def generator_of(generator: torch.Generator | int | None) -> torch.Generator | None:
    """A generator, one on the CPU for a seed, or None; `TypeError` for anything else."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    try:
        return torch.Generator().manual_seed(operator.index(generator))
    except TypeError as error:
        what = type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator or a seed (int), got {what}") from error


class NotFinite(ValueError):
    """Values in which there is NaN or infinity."""


def require_finite(x: Tensor, name: str, step: Step | None = None) -> None:
    """`NotFinite` that names the tensor, and the optimizer step of training, if x holds NaN or infinity.

    Not looked at where a look would cost more than it tells: while torch.compile traces, whose graph it would
    break, and in a step of training on a GPU, which would stand still meanwhile; there losses and gradients
    come to hold them, which who trains looks at. The search looks itself.
    """
    waits = step is not None and x.device.type != "cpu"
    if waits or torch.compiler.is_compiling() or all_finite(x):
        return
    where = "" if step is None else f" at step {step.index + 1}"
    raise NotFinite(f"{name} {tuple(x.shape)} holds NaN or infinity{where}; nothing was learnt from it")


def all_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in x, in one pass over it unless its sum is too large."""
    x = x.detach()
    return bool(torch.isfinite(x.sum(dtype=torch.float32))) or bool(torch.isfinite(x).all())
