"""The training item nearest to every sample, side by side, so that a person sees what is new.

Left out: measures of whole sets of samples (`evaluation/kid.py`).
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from pipelines.reports.kinds import Drawn, numbered, report_of
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import read_info
from pipelines.tokens.items import TokenRows, TokenSplit, read_tokens
from pipelines.tokens.windows import rows_of
from tokenizer import Tokenizer
from tokenizer.search.exact import nearest

logger = logging.getLogger(__name__)

# Training items that are compared at once.
CHUNK = 1024


@torch.no_grad()
def nearest_items(tok: Tokenizer, codes: Tensor, items: TokenRows) -> Tensor:
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


def training_items(tok: Tokenizer, tokens: str) -> TokenSplit | CodeClips:
    """The training items of a folder of tokens; `ValueError` for those of another tokenizer."""
    info = read_info(Path(tokens))
    if info.fingerprint != tok.fingerprint():
        raise ValueError(
            f"{tokens} holds codes of the tokenizer with fingerprint {info.fingerprint}, but the samples are "
            f"of {tok.fingerprint()}; give the tokens that this prior was trained on"
        )
    return read_tokens(Path(tokens))[1]["train"]


def write_neighbours(folder: Path, tok: Tokenizer, rows: list[Drawn], items: TokenSplit | CodeClips) -> None:
    """Show each of the first samples with its neighbour, and log where, and how much the two share. Items of
    any length are compared in windows of the samples' length."""
    codes = torch.cat([row.codes for row in rows if row.codes is not None]).cpu()
    found = rows_of(items, codes.shape[2])
    near = found.rows(nearest_items(tok, codes, found).numpy())[0]
    same = 100 * (near == codes).flatten(1).float().mean(1)
    shown = report_of(tok.modality)
    with torch.no_grad():
        drawn, beside = (
            tok.decode(x[: shown.pairs].to(tok.device), tok.modality.drawn_size).cpu() for x in (codes, near)
        )
    names = [numbered(row.name, i) for row in rows for i in range(len(row.x))]
    path = shown.neighbours(tok, names, drawn, beside, folder)
    logger.info(
        "each beside the training item nearest to it: %s; a sample shares %.0f %% of its codes with that "
        "(median; at most %.0f %%): 0 %% means all new, 100 %% a copy",
        path,
        same.median(),
        same.max(),
    )
