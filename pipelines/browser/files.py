"""What people give the page and take from it: uploads read within limits, and results as files in a folder
that is removed.

Left out: what formats of files hold (`tokenizer.modalities.files`).
"""

import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipelines.reports.listening import write_wav
from tokenizer import Tokenizer
from tokenizer.modalities.files.pictures import open_picture
from tokenizer.modalities.signals import SignalModality

MOST_MEGAPIXELS = 40.0
MOST_SECONDS = 60
# Pixels of the longer side of a picture that is not brought to the size of training.
MOST_PIXELS = 256
# Seconds that results stay after they were made.
KEPT = 3600.0


class Given(NamedTuple):
    """What was read: its name, the data x (1, C, *size) in [-1, 1], and the bytes of its file."""

    name: str
    x: Tensor
    file_bytes: int


class Folder:
    """A temporary folder of the server, for uploads and results; `remove` takes it away."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tokenloom-page-"))

    def new(self, name: str) -> Path:
        """A path for a file of this name that nobody can guess. What is older than an hour is removed."""
        results = self.path / "results"
        results.mkdir(exist_ok=True)
        for old in results.iterdir():
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
        beside = results / secrets.token_hex(16)
        beside.mkdir()
        return beside / name

    def picture(self, picture: Image.Image, name: str) -> str:
        """A new PNG file of a picture."""
        path = self.new(f"{name}.png")
        picture.save(path)
        return str(path)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def read_picture(path: str | None, tok: Tokenizer, keep: bool = False) -> Given:
    """A picture file at the size of training, or with `keep` at its own, made smaller if it is large.
    `ValueError` for nothing, no picture, and more than `MOST_MEGAPIXELS`."""
    if not path:
        raise ValueError("there is no picture yet; upload or paste one")
    name = Path(path).name
    picture = open_picture(path, name, MOST_MEGAPIXELS)
    if not keep:
        x = tok.preprocess(picture)
    else:
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
        x = tok.preprocess(picture, "keep")
    return Given(name, x, Path(path).stat().st_size)


def read_sound(path: str | None, tok: Tokenizer) -> Given:
    """A sound file at the rate and in the channels of the tokenizer. `ValueError` for nothing, no sound, and
    more than `MOST_SECONDS`."""
    if not path:
        raise ValueError("there is no sound yet; upload one, or record your voice")
    modality, name = tok.modality, Path(path).name
    assert isinstance(modality, SignalModality)
    with modality.open(path, name, report=False) as sound:
        seconds = sound.length / tok.sample_rate
        if seconds > MOST_SECONDS:
            raise ValueError(
                f"{name}: lasts {seconds:.0f} s, and the page takes at most {MOST_SECONDS} s; cut it, or use "
                "the scripts, which take any length"
            )
        x = torch.from_numpy(sound.read())[None].to(tok.device)
    return Given(name, x, Path(path).stat().st_size)


def picture_of(x: Tensor, tok: Tokenizer, side: int = 320) -> Image.Image:
    """x (1, C, H, W) as a picture, small ones enlarged by a whole factor to about `side` pixels."""
    picture: Image.Image = tok.postprocess(x)[0]
    return enlarged(picture, side)


def enlarged(picture: Image.Image, side: int = 320) -> Image.Image:
    """A small picture by a whole factor to at most `side` pixels, without smoothing, in RGB."""
    factor = max(1, side // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def beside(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures of one height next to each other."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(p.height for p in pictures)), (255, 255, 255))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def write_sound(path: Path, x: Tensor, tok: Tokenizer) -> Path:
    """A WAV file of x (1, C, T), which is clipped to [-1, 1]."""
    write_wav(path, x[0].detach().cpu().float().clamp(-1, 1), tok.sample_rate)
    return path


def write_png(path: Path, x: Tensor, tok: Tokenizer) -> Path:
    """A PNG file of x (1, C, H, W), pixel for pixel."""
    tok.postprocess(x)[0].save(path)
    return path


def write_codes(path: Path, codes: Tensor, tok: Tokenizer) -> Path:
    """codes (B, K, *grid) as `codes` int64 in safetensors, with the fingerprint of their tokenizer."""
    metadata = {"tokenizer": tok.fingerprint()}
    save_file({"codes": codes.detach().cpu().contiguous()}, path, metadata=metadata)
    return path


def brought_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Another x (1, C, *) with the size of one: sound cut or padded with silence, pictures resized."""
    if tuple(x.shape[2:]) == size:
        return x
    if x.ndim == 3:
        return F.pad(x, (0, max(0, size[0] - x.shape[2])))[:, :, : size[0]]
    return F.interpolate(x, size, mode="bilinear", antialias=True).clamp(-1, 1)
