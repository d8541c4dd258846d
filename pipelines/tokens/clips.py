"""Tokens of sound: items of any number of frames, one after the other, and as a Parquet column.

Left out: the files and their checks against tokens.json (`shards.py`), and windows for a prior
(windows.py).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class CodeClips:
    """n clips: `codes` (frames of all clips, K) unsigned, perhaps mapped from a file, `spans` (n, views, 2)
    int64, the frames from which and to which each view of a clip goes, the plain one first, and `labels` (n,)
    int64 with -1 for none."""

    codes: NDArray[np.unsignedinteger]
    spans: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """Views of every clip."""
        return int(self.spans.shape[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each clip's plain view, (n,)."""
        return self.spans[:, 0, 1] - self.spans[:, 0, 0]

    def clip(self, i: int, view: int = 0) -> NDArray[np.unsignedinteger]:
        """Clip i, (t, K), without a copy."""
        start, stop = self.spans[i, view]
        return self.codes[start:stop]

    def content(self, i: int) -> bytes:
        """The plain view of clip i as bytes."""
        return self.clip(i).tobytes()

    def pick(self, mask: NDArray[np.bool_]) -> "CodeClips":
        """The clips for which `mask` (n,) holds."""
        return dataclasses.replace(self, spans=self.spans[mask], labels=self.labels[mask])

    @staticmethod
    def of(codes: Sequence[Tensor], labels: NDArray[np.int64]) -> "CodeClips":
        """Clips of codes (K, t_i) int64 and labels (n,)."""
        if not codes:
            raise ValueError("there are no codes: no clip could be read")
        flat = [rearrange(item, "k t -> t k").numpy().astype(np.uint32) for item in codes]
        return CodeClips.joined(np.concatenate(flat), np.array([[len(c)] for c in flat]), labels)

    @staticmethod
    def joined(
        codes: NDArray[np.unsignedinteger], lengths: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> "CodeClips":
        """Clips that lie end to end in `codes`, each in its views, of `lengths` (n, views) frames."""
        ends = offsets_of(lengths.reshape(-1))
        return CodeClips(codes, np.stack([ends[:-1], ends[1:]], axis=1).reshape(*lengths.shape, 2), labels)


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


def flat_clips(
    column: pa.Array, num_codebooks: int, first: int = 0
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """The inverse of `clips_column`: codes (frames of all items, K), and the frames of each (n,).

    `ValueError` for another type, and for an item that is missing, empty or not of whole frames of
    `num_codebooks` codes; the first is called `first`.
    """
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
            f"item {first + wrong[0]} has {sizes[wrong[0]]} codes, expected a multiple of {num_codebooks} "
            "codebooks"
        )
    return flat.to_numpy().reshape(-1, num_codebooks), sizes // num_codebooks
