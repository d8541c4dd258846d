"""A look at every example before training: in threads, with what is skipped and the split by content; and
what it left, by number.

Left out: what is looked at (pictures.py for pictures, clip_scan.py for clips).
"""

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.config import Source
from pipelines.data.kinds import Kind, Skip
from pipelines.run.progress import progress

logger = logging.getLogger(__name__)

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


class Readable:
    """The examples of a source that could be read, `rows` (n,) of it, by number: `labels` (n,) int64 (-1:
    unlabelled) or None, `id(i)`, and the `digests` (n,) uint64 of their bytes.

    `skipped` names what was left out and why: found before training, or, where examples are decoded while
    training, by this process since.
    """

    def __init__(
        self,
        kind: Kind,
        source: Source,
        rows: NDArray[np.int64],
        digests: NDArray[np.uint64],
        skipped: Sequence[Skip],
    ) -> None:
        self.kind, self.digests = kind, digests
        self.labels = None if source.labels is None else source.labels[rows]
        self._source, self._rows, self._skipped = source, rows, dict(skipped)

    def __len__(self) -> int:
        return len(self._rows)

    def pick(self, mask: NDArray[np.bool_]) -> Self:
        """Those for which `mask` (len,) holds."""
        some = copy.copy(self)
        some._rows, some.digests, some._skipped = self._rows[mask], self.digests[mask], {**self._skipped}
        some.labels = None if self.labels is None else self.labels[mask]
        return some

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped.items())

    def id(self, i: int) -> str:
        """The file's path below its folder, or the split and number of its row."""
        return self._source.id(int(self._rows[i]))

    def raw(self, i: int) -> bytes | str:
        """Example i, encoded, or the path of its file."""
        return self._source.raw(int(self._rows[i]))

    def tried(self, i: int, read: Callable[[int], Tensor]) -> Tensor | None:
        """`read(i)`, or None, with a line in the log, if example i can no longer be read."""
        try:
            return read(i)
        except (ValueError, OSError) as error:
            name = self.id(i)
            if name not in self._skipped:
                self._skipped[name] = reason(name, error)
                text = "skipped a %s that cannot be read: %s: %s"
                logger.warning(text, self.kind.one, name, self._skipped[name])
            return None

    def next_readable(self, i: int, read: Callable[[int], Tensor]) -> tuple[Tensor, int]:
        """`read(i)` and i; of the next readable example if i can no longer be read."""
        for j in (k % len(self) for k in range(i, i + len(self))):
            if (x := self.tried(j, read)) is not None:
                return x, j
        many = self.kind.many
        raise ValueError(f"none of {len(self)} {many} can be read any more; is the disk still there?")

    def labels_of(self, which: NDArray[np.int64]) -> Tensor:
        """Labels of examples `which` (b,): (b,) int64, -1 where there is none."""
        return torch.from_numpy(
            np.full(len(which), -1, dtype=np.int64) if self.labels is None else self.labels[which]
        )
