"""The blocks of the search's kernel that were measured to be the fastest on a card: a small table in a file,
which `pipelines/benchmark.py search --tune` writes and the search reads.

Left out: measuring (`pipelines/benchmarks/search/tune.py`), and the blocks without a table (`cuda.py`).
"""

import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.hub.files import cache_folder, read_json, write_atomically

logger = logging.getLogger(__name__)


class BlockSizes(NamedTuple):
    """Rows, entries and factors that a program multiplies at once, its warps and its stages of loading."""

    rows: int
    entries: int
    factors: int
    warps: int
    stages: int


# D → blocks: of a search whose D lies between two of them, those of the larger one.
Widths = Mapping[int, BlockSizes]

# Names another file than that in the user's cache.
VARIABLE = "TOKENLOOM_SEARCH_TABLE"
# Goes up with every kernel that other blocks may suit.
VERSION = 1
# What triton takes: powers of 2, the first three from 16 on.
MOST = BlockSizes(1024, 1024, 1024, 32, 16)


def table_path() -> Path | None:
    """The file that `VARIABLE` names, or search-blocks.json in the user's cache folder; None without one."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    folder = cache_folder()
    return None if folder is None else folder / "search-blocks.json"


@cache
def tuned_widths(path: Path, card: str) -> Widths:
    """What the table in a file has for a card; nothing if there is no file. A table that is broken or of
    another version is named in one warning and not used."""
    if not path.exists():
        return {}
    try:
        return read_table(path).get(card, {})
    except ValueError as error:
        text = (
            "%s; the search does without its blocks. Delete it, or write it anew: benchmark.py search --tune"
        )
        logger.warning(text, error)
        return {}


def blocks_for(widths: Widths, width: int, default: BlockSizes) -> BlockSizes:
    """Those of the least D that is not less than `width`, else of the greatest; `default` of none."""
    if not widths:
        return default
    return widths[min((w for w in widths if w >= width), default=max(widths))]


def read_table(path: Path) -> dict[str, Widths]:
    """Card → D → blocks. `ValueError` naming the file for one that is not such a table of this version."""
    values = read_json(path)
    if values.get("version") != VERSION:
        raise ValueError(
            f"{path}: a table of version {values.get('version')!r}, not {VERSION}, which is this one's"
        )
    try:
        cards = values["cards"]
        return {
            card: {int(width): _blocks(blocks) for width, blocks in table.items()}
            for card, table in cards.items()
        }
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: no table of blocks ({what:.200})") from error


def write_table(path: Path, card: str, widths: Widths) -> None:
    """Put a card's blocks into the table, beside those of other cards. `ValueError` if what is there is no
    table, `OSError` if it cannot be written."""
    cards = read_table(path) if path.exists() else {}
    cards[card] = widths
    values = {
        "version": VERSION,
        "cards": {
            name: {str(width): blocks._asdict() for width, blocks in sorted(table.items())}
            for name, table in sorted(cards.items())
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: p.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))
    tuned_widths.cache_clear()


def _blocks(values: Mapping[str, Any]) -> BlockSizes:
    blocks = BlockSizes(**values)
    for name, value, most in zip(BlockSizes._fields, blocks, MOST, strict=True):
        if name == "stages":
            good = type(value) is int and 1 <= value <= most
        else:
            least = 1 if name == "warps" else 16
            good = type(value) is int and least <= value <= most and value & (value - 1) == 0
        if not good:
            raise ValueError(f"{name} is {value!r}")
    return blocks
