"""Checks of what callers hand to a prior: codes, and labels in all their forms.

Left out: options of sampling, which sampling/choice.py checks.
"""

import operator
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNCONDITIONAL = -1
Array = Tensor | NDArray[Any]
# A class for all examples, by name or number, or one for each; None and -1 stand for the unconditional class.
Label = int | str | Sequence[int | str] | NDArray[Any] | Tensor | None


def as_codes(codes: Any, device: torch.device, name: str = "codes") -> Tensor:
    """Integers of any width, of torch or numpy, as int64 on `device`; other tensors as they are, for
    `check_codes`. `TypeError` for what is neither."""
    if isinstance(codes, np.ndarray):
        # Torch knows of the wider unsigned integers of numpy little more than their types.
        codes = torch.from_numpy(codes.astype(np.int64) if codes.dtype.kind in "iu" else np.array(codes))
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name}: expected a tensor or numpy array of integers, got {type(codes).__name__}")
    return (codes.long() if _are_integers(codes) else codes).to(device)


def _are_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def check_codes(
    codes: Tensor, codebook_size: int, shape: tuple[int, ...], name: str = "codes", look: bool = True
) -> None:
    """Raise `ValueError` unless `codes` are (B, *shape) int64 in [0, codebook_size); without a `look` at the
    values, for which a GPU stands still, they may be out of range."""
    if tuple(codes.shape[1:]) != shape or codes.dtype != torch.int64:
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{name}: expected int64 of shape (B, {wanted}), got {codes.dtype} of shape {tuple(codes.shape)}"
        )
    if look and bool(((codes < 0) | (codes >= codebook_size)).any()):
        raise ValueError(
            f"{name}: expected 0 to {codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}; "
            "are they codes of another tokenizer?"
        )


def check_prefix(prefix: Tensor, codebook_size: int, shape: tuple[int, ...], batch_size: int) -> int:
    """The rows or frames n of a prefix (batch_size or 1, K, n, *grid[1:]) of codes of `shape` (K, *grid).

    Raises `ValueError` for codes of wrong shape, dtype or range.
    """
    rows = prefix.shape[2] if prefix.ndim == len(shape) + 1 else 0
    if rows > shape[1]:
        raise ValueError(f"prefix: expected at most {shape[1]} rows or frames, got {rows}")
    check_codes(prefix, codebook_size, (shape[0], rows, *shape[2:]), name="prefix")
    if prefix.shape[0] not in (1, batch_size):
        raise ValueError(f"prefix: expected 1 or {batch_size} examples, got {prefix.shape[0]}")
    return rows


def check_size(size: int | None, rows: int, most: int) -> int:
    """The rows or frames to draw: all `most` of them if left out, else at least those of the prefix and 1."""
    if size is None:
        return most
    if not max(rows, 1) <= size <= most:
        least = f"{max(rows, 1)} (the prefix's)" if rows > 1 else "1"
        raise ValueError(f"size: expected {least} to {most} rows or frames, got {size}")
    return size


def free_codes(mask: Tensor, codes: Tensor) -> Tensor:
    """A mask (*grid), (B, *grid) or (B, K, *grid) bool → that of all codes (B, K, *grid).

    Raises `ValueError` for any other shape or dtype.
    """
    batch, _, *grid = codes.shape
    shapes = [tuple(grid), (batch, *grid), tuple(codes.shape)]
    if mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
        expected = ", ".join(map(str, shapes))
        raise ValueError(
            f"mask: expected bool of one of the shapes {expected}, got {mask.dtype} of {tuple(mask.shape)}"
        )
    axes = codes.ndim - mask.ndim  # those of the codebooks, and perhaps of the batch, are missing
    full = mask[:, None] if axes == 1 else mask[(None,) * axes]
    return full.to(codes.device).expand(codes.shape)


def label_index(label: int | str, class_names: Sequence[str]) -> int:
    """The number of a class given by name or number; -1 stays -1. `ValueError` if there is no such class,
    `TypeError` for what is neither."""
    if isinstance(label, str):
        if label in class_names:
            return class_names.index(label)
        known = ", ".join(class_names) or "none, this prior has no classes"
        raise ValueError(f"label: unknown class {label!r}; known: {known}")
    try:
        index = operator.index(label)
    except TypeError as error:
        what = f"{label!r} ({type(label).__name__})"
        raise TypeError(f"label: expected a class's name or its number, got {what}") from error
    if not UNCONDITIONAL <= index < len(class_names):
        raise ValueError(f"label: expected {_range(class_names)}, got {index}")
    return index


def label_rows(
    label: Label, batch_size: int, class_names: Sequence[str], device: torch.device, look: bool = True
) -> Tensor:
    """A label of any form → (batch_size,) int64 on `device`, -1 for the unconditional class; `look` as in
    `check_codes`.

    Raises `ValueError` for an unknown class, a wrong number of labels or a tensor that is not of integers.
    """
    if isinstance(label, np.ndarray):
        label = torch.from_numpy(label.astype(np.int64)) if label.dtype.kind in "iu" else label.tolist()
    if isinstance(label, Tensor):
        if not _are_integers(label) or label.ndim > 1:
            raise ValueError(
                f"label: expected int64 of shape ({batch_size},), got {label.dtype} of {tuple(label.shape)}"
            )
        rows = label.to(device, torch.int64)
        if look and bool(((rows < UNCONDITIONAL) | (rows >= len(class_names))).any()):
            found = f"{int(rows.min())} to {int(rows.max())}"
            raise ValueError(f"label: expected {_range(class_names)}, got {found}")
    elif label is None:
        rows = torch.full((), UNCONDITIONAL, device=device)
    elif isinstance(label, str) or not isinstance(label, Sequence):
        rows = torch.tensor(label_index(label, class_names), device=device)
    else:
        rows = torch.tensor([label_index(item, class_names) for item in label], device=device)
    if rows.ndim == 1 and len(rows) != batch_size:
        raise ValueError(f"label: expected one for all or {batch_size} of them, got {len(rows)}")
    return rows.expand(batch_size)


def _range(class_names: Sequence[str]) -> str:
    if not class_names:
        return "-1 (unconditional; this prior has no classes)"
    return f"-1 (unconditional) to {len(class_names) - 1}"


def require_compiler(device: str, option: str) -> None:
    """Raise `ValueError` that names the `option` unless the compiler is there that torch.compile takes: of
    C++ on a CPU, and of C on a GPU, with which triton builds its launchers."""
    of_device = ("CXX", "C++", ("g++",)) if device == "cpu" else ("CC", "C", ("gcc", "clang"))
    variable, language, known = of_device
    named = os.environ.get(variable)
    if not any(map(shutil.which, (named,) if named else known)):
        where = "a CPU" if device == "cpu" else "a GPU"
        raise ValueError(
            f"compiling on {where} needs a {language} compiler; install {known[0]}, or leave {option} out"
        )
