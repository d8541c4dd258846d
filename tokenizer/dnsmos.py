"""DNSMOS P.835 (Reddy et al. 2021, arXiv 2110.01763): the mean opinion score that listeners would give
speech, by a network that needs no original and comes with the package speechmos.

The network scores windows of 9.01 s, a second apart, each by itself: some 0.4 s of a CPU core for each, and
up to 7 for a single word, which is repeated until a window is full. All but 2 % of that goes into four
convolutions at full resolution, of which windows share all but four frames at each end. So these are computed
once for a sound here, and the ends for each window: the same scores in a third of the time.

Left out: rates and channels (`sound_metrics.py`), the scores of voice and background alone, P.808, and the
package's code, which needs librosa and of which none is run.
"""

import hashlib
import struct
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from tokenizer.installation import install_extra

PACKAGE, FILE = "speechmos", "dnsmos_models/sig_bak_ovr.onnx"
# Of the file in release 0.0.1.1.
SHA256 = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
RATE = 16000  # Hz
WINDOW_SECONDS, WINDOW = 9.01, 144_160
HOP = 160  # samples from a frame of 320 to the next
FRAMES = WINDOW // HOP - 1  # of a window
# Raw overall score → that of listeners: the package's polynomial for scores that are not personalised.
OVERALL = (-0.06766283, 1.11546468, 0.04602535)
# Each of the four convolutions sees one frame more to both sides.
SHARED, EDGE = 4, 4
# Frames that are convolved at once, so that they stay in a core's cache; seconds in which windows begin whose
# maps are kept at once.
BLOCK, GROUP = 48, 24


class Layers(NamedTuple):
    """The network's weights."""

    spectrum: Tensor  # (322, 1, 320): cosines, then sines, of a window
    convolutions: list[tuple[Tensor, Tensor]]  # of 3 × 3
    dense: list[tuple[Tensor, Tensor]]


def weights_file() -> Path | None:
    """The file with the network, found without running the package; None if there is none."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], FILE)
    return path if path.is_file() else None


def overall_score(x: Tensor) -> float:
    """x (T,) in [-1, 1] at 16 kHz, T > 0 → OVRL, about 1 (bad) to 4.

    The package's value for the same samples: x is doubled until it fills a window, and the mean is taken over
    windows. `ValueError` where the network's file is missing or not the one that was tried.
    """
    with torch.inference_mode():
        layers = load_layers()
        while len(x) < WINDOW:
            x = torch.cat([x, x])
        groups = [list(group) for _, group in groupby(window_starts(len(x)), lambda start: start // GROUP)]
        raw = [score for group in groups for score in raw_scores(x.float(), group, layers)]
        square, linear, constant = OVERALL
        return sum(square * s * s + linear * s + constant for s in raw) / len(raw)


def window_starts(samples: int) -> list[int]:
    """Seconds at which windows begin that the package scores: by whole seconds, but for those whose end its
    arithmetic rounds down by a sample, as all from second 7 to 23 (so that of sounds of 16 to 33 s it hears
    the first 16)."""
    count = int(samples // RATE - WINDOW_SECONDS) + 1
    return [i for i in range(count) if int((i + WINDOW_SECONDS) * RATE) - i * RATE >= WINDOW]


def raw_scores(x: Tensor, starts: list[int], layers: Layers) -> list[float]:
    """Overall scores, before the polynomial, of windows of x (T,) that begin after `starts` seconds."""
    x = x[starts[0] * RATE : starts[-1] * RATE + WINDOW]
    frames = log_power(x, layers)
    firsts = [(start - starts[0]) * RATE // HOP for start in starts]
    inner = torch.cat(list(inner_maps(frames, layers)))
    ends = [frames[f : f + 2 * EDGE] for first in firsts for f in (first, first + FRAMES - 2 * EDGE)]
    edges = full_resolution(torch.stack(ends)[:, None], layers, padding=1)
    found = []
    for i, first in enumerate(firsts):
        head, tail = edges[2 * i, :, : EDGE // 2], edges[2 * i + 1, :, EDGE // 2 :]
        middle = inner[first // 2 : (first + FRAMES) // 2 - EDGE]
        maps = torch.cat([head, rearrange(middle, "t c f -> c t f"), tail], dim=1)
        found.append(score_of_maps(maps[None], layers))
    return found


def log_power(x: Tensor, layers: Layers) -> Tensor:
    """x (T,) → (frames, 161), in powers of ten."""
    spectrum = F.conv1d(x[None, None], layers.spectrum, stride=HOP)
    power = reduce(spectrum.square(), "1 (part f) t -> t f", "sum", part=2)
    return power.clamp(min=1e-12).log10()


def full_resolution(y: Tensor, layers: Layers, padding: int) -> Tensor:
    """Log powers (B, 1, t, 161) → (B, 32, t / 2, 80): four convolutions, each with `padding` zeros before and
    after in time (without, 8 frames are lost), and the maximum of two by two."""
    for weight, bias in layers.convolutions[:SHARED]:
        y = F.conv2d(y, weight, bias, padding=(padding, 1)).relu_()
    return F.max_pool2d(y, 2)


def inner_maps(frames: Tensor, layers: Layers) -> Iterator[Tensor]:
    """Log powers (t, 161) → (t / 2 - 4, 32, 80) in parts: what no end of the sound has touched."""
    for first in range(0, len(frames) - 2 * EDGE, BLOCK):
        part = full_resolution(frames[None, None, first : first + BLOCK + 2 * EDGE], layers, padding=0)
        yield rearrange(part, "1 c t f -> t c f")


def score_of_maps(y: Tensor, layers: Layers) -> float:
    """The other layers: (1, 32, 450, 80) → the overall score."""
    for i, (weight, bias) in enumerate(layers.convolutions[SHARED:]):
        y = F.conv2d(F.max_pool2d(y, 2) if i else y, weight, bias, padding=1).relu_()
    z = reduce(y, "1 c t f -> 1 c", "max")
    for i, (weight, bias) in enumerate(layers.dense):
        z = (z.relu() if i else z) @ weight + bias
    return float(z[0, 2])  # after those of voice and background


@cache
def load_layers() -> Layers:
    """The weights, on the CPU."""
    path = weights_file()
    data = b"" if path is None else path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(
            f"dnsmos: {path} is missing or not the file of {PACKAGE} 0.0.1.1; install that release: "
            f"{install_extra('metrics')}"
        )
    held = dict(initializers(data))
    spectrum = [held[f"time2freq/stft-{part}/kernel:0"] for part in ("real", "imag")]
    convolutions = [f"conv2d{'_' * (i > 0)}{i or ''}" for i in range(7)]
    read = "mos_estimator_logpow/{}/{}/ReadVariableOp/resource:0"
    return Layers(
        rearrange(torch.cat(spectrum), "f t 1 -> f 1 t"),
        [(held[f"{name}/kernel:0"], held[f"{name}/bias:0"]) for name in convolutions],
        [
            (held[read.format(name, "MatMul")], held[read.format(name, "BiasAdd")])
            for name in ("dense", "dense_1", "dense_3")
        ],
    )


def initializers(model: bytes) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the float tensors in an ONNX file, by onnx.proto's numbers of fields."""
    (graph,) = (value for field, value in messages(model) if field == 7)
    assert isinstance(graph, bytes)
    for field, tensor in messages(graph):
        if field != 5 or not isinstance(tensor, bytes):
            continue
        parts = list(messages(tensor))
        shape = [value for field, value in parts if field == 1 and isinstance(value, int)]
        values: dict[int, bytes] = {field: value for field, value in parts if isinstance(value, bytes)}
        if (2, 1) in parts:  # data_type: FLOAT
            data = values.get(4) or values[9]  # float_data or raw_data, both little-endian
            numbers = struct.unpack(f"<{len(data) // 4}f", data)
            yield values[8].decode(), torch.tensor(numbers).reshape(shape)


def messages(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field, value) of a protocol buffer: whole numbers, and the bytes of all that has a length."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        field, kind = divmod(number(), 8)
        if kind == 0:
            yield field, number()
            continue
        size = {1: 8, 5: 4}.get(kind) or number()
        yield field, data[at : at + size]
        at += size
