"""Sound to arrays: any file or waveform at a given rate and number of channels, whole, in spans or in blocks.

Left out: decoding (`sound_files.py`, `sound_arrays.py`), models, writing, and walking through folders.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.installation import import_torchaudio
from tokenizer.modalities.files.sound_arrays import LOUDEST, REPLACE, ArrayDecoder, AudioDecoder, log_once
from tokenizer.modalities.files.spans import Signal

Waveform: TypeAlias = NDArray[Any] | Tensor
SoundSource: TypeAlias = (
    str | Path | bytes | tuple[Waveform, float] | tuple[float, Waveform] | Mapping[str, Any]
)

EXPECTED = (
    "expected a path, bytes, or (waveform array or tensor, sample rate), which may be "
    '{"array": …, "sampling_rate": …} too'
)

# Samples that one call of the resampler makes, or a little more or less.
PIECE = 8192
# Samples that a look at all of them decodes at a time: what each call costs is little beside that.
CHECKED = 8 * PIECE
# Weights of a resampling kernel: 44.1 to 16 kHz has 80,000; rates without a common factor have a billion.
MAX_KERNEL = 1 << 22
# Samples that one becomes: a header that says 1 Hz would make gigabytes of a small file.
MAX_UPSAMPLING = 64


def open_sound(
    source: SoundSource, sample_rate: int, channels: int, name: str | None = None
) -> NDArray[np.float32]:
    """All of a sound as (channels, T) float32 in [-1, 1]; `Sound` says what is taken and what is refused."""
    with Sound(source, sample_rate, channels, name) as sound:
        return sound.read()


class Sound(Signal):
    """An opened sound: `length` samples at `sample_rate` in `channels`, of which any span can be read.

    source: a file's path, its bytes, or (waveform, its rate), in either order or as {"array": waveform,
    "sampling_rate": rate}, with a waveform (T,) or (C, T) as float in [-1, 1], int16 or int32; (T, C), as
    soundfile gives it, is to be transposed. Any number of channels is mixed to one by their mean, and one is
    copied to two. Another rate is resampled (torchaudio's sinc) to ceil(rate · T / rate of the source)
    samples. Values outside of [-1, 1], up to 4, are clamped. What is changed so is logged once; report False
    leaves the clamping to the caller, by `peak`. `name` stands for the sound in messages.

    Raises `ValueError`, naming the sound and the fix, if it is missing, no sound, empty, truncated, damaged,
    changed while it is read, holds NaN, infinity or values above 4, or its channels or rate cannot be
    brought to those asked for. What a header does not show is raised by `read`. An opened sound belongs to
    one process and thread.
    """

    def __init__(
        self,
        source: SoundSource,
        sample_rate: int,
        channels: int,
        name: str | None = None,
        report: bool = True,
    ) -> None:
        source = _ordered(source)
        self.name, self._report = name or _describe(source), report
        self.sample_rate, self.channels = sample_rate, channels
        self._decoder = _decoder_of(source, self.name)
        try:
            self._grid = self._plan()
        except ValueError:
            self.close()
            raise
        frames = self._decoder.frames
        self.length = -(-frames * self._grid.new // self._grid.old) if self._grid else frames
        self._piece: tuple[int, NDArray[np.float32]] | None = None

    def close(self) -> None:
        """Close the file. Nothing can be read any more; how loud it was is logged, if it was clamped."""
        self._decoder.close()
        if self._report and 1 < self.peak <= LOUDEST:
            text = "%s: holds values up to %g, which are clamped to [-1, 1]"
            log_once(("clamped", self.name), text, self.name, self.peak)

    @property
    def peak(self) -> float:
        """The largest magnitude read so far, before clamping; 0 for formats whose values cannot exceed 1."""
        return self._decoder.peak if self._decoder.measured else 0.0

    def check(self, whole: bool = False) -> None:
        """Raise what header and last samples show; `whole`, and where any value may be written (floats), what
        all samples show, in bounded memory and without resampling."""
        if not (whole or self._decoder.measured):
            self.read(self.length - 1)
            return
        for start in range(0, self._decoder.frames, CHECKED):
            self._decoder.read(start, min(CHECKED, self._decoder.frames - start))

    def read(self, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Samples `start : start + count` (None: to the end) as (channels, count) float32 in [-1, 1].

        They are the same samples, to the bit, however a sound is cut into spans read in order; a span read
        out of order differs by rounding for MP3 and by up to 2e-3 for Opus, whose decoder has to settle.
        """
        stop = self.checked_stop(start, count)
        if self._grid is None:
            return self._mixed(start, stop)
        step = self._grid.step
        pieces = [self._resampled(g) for g in range(start // step, -(-stop // step))]
        samples = np.concatenate(pieces, axis=1) if pieces else np.empty((self.channels, 0), np.float32)
        return samples[:, start - start // step * step :][:, : stop - start]

    def _plan(self) -> "_Grid | None":
        """How to resample (None: not at all). Says once for each kind of source what becomes of it."""
        rate, given = self._decoder.rate, self._decoder.channels
        if self.channels not in (1, given) and given != 1:
            raise ValueError(
                f"{self.name}: has {given} channels, which cannot become {self.channels}; mix it down first, "
                "or use a model of 1 channel"
            )
        if (rate, given) != (self.sample_rate, self.channels):
            log_once(
                ("changed", rate, given, self.sample_rate, self.channels),
                "sound of %d Hz and %d channels is brought to %d Hz and %d (the first: %s)",
                *(rate, given, self.sample_rate, self.channels, self.name),
            )
        common = math.gcd(rate, self.sample_rate)
        old, new = rate // common, self.sample_rate // common
        if old * new > MAX_KERNEL:
            raise ValueError(
                f"{self.name}: has {rate} samples per second, which are hard to bring to {self.sample_rate} "
                "for lack of a common factor; convert it to a usual rate such as 44100"
            )
        if new > MAX_UPSAMPLING * old:
            raise ValueError(
                f"{self.name}: has {rate} samples per second, expected "
                f"{self.sample_rate // MAX_UPSAMPLING} or more, as each would become {new / old:.0f}; its "
                f"header may be damaged: {REPLACE}"
            )
        return _grid(old, new) if old != new else None

    def _mixed(self, start: int, stop: int) -> NDArray[np.float32]:
        """Samples of the source's own rate, (channels, stop - start)."""
        samples = self._decoder.read(start, stop - start)
        if self.channels == self._decoder.channels:  # copied: the decoder keeps its own
            return np.array(rearrange(samples, "t c -> c t"), order="C")
        if self.channels == 1:
            return np.ascontiguousarray(reduce(samples, "t c -> 1 t", "mean"))
        return np.array(repeat(samples, "t 1 -> c t", c=self.channels), order="C")

    def _resampled(self, g: int) -> NDArray[np.float32]:
        """Piece g, (channels, step) but for the last. The one made last is kept: blocks may be smaller."""
        if self._piece is not None and self._piece[0] == g:
            return self._piece[1]
        assert self._grid is not None
        first, count = self._grid.span(g)
        low, high = max(0, first), min(first + count, self._decoder.frames)
        source = np.zeros((self.channels, count), np.float32)
        source[:, low - first : high - first] = self._mixed(low, high)
        piece = self._grid.resample(source)[:, : self.length - g * self._grid.step]
        self._piece = (g, piece)
        return piece


@dataclass(frozen=True)
class _Grid:
    """Resampling by `new` / `old` in pieces of `step` samples.

    A piece is made from source samples of one count, `halo` more than its own on each side (zeros beyond the
    ends), so that no sample depends on which others are read.
    """

    old: int
    new: int
    step: int
    halo: int
    kernel: Any  # torchaudio's

    def span(self, g: int) -> tuple[int, int]:
        """First sample and count of what piece g is made from."""
        own = self.step // self.new * self.old
        return g * own - self.halo, own + 2 * self.halo

    @torch.no_grad()
    def resample(self, source: NDArray[np.float32]) -> NDArray[np.float32]:
        """source (C, count of `span`) → (C, step) in [-1, 1]; the sinc overshoots where sound is loud."""
        skip = self.halo // self.old * self.new
        made: Tensor = self.kernel(torch.from_numpy(source))[:, skip : skip + self.step]
        clamped: NDArray[np.float32] = made.clamp(-1, 1).numpy()
        return clamped


@lru_cache(maxsize=16)
def _grid(old: int, new: int) -> _Grid:
    kernel = import_torchaudio().transforms.Resample(old, new)
    return _Grid(old, new, step=new * max(1, PIECE // new), halo=-(-kernel.width // old) * old, kernel=kernel)


def _decoder_of(source: Any, name: str) -> AudioDecoder:
    if isinstance(source, tuple):
        waveform, rate = source
        return ArrayDecoder(waveform, rate, name)
    # Here, so that soundfile and its library are loaded for files of sound only.
    from tokenizer.modalities.files.sound_files import FileDecoder

    return FileDecoder(source, name)


def _ordered(source: Any) -> Any:
    """A waveform in any of its forms as (waveform, rate); other sources as they are."""
    if isinstance(source, Mapping):
        if not {"array", "sampling_rate"} <= set(source):
            raise ValueError(
                f"{EXPECTED}; a dict needs 'array' and 'sampling_rate', got {', '.join(map(repr, source))}"
            )
        source = (source["array"], source["sampling_rate"])
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], int | float | np.number):
        source = source[::-1]  # as scipy.io.wavfile.read gives it
    return source


def _describe(source: Any) -> str:
    if isinstance(source, bytes):
        return f"sound of {len(source)} bytes"
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray | Tensor):
        return f"waveform of shape {tuple(source[0].shape)}"
    if isinstance(source, str | Path):
        return str(source)
    kind = type(source).__name__
    if isinstance(source, tuple):
        kind = f"a tuple of {', '.join(type(part).__name__ for part in source) or 'nothing'}"
    raise TypeError(f"{EXPECTED}, got {kind}")
