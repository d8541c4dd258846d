"""What `sample.py` writes: every sample as a file, and sheets or pages to look at and listen to.

Left out: drawing (`sample.py`), what is written of a modality (`kinds.py`), and looking for neighbours
(`neighbours.py`).
"""

import logging
from pathlib import Path

from pipelines.reports.kinds import Drawn, report_of
from tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Of every modality: what is written last.
SHEET = "samples.png"


def write_samples(folder: Path, tok: Tokenizer, rows: list[Drawn]) -> None:
    """Every sample as a file of its own, and all or some of them on one sheet or page."""
    folder.mkdir(parents=True, exist_ok=True)
    first = report_of(tok.modality).samples(tok, rows, folder)
    logger.info("%d samples in %s; look at %s", sum(len(row.x) for row in rows), folder, first)
