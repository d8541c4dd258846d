"""Tokens of sound in memory and as a Parquet column: items of any number of frames, one after the other.

Left out: the files and their checks against tokens.json (tokens.py), and windows for a prior (windows.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class CodeClips:
    """n clips: `codes` (frames of all clips, K) unsigned, `offsets` (n + 1,) int64, the frames at which clips
    begin and the last one ends, and `labels` (n,) int64 with -1 for none."""

    codes: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each clip, (n,)."""
        return np.diff(self.offsets)

    def clip(self, i: int) -> NDArray[np.unsignedinteger]:
        """Clip i, (t, K), a view."""
        return self.codes[self.offsets[i] : self.offsets[i + 1]]

    def content(self, i: int) -> bytes:
        """Clip i as bytes."""
        return self.clip(i).tobytes()

    def pick(self, mask: NDArray[np.bool_]) -> "CodeClips":
        """The clips for which `mask` (n,) holds."""
        frames = np.repeat(mask, self.lengths)
        return CodeClips(self.codes[frames], offsets_of(self.lengths[mask]), self.labels[mask])

    @staticmethod
    def of(codes: Sequence[Tensor], labels: NDArray[np.int64]) -> "CodeClips":
        """Clips of codes (K, t_i) int64 and labels (n,)."""
        if not codes:
            raise ValueError("there are no codes: no clip could be read")
        flat = [rearrange(item, "k t -> t k").numpy().astype(np.uint32) for item in codes]
        return CodeClips(np.concatenate(flat), offsets_of(np.array([len(c) for c in flat])), labels)

    @staticmethod
    def join(parts: Sequence["CodeClips"], num_codebooks: int) -> "CodeClips":
        """The clips of all parts, in their order."""
        if not parts:
            return CodeClips(
                np.zeros((0, num_codebooks), np.uint16), np.zeros(1, np.int64), np.zeros(0, np.int64)
            )
        return CodeClips(
            np.concatenate([p.codes for p in parts]),
            offsets_of(np.concatenate([p.lengths for p in parts])),
            np.concatenate([p.labels for p in parts]),
        )


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where items of these lengths (n,) begin when they lie end to end, and the last one's end: (n + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def clips_column(codes: Sequence[Tensor], width: pa.DataType) -> pa.Array:
    """Codes (K, t_i) of each item as lists, frame-major (all codebooks of a frame, then the next frame), so
    that a list may be cut after any frame. Large lists, for shards of more than 2^31 codes."""
    flat = [rearrange(item, "k t -> (t k)").cpu().numpy() for item in codes]
    offsets = offsets_of(np.array([len(item) for item in flat], np.int64))
    values = np.concatenate(flat) if flat else np.zeros(0, np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values).cast(width))


def read_clips(column: pa.Array, labels: NDArray[np.int64], num_codebooks: int) -> CodeClips:
    """The inverse of `clips_column`. `ValueError` for another type, and for an item that is missing, empty or
    not of whole frames of `num_codebooks` codes."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or kind.value_type not in (pa.uint16(), pa.uint32()):
        raise ValueError(f"codes are {kind}, expected lists of uint16 or uint32")
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise ValueError("codes hold nulls")
    sizes = np.diff(column.offsets.to_numpy().astype(np.int64))
    wrong = np.flatnonzero((sizes == 0) | (sizes % num_codebooks != 0))
    if len(wrong):
        raise ValueError(
            f"item {wrong[0]} has {sizes[wrong[0]]} codes, expected a multiple of {num_codebooks} codebooks"
        )
    codes = flat.to_numpy(zero_copy_only=False).reshape(-1, num_codebooks)
    return CodeClips(codes, offsets_of(sizes // num_codebooks), labels)
