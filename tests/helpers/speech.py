"""The embedded speech as tensors, for tests of sound."""

import functools
import io
from pathlib import Path

import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

import pipelines

RATE = 16000
FILE = Path(pipelines.__path__[0], "embedded", "speech-test.parquet")


@functools.cache
def _column() -> list[dict[str, bytes]]:
    return pq.read_table(FILE, columns=["audio"])["audio"].to_pylist()


def speech(index: int, seconds: float | None = None) -> Tensor:
    """Clip `index` of the held-out speech, (1, T) float32 at 16 kHz, its first `seconds`."""
    samples, rate = soundfile.read(io.BytesIO(_column()[index]["bytes"]), dtype="float32")
    assert rate == RATE
    return torch.from_numpy(samples)[None, : None if seconds is None else round(seconds * RATE)]


def noise(x: Tensor, level: float, seed: int = 0) -> Tensor:
    """White noise of RMS `level`, shaped as x."""
    return level * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
