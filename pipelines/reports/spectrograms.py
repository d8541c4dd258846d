"""Pictures of sound: log-mel spectrograms, one by one or on a sheet of originals above their reconstructions.

Left out: sound to play (`listening.py`), and the spectrograms themselves (`tokenizer.spectral`).
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.reports.plots import save_picture
from tokenizer.spectral import log_mel, mel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# A name and the clips (C, T) under it: {"original": x, "rebuilt": x_hat}, or {"": x} where there is one.
Row = tuple[str, Mapping[str, Tensor]]

BANDS, RANGE = 80, 80.0  # mel bands, and dB below the loudest that are shown
QUIETEST = 0.0  # dB of magnitude, 48 below a full-scale sine: quieter clips stay dark, silent ones black
TICKS = (100, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
WIDTH, HEIGHT = 4.4, 1.55  # inches of a panel
ACROSS = 3  # blocks beside each other
COLORS = "magma"
SMALL = 8  # points, of all type but names and titles


def mel_sheet(rows: Sequence[Row], sample_rate: int, path: str | Path, mark: float = 0.0) -> None:
    """Write a PNG with a block for each row: its clips (C, T) in [-1, 1] as log-mel spectrograms, below each
    other under its name.

    The clips of a block share a time axis, and colours from its loudest down to -80 dB; channels are
    averaged. At `mark` seconds, if that is not 0, there is a line. `ValueError` for no clips, empty ones,
    NaN, or other shapes.
    """
    from matplotlib.figure import Figure

    check_rows(rows)
    down = max(len(clips) for _, clips in rows)
    lines = math.ceil(len(rows) / ACROSS)
    columns = math.ceil(len(rows) / lines)
    size = (WIDTH * columns + 0.9, HEIGHT * down * lines + 0.3 * lines)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(lines * down, columns, squeeze=False)
    blocks = rearrange(axes, "(lines down) columns -> (lines columns) down", down=down)
    for block, (name, clips) in zip(blocks, rows, strict=False):
        panels = [ax for ax, _ in zip(block, clips, strict=False)]
        image = _draw_block(panels, name, clips, sample_rate, mark)
    for ax in axes.flat:
        if not ax.images:
            ax.remove()
    bar = figure.colorbar(image, ax=figure.axes, pad=0.01, fraction=0.02, aspect=40)
    bar.set_label("dB from the loudest", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    data = _png(figure)
    save_picture(path, lambda beside: beside.write_bytes(data))


def spectrogram_pngs(clips: Mapping[str, Tensor], sample_rate: int, mark: float = 0.0) -> dict[str, bytes]:
    """{label: PNG} of clips (C, T), each alone, with the axes, colours and line that they share in
    `mel_sheet`."""
    from matplotlib.figure import Figure

    pictures = {}
    for label, levels in _levels(clips, sample_rate).items():
        figure = Figure(figsize=(5.0, 1.9), dpi=120, layout="constrained")
        ax = figure.subplots()
        _draw(ax, levels, sample_rate, _seconds(clips, sample_rate), mark)
        ax.set_xlabel("seconds", fontsize=SMALL)
        pictures[label] = _png(figure)
    return pictures


def check_rows(rows: Sequence[Row]) -> None:
    """`ValueError` unless there are rows, each with clips (C, T) of finite floats that are not empty."""
    if not rows or not all(clips for _, clips in rows):
        counts = [len(clips) for _, clips in rows]
        raise ValueError(f"rows: expected one or more, with a clip or more each, got {counts}")
    for name, clips in rows:
        for label, x in clips.items():
            if x.ndim != 2 or x.numel() == 0 or not x.is_floating_point():
                raise ValueError(
                    f"{name!r}, {label!r}: expected floats (C, T), got {x.dtype} {tuple(x.shape)}"
                )
            if not bool(x.isfinite().all()):
                raise ValueError(f"{name!r}, {label!r} holds NaN or infinity; has the model diverged?")


def shorten(text: str, length: int) -> str:
    """`text` on one line, its end replaced by "…" where it is longer than `length`, and not read as TeX."""
    text = " ".join(text.split())
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _draw_block(
    panels: "Sequence[Axes]", name: str, clips: Mapping[str, Tensor], rate: int, mark: float
) -> "AxesImage":
    for ax, (label, levels) in zip(panels, _levels(clips, rate).items(), strict=True):
        image = _draw(ax, levels, rate, _seconds(clips, rate), mark)
        label = shorten(label, 40)
        ax.set_title(label, loc="right", fontsize=SMALL, pad=3)
        if ax is panels[0]:  # a panel is as wide as 48 letters of the name's type, or 70 of the label's
            name = shorten(name, 48 - len(label) * 48 // 70)
            ax.set_title(name, loc="left", fontsize=10, fontweight="bold", pad=3)
        ax.tick_params(labelbottom=ax is panels[-1])
    panels[-1].set_xlabel("seconds", fontsize=SMALL)
    return image


def _draw(ax: "Axes", levels: Tensor, rate: int, seconds: float, mark: float) -> "AxesImage":
    """Levels (bands, frames) in dB, on a time axis up to `seconds` and a frequency axis in kHz."""
    step = _sizes(rate)[1] / rate
    # Frame i is centred on i · step.
    extent = (-step / 2, (levels.shape[1] - 0.5) * step, -0.5, BANDS - 0.5)
    image = ax.imshow(
        levels.numpy(), COLORS, aspect="auto", origin="lower", extent=extent, vmin=-RANGE, vmax=0
    )
    ax.set_facecolor("white")
    ticks = [hz for hz in TICKS if hz <= rate / 2]
    place = mel(torch.tensor([*ticks, rate / 2], dtype=torch.float64))
    # Band m has its peak at (m + 1) / (BANDS + 1) of the axis; half the sample rate is off the picture.
    place = (place[:-1] / place[-1] * (BANDS + 1) - 1).clamp(-0.5, BANDS - 0.5)
    ax.set_yticks(place.tolist(), [f"{hz / 1000:g}" for hz in ticks])
    ax.set(xlim=(0, seconds), ylim=(-0.5, BANDS - 0.5))
    ax.set_ylabel("kHz (mel scale)", fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    if mark:
        ax.axvline(mark, color="white", lw=1.2, ls="--")
    return image


def _levels(clips: Mapping[str, Tensor], rate: int) -> dict[str, Tensor]:
    """{label: dB (bands, frames)} below the loudest of all clips, at least -80."""
    window, hop = _sizes(rate)
    levels = {}
    for label, x in clips.items():
        x = x.detach().cpu().float().clamp(-1, 1)
        x = F.pad(x, (0, -x.shape[-1] % hop))  # so that the last frame reaches the end
        magnitudes = 10 ** log_mel(x[None], rate, window, hop, BANDS)
        levels[label] = 20 * reduce(magnitudes, "1 c bands frames -> bands frames", "mean").log10()
    loudest = max(QUIETEST, *(float(level.max()) for level in levels.values()))
    return {label: (level - loudest).clamp(min=-RANGE) for label, level in levels.items()}


def _png(figure: "Figure") -> bytes:
    """In 256 colours, those of the spectrograms and greys: it looks the same, in half the bytes or less."""
    from matplotlib import colormaps

    colors = colormaps[COLORS](np.linspace(0, 1, 224))[:, :3]
    greys = np.linspace(0, 1, 32)[:, None].repeat(3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((np.concatenate([colors, greys]) * 255).round().astype(np.uint8).tobytes())
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    picture = Image.open(full).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(small, format="png")
    return small.getvalue()


def _sizes(rate: int) -> tuple[int, int]:
    """Window and hop in samples: a power of 2 near 50 ms, and an eighth of it."""
    window = 2 ** round(math.log2(max(rate * 0.05, 16)))
    return window, window // 8


def _seconds(clips: Mapping[str, Tensor], rate: int) -> float:
    return max(x.shape[-1] for x in clips.values()) / rate
