"""What people look at of measured samples: a section for a card, with the table, and a sheet of some samples.

Left out: measuring (`pipelines.evaluation.samples`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from pipelines.evaluation.samples.kinds import SETS, Draw, Figure
from pipelines.reports.kinds import UNNAMED, report_of
from pipelines.run.generator import Generator
from tokenizer.hub.files import write_text

SECTION = "samples.md"
# Classes on the sheet.
CLASSES = 12
MEANINGS = {
    "kid": "KID to held-out ones (efficientnet-lite0), lower is better",
    "agreement": "read as the class asked for",
    "blanks": "blank",
    "nearest": "distance to the nearest training item (median)",
    "dnsmos": "DNSMOS (speech), higher is better",
    "silence": "silent frames",
    "frechet": "Fréchet distance of log-mel windows to held-out ones, lower is better",
    "repeats": "same codes as an earlier one",
    "copies": "same codes as a training item",
}
SHARES = {"agreement", "blanks", "silence", "repeats", "copies"}
# Digits after the point; of shares, in percent, and of all others: 1 and 2.
DIGITS = {"kid": 4, "frechet": 3}


def sample_table(table: Mapping[str, Mapping[str, Figure]]) -> str:
    """Figures by set in Markdown: means, with the spread over seeds where there are several."""
    lines = ["| figure | " + " | ".join(of.replace("_", "-") for of in SETS) + " |", "|---" * 5 + "|"]
    for name, row in table.items():
        cells = [in_words(row[of], name) if of in row else "" for of in SETS]
        lines.append(f"| {MEANINGS.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def in_words(figure: Figure, name: str) -> str:
    """A mean and its spread; shares in percent."""
    scale, unit, digits = (100, " %", 1) if name in SHARES else (1, "", DIGITS.get(name, 2))
    text = f"{figure.mean * scale:.{digits}f}"
    return text + (f" ± {figure.spread * scale:.{digits}f}" if figure.spread is not None else "") + unit


@torch.no_grad()
def write_samples(generator: Generator, draws: list[Draw], table: str, how: str, folder: Path) -> None:
    """samples.md, a section for a card with the table and `how` the samples were drawn, and sample.png (of
    sound sample.wav too) with some of the first seed, a row per class."""
    write_text(folder / SECTION, f"## Samples\n\n{how}\n\n{table}")
    tok, names = generator.tokenizer, generator.prior.config.class_names
    shown, (codes, labels) = report_of(tok.modality), draws[0]
    rows = []
    for label in labels.unique()[:CLASSES].tolist():
        some = codes[labels == label][: shown.each]
        rows.append((names[label] if label >= 0 else UNNAMED, generator.decode(some).cpu()))
    shown.card_sample(tok, rows, folder)
