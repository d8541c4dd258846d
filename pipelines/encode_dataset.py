"""Turn a data set into tokens: `accelerate launch pipelines/encode_dataset.py --tokenizer DIR --output
DIR`. If it is interrupted, the same command encodes what is missing, with any number of processes.

Left out: VAEs, whose latents are not tokens; `quantize_vae.py` gives them codes first.
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.augment import NO_VIEWS, Augment
from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import KINDS, FixedViews, Split
from pipelines.run.command_line import parse, run
from pipelines.run.folder import claimed_folder, require_writable
from pipelines.run.models import load_tokenizer
from pipelines.run.processes import load_alike, meet, on_main, plain_accelerator
from pipelines.run.progress import progress
from pipelines.tokens.info import MAX_VIEWS, TokenInfo, write_info
from pipelines.tokens.plan import (
    Encoding,
    ShardBlock,
    block_size,
    claim_encoding,
    plan_blocks,
    refuse_finished,
)
from pipelines.tokens.shards import write_shard
from tokenizer import Tokenizer
from tokenizer.variants import at_least, require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of encode_dataset.py."""

    tokenizer: str = "runs/tokenizer"
    """Folder or Hub id of the tokenizer (ID:FOLDER for one in a folder within), or embedded:NAME."""
    output: Path = Path("runs/tokens")
    """Folder for the tokens."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to encode."""
    batch_size: int = 256
    """Pictures per forward pass and process; codes do not depend on it. Sound: no effect, it goes clip by
    clip."""
    views: int = 1
    """Codes that every training item gets: its own, and those of --views - 1 augmented views, which a prior
    sees in turn, one in every epoch. Pictures: as --augment.* says. Sound: begun up to a frame later."""
    augment: Augment = field(default_factory=Augment)
    """How further views of training pictures differ."""
    seed: int = 0
    """Decides the random part of further views."""
    tf32: bool = False
    """Let a GPU use TF32, faster: codes then depend on --batch-size and the GPU."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "seed")
        require(1 <= self.views <= MAX_VIEWS, f"views is {self.views}, expected 1 to {MAX_VIEWS}")


def main() -> None:
    """Encode both splits in blocks, a shard each, which the processes take in turn; the main one writes
    tokens.json at the end."""
    options = parse(EncodeOptions, __doc__ or "")
    accelerator = plain_accelerator(options)
    tok = load_alike(
        accelerator,
        "the tokenizer's weights",
        lambda: load_tokenizer(options.tokenizer),
        Tokenizer.fingerprint,
    ).to(accelerator.device)
    if not tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} is a VAE and has no codes; quantize_vae.py gives it some, and sample.py "
            "--tokenizer draws from it as it is"
        )
    tok.tf32 = options.tf32
    check_views(options, tok)
    refuse_finished(options.output)
    on_main(accelerator, lambda: require_writable(options.output))
    splits = load_alike(
        accelerator, "the data", lambda: load_splits(options.data, tok.modality), Splits.digest
    )
    blocks = plan_blocks(splits, options.views)
    encoding = describe_encoding(options, tok, splits, blocks)
    info = describe_tokens(options, tok, splits, encoding)

    def claim() -> list[int]:
        return claim_encoding(options.output, encoding, info, blocks)

    with claimed_folder(accelerator, options.output, claim) as missing:
        mine = [blocks[i] for i in missing[accelerator.process_index :: accelerator.num_processes]]
        bar = progress(sum(len(b.items) for b in mine), "encode", 0, accelerator.is_main_process)
        for block in mine:
            examples = splits.train if block.split == "train" else splits.held_out
            encode_block(tok, examples, block, info, options, bar.update)
        bar.close()
        meet(accelerator)
        if accelerator.is_main_process:
            write_info(options.output, info)
            counts = f"{len(splits.train)} training and {len(splits.held_out)} held-out items"
            counts += f", the former in {info.views} views," if info.views > 1 else ""
            what = f"{info.codes_per_item} codes each"
            if not info.grid:
                what = f"{info.frame_rate:g} frames of {info.num_codebooks} codes per second"
            logger.info("%s as %s, in %s", counts, what, options.output)
    accelerator.end_training()


def check_views(options: EncodeOptions, tok: Tokenizer) -> None:
    """`ValueError` if views would be equal; says which options have no effect."""
    kind = KINDS.of(tok.modality)
    if options.augment != NO_VIEWS and not kind.augmented:
        logger.warning("--augment.* has no effect on %s: their views begin at other samples", kind.many)
    elif options.augment != NO_VIEWS and options.views == 1:
        logger.warning("--augment.* has no effect with --views 1: the only view is the %s as it is", kind.one)
    elif kind.augmented:
        options.augment.require_views(options.views)


def describe_encoding(
    options: EncodeOptions, tok: Tokenizer, splits: Splits, blocks: list[ShardBlock]
) -> Encoding:
    """What encoding.json says: all that decides what is in the shards."""
    encoding = Encoding(
        tokenizer=tok.fingerprint(),
        source=splits.name,
        data=splits.digest(),
        config=options.data.config,
        split=options.data.split,
        test_split=options.data.test_split,
        column=options.data.column,
        label_column=options.data.label_column,
        train=len(splits.train),
        held_out=len(splits.held_out),
        block=block_size(splits.train, options.views),
        train_shards=sum(b.split == "train" for b in blocks),
        held_out_shards=sum(b.split == "held_out" for b in blocks),
        views=options.views,
        tf32=options.tf32,
    )
    if options.views == 1:
        return encoding
    seen = options.augment if splits.train.kind.augmented else NO_VIEWS
    return dataclasses.replace(encoding, flip=seen.flip, shift=seen.shift, seed=options.seed)


def describe_tokens(options: EncodeOptions, tok: Tokenizer, splits: Splits, encoding: Encoding) -> TokenInfo:
    """What tokens.json says of the codes."""
    return TokenInfo(
        tokenizer=options.tokenizer,
        fingerprint=tok.fingerprint(),
        codebook_size=tok.codebook_size,
        num_codebooks=tok.num_codebooks,
        class_names=splits.class_names,
        source=splits.name,
        views=options.views,
        encoding=encoding.digest(),
        shards=(encoding.train_shards, encoding.held_out_shards),
        license=tok.license,
        **splits.train.layout(tok)._asdict(),
    )


def encode_block(
    tok: Tokenizer,
    examples: Split,
    block: ShardBlock,
    info: TokenInfo,
    options: EncodeOptions,
    done: Callable[[int], object],
) -> None:
    """Encode the items of a block into its shard; `done` is told how many were looked at, as they are."""
    views = FixedViews(block.views, options.augment, options.seed)
    codes, labels, ids = list[Tensor](), list[int](), list[str]()
    for part in examples.codes(tok, block.items, options.batch_size, views):
        codes += part.codes
        labels += part.labels
        ids += part.ids
        done(part.items)
    if left_out := len(block.items) - len(labels):
        text = "%d of %d %s items are left out of shard %d, because they can no longer be read"
        logger.warning(text, left_out, len(block.items), block.split, block.shard)
    column: Tensor | list[Tensor] = codes
    if info.grid:
        column = torch.cat([torch.zeros((0, info.num_codebooks, *info.grid), dtype=torch.int64), *codes])
    place = (options.output, block.split, block.shard, block.shards)
    write_shard(*place, info, column, np.array(labels, np.int64), ids, block.views)


if __name__ == "__main__":
    run(main)
