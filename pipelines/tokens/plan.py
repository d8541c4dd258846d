"""What an encoding does, as encoding.json: blocks of items, a shard each, and which of them are still to do.

Left out: encoding them (`encode_dataset.py`), and the shards themselves (`shards.py`).
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.data.batches import Splits
from pipelines.data.kinds import Split
from pipelines.run.folder import TOKENS_FILE
from pipelines.tokens.info import SPLITS, TokenInfo
from pipelines.tokens.shards import read_shard, shard_path
from tokenizer.hub.files import read_json, write_json
from tokenizer.variants import config_from_dict, config_to_dict

logger = logging.getLogger(__name__)

ENCODING_FILE = "encoding.json"


class ShardBlock(NamedTuple):
    """The items of one shard; `views` rows of each."""

    split: str
    shard: int
    shards: int
    items: range
    views: int

    def path(self, folder: Path) -> Path:
        return shard_path(folder, self.split, self.shard, self.shards)


@dataclass(frozen=True)
class Encoding:
    """All that decides what is in the shards: an encoding is continued only by an equal one."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    source: str
    """Name of the data set."""
    data: str
    """Digest of the items' names, labels and, of sound, lengths. Their content is not looked at: what is
    edited under the same name is not noticed."""
    config: str | None
    """--data.config: the configuration of a Hub data set."""
    split: str
    """--data.split: what is trained on."""
    test_split: str
    """--data.test-split: what is held out."""
    column: str | None
    """--data.column: where pictures or sound are."""
    label_column: str | None
    """--data.label-column: where labels are."""
    train: int
    """Items to train on."""
    held_out: int
    """Items that are held out."""
    views: int
    """Views of every training item."""
    block: int
    """Pictures of a block, or its seconds."""
    train_shards: int
    """Shards of the items to train on."""
    held_out_shards: int
    """Shards of the items that are held out."""
    flip: bool = False
    """--augment.flip: every second view of a picture is mirrored. False where there is one view."""
    shift: int = 0
    """--augment.shift: pixels that a view of a picture is moved by at most. 0 where there is one view."""
    seed: int = 0
    """--seed: decides what is random in views. 0 where there is one view."""
    tf32: bool = False
    """--tf32: codes depend on the batch; older releases did not have it."""

    def digest(self) -> str:
        """16 hexadecimal digits that every shard and tokens.json bear."""
        values = config_to_dict(self)
        if not self.tf32:  # those of older releases stay
            del values["tf32"]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def block_size(examples: Split, views: int) -> int:
    """The size of a block where training items have so many views, in the unit of `Kind.block`. An
    interruption costs every process one block at most."""
    return max(1, examples.kind.block // views)


def plan_blocks(splits: Splits, views: int) -> list[ShardBlock]:
    """The blocks of both splits, at least one of each; they do not depend on the number of processes."""
    return [
        ShardBlock(name, i, len(ranges), items, views if name == "train" else 1)
        for name, examples in zip(SPLITS, (splits.train, splits.held_out), strict=True)
        for ranges in [list(examples.ranges(block_size(examples, views)))]
        for i, items in enumerate(ranges)
    ]


def refuse_finished(folder: Path) -> None:
    """`ValueError` if the folder already holds tokens."""
    if (folder / TOKENS_FILE).exists():
        raise ValueError(f"{folder} already holds tokens; choose another --output or delete that folder")


def claim_encoding(
    folder: Path, encoding: Encoding, info: TokenInfo, blocks: Sequence[ShardBlock]
) -> list[int]:
    """Begin an encoding in `folder`, or continue it: writes encoding.json or compares it, and returns the
    numbers of the blocks that have no whole shard yet.

    Raises `ValueError` for a folder of finished tokens, of another encoding, or of an unknown one.
    """
    refuse_finished(folder)
    path = folder / ENCODING_FILE
    if path.exists():
        _compare(config_from_dict(Encoding, read_json(path), str(path)), encoding, folder)
    elif shards := sorted(p.name for name in SPLITS for p in folder.glob(f"{name}-*-of-*.parquet")):
        raise ValueError(
            f"{folder} holds {shards[0]}, but no {ENCODING_FILE} that says of what; choose another --output "
            "or delete that folder"
        )
    else:
        write_json(path, config_to_dict(encoding))
        return list(range(len(blocks)))
    missing = [i for i, block in enumerate(blocks) if not _is_whole(folder, block, info)]
    done = len(blocks) - len(missing)
    logger.info("continuing in %s: %d of %d shards are there", folder, done, len(blocks))
    return missing


def _compare(before: Encoding, now: Encoding, folder: Path) -> None:
    for field in dataclasses.fields(Encoding):
        was, value = getattr(before, field.name), getattr(now, field.name)
        if was != value:
            raise ValueError(
                f"{folder} holds a part of another encoding: {field.name} was {was!r}, is now {value!r}; "
                "continue with the same data and options, choose another --output or delete that folder"
            )


def _is_whole(folder: Path, block: ShardBlock, info: TokenInfo) -> bool:
    path = block.path(folder)
    if not path.exists():
        return False
    try:
        found = len(read_shard(path, info, block.views, lambda _: None).labels)
        # Sounds that can no longer be read are left out.
        if found > len(block.items) or (info.grid and found < len(block.items)):
            raise ValueError(f"{path}: holds {found} items, expected {len(block.items)}")
    except ValueError as error:
        logger.warning("%s is not whole, so it is encoded anew: %s", path, error.__cause__ or error)
        return False
    return True
