"""The training item nearest to every sample, side by side, so that a person sees what is new.

Left out: measures of whole sets of samples (`evaluation/kid.py`).
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from pipelines.reports.listening import listening_page
from pipelines.reports.samples import HEARD, Drawn
from pipelines.reports.sheets import reconstruction_sheet
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import read_info
from pipelines.tokens.items import Rows, read_tokens
from pipelines.tokens.windows import Windows
from tokenizer import Tokenizer
from tokenizer.search.exact import nearest

logger = logging.getLogger(__name__)

PICTURES = "neighbours.png"
SOUNDS = "neighbours.html"
# Training items that are compared at once, and pairs on the sheet.
CHUNK, SHOWN = 1024, 96


@torch.no_grad()
def nearest_items(tok: Tokenizer, codes: Tensor, items: Rows) -> Tensor:
    """codes (B, K, *grid) → numbers (B,) of the items whose quantized latents are nearest to theirs."""
    latents = tok.bottleneck.decode(codes.to(tok.device)).flatten(1).float()
    best = torch.full((len(latents),), torch.inf, device=tok.device)
    found = torch.zeros(len(latents), dtype=torch.int64, device=tok.device)
    for start in range(0, len(items), CHUNK):
        others, _ = items.rows(slice(start, min(start + CHUNK, len(items))))
        table = tok.bottleneck.decode(others.to(tok.device)).flatten(1).float()
        index = nearest(latents, table)
        distance = (latents - table[index]).norm(dim=1)
        closer = distance < best
        best, found = torch.where(closer, distance, best), torch.where(closer, start + index, found)
    return found.cpu()


def training_items(tok: Tokenizer, tokens: str) -> Rows | CodeClips:
    """The training items of a folder of tokens; `ValueError` for those of another tokenizer."""
    info = read_info(Path(tokens))
    if info.fingerprint != tok.fingerprint():
        raise ValueError(
            f"{tokens} holds codes of the tokenizer with fingerprint {info.fingerprint}, but the samples are "
            f"of {tok.fingerprint()}; give the tokens that this prior was trained on"
        )
    return read_tokens(Path(tokens))[1]["train"]


def write_neighbours(folder: Path, tok: Tokenizer, rows: list[Drawn], items: Rows | CodeClips) -> None:
    """Show each of the first samples with its neighbour, and log how many codes the two share. Items of sound
    are compared in windows of the samples' length."""
    codes = torch.cat([row.codes for row in rows if row.codes is not None]).cpu()
    if isinstance(items, CodeClips):
        items = Windows(items, codes.shape[2])
    near = items.rows(nearest_items(tok, codes, items).numpy())[0]
    same = 100 * (near == codes).flatten(1).float().mean(1)
    logger.info(
        "codes that a sample has in the same place as the training item nearest to it: %.0f %% (median), "
        "%.0f %% at most",
        same.median(),
        same.max(),
    )
    rate = tok.modality.sample_rate
    count, size = (HEARD // 2, None) if rate else (SHOWN, tok.modality.size)
    with torch.no_grad():
        pair = [tok.decode(x[:count].to(tok.device), size).cpu() for x in (codes, near)]
    if not rate:
        reconstruction_sheet(*pair, folder / PICTURES, names=("sample", "nearest"))
        return
    names = [f"{row.name} {i + 1}" for row in rows for i in range(len(row.x))]
    clips = [
        (name, {"sample": a.clamp(-1, 1), "nearest in training": b.clamp(-1, 1)})
        for name, a, b in zip(names, *pair, strict=False)
    ]
    listening_page(clips, rate, folder / SOUNDS, "Samples and the training items nearest to them")
