"""What `sample.py` writes: every sample as a file, and sheets or pages to look at and listen to.

Left out: drawing (`sample.py`), and looking for neighbours (`neighbours.py`).
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipelines.reports.listening import listening_page, write_wavs
from pipelines.reports.sheets import sample_sheet
from pipelines.reports.spectrograms import mel_sheet
from tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Pictures in a line of the sheet; a class with more takes several lines.
COLUMNS = 12
SHEET, PAGE = "samples.png", "samples.html"
# Clips of sound on the page and the sheet, and seconds of each; all are written whole as files.
HEARD, HEARD_SECONDS = 24, 20


class Drawn(NamedTuple):
    """Samples x (num, C, *size) in [-1, 1] of a name, and their codes (num, K, *grid), if there are some."""

    name: str
    x: Tensor
    codes: Tensor | None


def write_samples(folder: Path, tok: Tokenizer, rows: list[Drawn]) -> None:
    """Every sample as a file of its own, and all of them on one sheet (pictures) or page (sound)."""
    folder.mkdir(parents=True, exist_ok=True)
    write = write_sounds if tok.modality.sample_rate else write_pictures
    first = write(folder, tok, rows)
    logger.info("%d samples in %s; look at %s", sum(len(row.x) for row in rows), folder, first)


def write_pictures(folder: Path, tok: Tokenizer, rows: list[Drawn]) -> Path:
    """samples.png (a row per class) and every picture as a PNG; returns the former's path."""
    lines = [
        (row.name if i == 0 else "", part) for row in rows for i, part in enumerate(row.x.split(COLUMNS))
    ]
    used = set[str]()
    for row, (name, x, _) in enumerate(rows):
        stem = re.sub(r"[^\w-]+", "-", name)
        stem = f"{stem}-{row}" if stem in used else stem
        used.add(stem)
        for i, picture in enumerate(tok.postprocess(x)):
            picture.save(folder / f"{stem}-{i:04d}.png")
    # The sheet comes last: a folder with it is complete.
    sample_sheet(lines, folder / SHEET)
    return folder / SHEET


def write_sounds(folder: Path, tok: Tokenizer, rows: list[Drawn]) -> Path:
    """Every sample as a WAV file; samples.html to listen to the first ones, and samples.png, their
    spectrograms. Returns the page's path."""
    rate = tok.modality.sample_rate
    clips = [(f"{name} {i + 1}", {"": x[i].clamp(-1, 1)}) for name, x, _ in rows for i in range(len(x))]
    write_wavs(folder, clips, rate)
    each = max(1, HEARD // len(rows))  # as many of every class
    heard = [
        (f"{name} {i + 1}", {"": x[i, :, : HEARD_SECONDS * rate].clamp(-1, 1)})
        for name, x, _ in rows
        for i in range(min(each, len(x)))
    ][:HEARD]
    note = (
        f"{len(heard)} of {len(clips)} samples, at most {HEARD_SECONDS} s of each; all are files beside this."
    )
    listening_page(heard, rate, folder / PAGE, "Samples from the prior", [note])
    mel_sheet(heard, rate, folder / SHEET)
    return folder / PAGE
