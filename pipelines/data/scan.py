"""A look at every example before training: in threads, with what is skipped and the split by content.

Left out: what is looked at (pictures.py for pictures, clips.py for sound).
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from pipelines.data.kinds import Kind, Skip
from pipelines.run.progress import progress

# Names of skipped examples in a message.
LISTED = 20

_SPAN = 64  # examples a thread takes at a time
_BAR_FROM = 2000  # examples from which a progress bar is worth its line


def look_at_all(look: Callable[[int], None], rows: Sequence[int], title: str) -> None:
    """Call `look` on every row, in threads, with a progress bar if there are many."""

    def look_at_span(start: int) -> int:
        span = rows[start : start + _SPAN]
        for i in span:
            look(i)
        return len(span)

    is_main = not dist.is_initialized() or dist.get_rank() == 0
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress(len(rows), title, enabled=is_main and len(rows) > _BAR_FROM) as bar,
    ):
        for done in pool.map(look_at_span, range(0, len(rows), _SPAN)):
            bar.update(done)


def digest(raw: bytes | str) -> int:
    """64 bits that are equal for equal bytes: the same picture as PNG and as BMP has two."""
    if isinstance(raw, bytes):
        return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")
    with open(raw, "rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "big")


def held_out_mask(digests: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which examples to hold out: those whose digest is below `fraction` of its range, whatever their
    names.

    Equal examples stay on one side. With two or more different ones neither side is left empty: the
    smallest digest is held out, the largest is trained on. `fraction` 0 holds out nothing.
    """
    mask: NDArray[np.bool_] = digests < np.uint64(int(fraction * 2**64))
    distinct = np.unique(digests)
    if fraction == 0 or len(distinct) < 2:
        return np.zeros_like(mask)
    if not mask.any():
        mask = digests == distinct[0]
    return np.asarray(digests != distinct[-1]) if mask.all() else mask


def broken_link(path: str | Path | None) -> str:
    """What a link to nothing names; empty for all else."""
    return os.readlink(path) if path and os.path.islink(path) and not os.path.exists(path) else ""


def reason(name: str, error: Exception) -> str:
    """What an error says beside the name of the example."""
    missing = error if isinstance(error, FileNotFoundError) else error.__cause__
    if isinstance(missing, FileNotFoundError) and (target := broken_link(missing.filename)):
        return f"is a link to {target}, which is not there"
    return str(error).removeprefix(f"{name}: ")


def listed(skipped: Sequence[Skip], count: int, kind: Kind) -> str:
    """The message on what was skipped of `count`: how many, and the first `LISTED` of them."""
    lines = [f"skipped {len(skipped)} of {count} {kind.many}:"]
    lines += [f"{name}: {why}" for name, why in skipped[:LISTED]]
    if len(skipped) > LISTED:
        lines.append(f"…and {len(skipped) - LISTED} more")
    return " ".join(lines) if len(skipped) == 1 else "\n  ".join(lines)
