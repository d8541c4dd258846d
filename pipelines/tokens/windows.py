"""Windows of one length, which a prior learns, over tokens of sound whose items have any length.

Left out: reading the tokens (items.py), and the order in which windows are learnt
(`pipelines.data.batches.order`).
"""

import dataclasses

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from pipelines.tokens.clips import CodeClips, offsets_of
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenRows, TokenSplit, view_phases
from tokenizer.distributed import keyed_generator

# A prior of single frames would learn nothing of time.
LEAST_FRAMES = 2


class Windows:
    """Windows of `frames` frames over clips, max(1, round(n / frames)) over one of n frames.

    The first window of a clip starts where the clip starts, the others at a random frame of it. What a
    window lacks at the end of its clip it takes from other random clips of the same label, joined end to
    start (the same clip again, if it is the label's only one). So a prior learns an endless stream of
    clips, and its windows mostly begin where clips begin. Clips that have views show another one in every
    epoch (see `view_phases`). All of that is a function of `(seed, epoch, window)` alone.
    """

    def __init__(self, clips: CodeClips, frames: int, seed: int = 0, limit: int | None = None) -> None:
        self.clips, self.frames, self.seed = clips, frames, seed
        # Half a window more counts as one more; integers, so that it is the same everywhere.
        self._first = offsets_of(np.maximum(1, (2 * clips.lengths + frames) // (2 * frames)))
        self._phases = view_phases(len(clips), clips.views, seed)
        total = int(self._first[-1])
        self._count = total if limit is None else min(limit, total)
        # CodeClips sorted by label, the place of each in that order, and where its label begins and ends
        # there.
        self._sorted = np.argsort(clips.labels, kind="stable")
        self._place = np.argsort(self._sorted, kind="stable")
        labels = clips.labels[self._sorted]
        self._low = np.searchsorted(labels, clips.labels, side="left")
        self._high = np.searchsorted(labels, clips.labels, side="right")

    unit = "windows"

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> "Windows":
        """The first `count` windows; what they lack still comes from all clips."""
        return Windows(self.clips, self.frames, self.seed, min(count, len(self)))

    def rows(
        self, index: NDArray[np.int64] | slice, epochs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, Tensor]:
        """codes (m, K, frames) int64 and labels (m,) int64 of some windows, as they are in `epochs` (m,).
        Left out: as in epoch 0, of plain clips, so that what is measured is always the same."""
        numbers = np.arange(len(self))[index] if isinstance(index, slice) else index
        known: list[int | None] = [None] * len(numbers) if epochs is None else [*epochs.tolist()]
        codes = np.zeros((len(numbers), self.clips.codes.shape[1], self.frames), np.int64)
        labels = np.zeros(len(numbers), np.int64)
        for row, (number, epoch) in enumerate(zip(numbers.tolist(), known, strict=True)):
            clip = int(np.searchsorted(self._first, number, side="right")) - 1
            codes[row] = rearrange(self._window(clip, number, epoch), "t k -> k t")
            labels[row] = self.clips.labels[clip]
        return torch.from_numpy(codes), torch.from_numpy(labels)

    def _window(self, clip: int, number: int, epoch: int | None) -> NDArray[np.unsignedinteger]:
        """Window `number`, (frames, K), which begins in `clip`."""
        generator = keyed_generator(self.seed, epoch or 0, number, "window")
        whole = self._clip(clip, epoch)
        start = 0 if number == self._first[clip] else _below(len(whole), generator)
        parts = [whole[start : start + self.frames]]
        missing = self.frames - len(parts[0])
        while missing:
            clip = self._other(clip, generator)
            parts.append(self._clip(clip, epoch)[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def _clip(self, clip: int, epoch: int | None) -> NDArray[np.unsignedinteger]:
        """A clip in the view of the epoch, (t, K); None: the plain one."""
        view = 0 if epoch is None else (int(self._phases[clip]) + epoch) % self.clips.views
        return self.clips.clip(clip, view)

    def _other(self, clip: int, generator: torch.Generator) -> int:
        """A random clip of the same label; `clip` itself only if there is no other."""
        low, high, own = int(self._low[clip]), int(self._high[clip]), int(self._place[clip])
        if high - low == 1:
            return clip
        place = low + _below(high - low - 1, generator)
        return int(self._sorted[place + (place >= own)])


def rows_of(split: TokenSplit | CodeClips, frames: int, seed: int = 0) -> TokenRows:
    """What a prior learns of a split: grids as they are, items of any length in windows of so many frames."""
    if isinstance(split, CodeClips):
        return Windows(split, frames, seed)
    return dataclasses.replace(split, seed=seed)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def window_info(info: TokenInfo, seconds: float) -> TokenInfo:
    """`info` of tokens of sound with the grid of a window of `seconds`, to the nearest frame.

    Raises `ValueError` if that is less than two frames.
    """
    frames = round(seconds * info.frame_rate)
    if frames < LEAST_FRAMES:
        raise ValueError(
            f"--seconds {seconds:g} is {frames} frames at {info.frame_rate:g} per second, expected "
            f"{LEAST_FRAMES} or more; give --seconds {LEAST_FRAMES / info.frame_rate:.3g} or more"
        )
    return dataclasses.replace(info, grid=(frames,))
