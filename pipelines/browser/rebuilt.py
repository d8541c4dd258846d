"""What a tokenizer keeps of a picture or a sound: rebuilt, measured, and seen code by code.

Left out: the tabs that show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from PIL import Image
from torch import Tensor

from pipelines.browser.files import Given, beside, enlarged
from pipelines.browser.grids import Cell
from tokenizer import Tokenizer
from tokenizer.metrics import psnr, ssim
from tokenizer.sound_metrics import available, bitrate, is_silent, si_sdr, stoi

# Pixels round a patch, as shares of its side, and seconds round a moment that are shown with it.
ROUND, AROUND = 1, 0.25
# Below which there is no SSIM.
SSIM_PIXELS = 3


@dataclass(frozen=True)
class Rebuilt:
    """What was given, its codes (1, K, *grid), and what the first `used` codebooks of them decode to."""

    given: Given
    codes: Tensor
    x_hat: Tensor
    used: int

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W), or (T,)."""
        return tuple(self.given.x.shape[2:])


@torch.no_grad()
def rebuild(tok: Tokenizer, given: Given, used: int | None = None) -> Rebuilt:
    """Encode, and decode from the first `used` codebooks (left out: all)."""
    return decoded(tok, given, tok.encode(given.x), used)


@torch.no_grad()
def decoded(tok: Tokenizer, given: Given, codes: Tensor, used: int | None = None) -> Rebuilt:
    """Decode codes (1, K, *grid) from the first `used` codebooks (left out: all) to the size of what was
    given."""
    count = tok.checked_num_codebooks(used)
    x_hat = tok.decode(codes[:, :count], tuple(given.x.shape[2:]))
    return Rebuilt(given, codes, x_hat.clamp(-1, 1), count)


def variable(tok: Tokenizer) -> bool:
    """Whether the first codebooks decode alone, so that a slider over them makes sense."""
    return tok.bottleneck.num_codebooks > 1 and tok.bottleneck.prefix_decodes


def measures(tok: Tokenizer, done: Rebuilt) -> dict[str, str]:
    """What was kept, in words and numbers, by name."""
    x, x_hat = done.given.x, done.x_hat
    count = done.codes[:, : done.used].numel()
    bits = count * tok.bits_per_code
    found = {"codes": f"{count:,} of {tok.bits_per_code:g} bits", "bits of the codes": f"{bits:,.0f}"}
    if done.given.file_bytes:
        file_bits = 8 * done.given.file_bytes
        found["bits of the file"] = f"{file_bits:,} ({file_bits / bits:.1f} times as many)"
    if tok.modality.timed:
        rate = bitrate(done.used, tok.bits_per_code, tok.stride, tok.sample_rate)
        found["rate"] = f"{rate / 1000:.2f} kbit/s"
        return found | _of_sound(x_hat, x, tok.sample_rate)
    found["rate"] = f"{bits / (x.shape[2] * x.shape[3]):.2f} bits per pixel"
    found["PSNR"] = f"{float(psnr(x_hat, x)):.2f} dB"
    if min(x.shape[2:]) >= SSIM_PIXELS:
        found["SSIM"] = f"{float(ssim(x_hat, x)):.3f}"
    return found


def _of_sound(x_hat: Tensor, x: Tensor, rate: int) -> dict[str, str]:
    if bool(is_silent(x)):
        return {"SI-SDR": "not measured, as the sound is silent", "STOI": "not measured"}
    found = {"SI-SDR": f"{float(si_sdr(x_hat, x)):.2f} dB"}
    if "stoi" in available():
        value = stoi(x_hat, x, rate).mean()
        found["STOI"] = "not measured, as too little is loud enough" if value is None else f"{value:.3f}"
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose cells hold plain text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    safe = escape(" ".join(text.split()), quote=False)
    return "".join(f"&#{ord(sign)};" if sign in "|*_`[]\\$~" else sign for sign in safe)


def difference(x_hat: Tensor, x: Tensor) -> Image.Image:
    """Where a rebuilt picture is brighter (red) or darker (blue) than the original, full at a quarter of the
    range."""
    gap = (x_hat - x)[0].mean(0).cpu().float().clamp(-0.5, 0.5) * 2
    more, less = gap.clamp(min=0), (-gap).clamp(min=0)
    channels = torch.stack([1 - less, 1 - more - less, 1 - more], dim=-1)
    return enlarged(Image.fromarray((255 * channels).round().to(torch.uint8).numpy()))


def patch(tok: Tokenizer, done: Rebuilt, cell: Cell) -> Image.Image:
    """What a code of a picture stands for, with its surroundings: in the original and in the rebuilt one, the
    patch itself framed."""
    return beside([_patch(tok, x, cell) for x in (done.given.x, done.x_hat)], gap=12)


def _patch(tok: Tokenizer, x: Tensor, cell: Cell) -> Image.Image:
    stride = tok.stride
    whole = tok.postprocess(x)[0].convert("RGB")
    top, left = cell[1] * stride, cell[2] * stride
    around = ROUND * stride
    side = 3 * stride
    cut = Image.new("RGB", (side, side), (255, 255, 255))
    cut.paste(whole, (around - left, around - top))
    factor = max(1, 192 // side)
    shown = enlarged(cut, side * factor)
    marked = Image.new("RGB", shown.size, (0, 0, 0))
    first, last = around * factor, (around + stride) * factor
    marked.paste(shown)
    for edge, colour in ((3, (0, 0, 0)), (1, (255, 255, 255))):
        _frame(marked, (first - edge, first - edge, last + edge, last + edge), edge, colour)
    return marked


def _frame(
    picture: Image.Image, box: tuple[int, int, int, int], width: int, colour: tuple[int, int, int]
) -> None:
    left, top, right, bottom = box
    for part in (
        (left, top, right, top + width),
        (left, bottom - width, right, bottom),
        (left, top, left + width, bottom),
        (right - width, top, right, bottom),
    ):
        picture.paste(colour, part)


def moment(tok: Tokenizer, done: Rebuilt, cell: Cell) -> tuple[Tensor, float, float]:
    """What a code of sound stands for, with a little before and after: original, a pause, rebuilt, (1, C, T);
    and where that begins and ends, in seconds."""
    around = round(AROUND * tok.sample_rate)
    first = max(0, cell[1] * tok.stride - around)
    last = min(done.size[0], (cell[1] + 1) * tok.stride + around)
    pause = done.x_hat.new_zeros(1, done.x_hat.shape[1], tok.sample_rate // 4)
    parts = [done.given.x[:, :, first:last], pause, done.x_hat[:, :, first:last]]
    return torch.cat(parts, dim=2), first / tok.sample_rate, last / tok.sample_rate
