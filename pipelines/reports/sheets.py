"""What people look at: progress, labelled sheets of pictures, and (from `pipelines.reports.plots`) plots.

Left out: measuring (tokenizer.metrics) and logging (the training scripts and accelerate's trackers).
"""

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipelines.reports.plots import save_picture

logger = logging.getLogger(__name__)

GAP, MARGIN, TYPE, CELL = 2, 16, 18, 112  # pixels: between pictures, round a sheet, of its type, of a picture
PAPER, INK, FRAME = (255, 255, 255), (40, 40, 40), (205, 205, 205)


def image_grid(x: Tensor, columns: int = 8, scale: int = 1) -> Image.Image:
    """Pictures (N, C, H, W), uint8 or float in [-1, 1], C 1 or 3, as one RGB picture of rows of `columns`.

    Each is enlarged `scale` times (nearest neighbour) and framed by a thin line. `ValueError` for no
    picture.
    """
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    pixels = rearrange(_to_uint8(x, "x"), "n c h w -> n h w c").expand(-1, -1, -1, 3).contiguous().numpy()
    height, width = (side * scale for side in pixels.shape[1:3])
    across, down = min(columns, len(pixels)), math.ceil(len(pixels) / columns)
    grid = Image.new("RGB", (across * (width + GAP) + GAP, down * (height + GAP) + GAP), PAPER)
    for i, picture in enumerate(pixels):
        left, top = i % columns * (width + GAP), i // columns * (height + GAP)
        grid.paste(FRAME, (left, top, left + width + 2 * GAP, top + height + 2 * GAP))
        enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (left + GAP, top + GAP))
    return grid


def reconstruction_sheet(
    x: Tensor,
    x_hat: Tensor,
    path: str | Path,
    names: tuple[str, str] = ("original", "rebuilt"),
) -> None:
    """Write a PNG of pictures x (N, C, H, W), each above its reconstruction x_hat, with `names` at the left.

    Small pictures are enlarged by a whole factor. `ValueError` for unequal shapes or no pictures.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"x and x_hat must have one shape, got {tuple(x.shape)} and {tuple(x_hat.shape)}")
    x, x_hat = _to_uint8(x, "x"), _to_uint8(x_hat, "x_hat")
    scale = max(1, CELL // max(x.shape[-2:]))
    rows = math.ceil(len(x) / max(1, 1200 // (x.shape[-1] * scale)))
    per_row = math.ceil(len(x) / rows)
    pairs = zip(x.split(per_row), x_hat.split(per_row), strict=True)
    lines = [line for above, below in pairs for line in zip(names, (above, below), strict=True)]
    _write_sheet(lines, scale, path, group=2)


def sample_sheet(rows: Sequence[tuple[str, Tensor]], path: str | Path) -> None:
    """Write a PNG with a row of pictures (N, C, H, W) for each name, the name at its left, or its number if
    the font has no signs for it.

    Rows may differ in N, not in size. Small pictures are enlarged by a whole factor. `ValueError` for no
    pictures.
    """
    lines = [(name, _to_uint8(x, f"rows[{i}], {name!r}")) for i, (name, x) in enumerate(rows)]
    sizes = {tuple(x.shape[-2:]) for _, x in lines}
    if len(sizes) != 1:
        raise ValueError(f"rows: expected pictures of one size, got {len(lines)} rows of {sorted(sizes)}")
    height, width = sizes.pop()
    longest = max(len(x) for _, x in lines)
    scale = max(1, min(CELL // max(height, width), 1600 // (longest * width)))
    _write_sheet(lines, scale, path, group=1)


def _to_uint8(x: Tensor, name: str) -> Tensor:
    """Pictures (N, C, H, W), uint8 or float in [-1, 1], as uint8 on the CPU; `ValueError`, which calls them
    `name`, for other data."""
    if x.ndim != 4 or x.numel() == 0 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"{name}: expected pictures (N, C, H, W) with C 1 or 3, not empty, got {tuple(x.shape)}"
        )
    x = x.detach().cpu()
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected pictures in uint8, or float in [-1, 1], got {x.dtype}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name}: the pictures hold NaN or infinity; has the model diverged?")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _write_sheet(lines: Sequence[tuple[str, Tensor]], scale: int, path: str | Path, group: int) -> None:
    """Write labelled lines of pictures below each other, with more space after every `group` lines."""
    font = ImageFont.truetype(font_file(), TYPE)
    names = [_shorten(name, font) for name in _drawable([name for name, _ in lines], font, path)]
    strips = [image_grid(x, len(x), scale) for _, x in lines]
    left = MARGIN + math.ceil(max(font.getlength(name) for name in names)) + MARGIN // 2
    steps = [
        max(strip.height, 2 * TYPE) + (MARGIN if i % group == 0 else GAP) for i, strip in enumerate(strips, 1)
    ]
    top, width = MARGIN, left + max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width + MARGIN, top + sum(steps)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for name, strip, step in zip(names, strips, steps, strict=True):
        sheet.paste(strip, (left, top))
        draw.text((left - MARGIN // 2, top + strip.height // 2), name, INK, font, anchor="rm")
        top += step
    save_picture(path, lambda beside: sheet.save(beside, format="png"))


def font_file() -> Path:
    """DejaVu, which has many scripts and is the same everywhere, where matplotlib keeps it. Importing that to
    ask would take longer than drawing a sheet."""
    found = find_spec("matplotlib")
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"


def _drawable(names: Sequence[str], font: ImageFont.FreeTypeFont, path: str | Path) -> list[str]:
    """Names that the font has signs for; those it has not, which would all be the same boxes, as the number
    of the name on the sheet, from 0, which a line in the log explains."""
    # What the font draws for a code point that will never have a sign.
    box = bytes(font.getmask("\U0010ffff"))
    kept, numbers = list[str](), dict[str, str]()
    for name in names:
        known = all(sign.isspace() or bytes(font.getmask(sign)) != box for sign in set(name))
        kept.append(name if known else numbers.setdefault(name, str(sum(map(bool, kept)))))
    if numbers:
        text = ", ".join(f"{number}: {name}" for name, number in numbers.items())
        logger.info("%s: numbers stand for names that its font has no signs for: %s", path, text)
    return kept


def _shorten(name: str, font: ImageFont.FreeTypeFont, pixels: int = 260) -> str:
    """`name` on one line, its end replaced by "…" where it is wider than `pixels`."""
    name = " ".join(name.split())
    if font.getlength(name) <= pixels:
        return name
    while font.getlength(name + "…") > pixels:
        name = name[:-1]
    return name + "…"
