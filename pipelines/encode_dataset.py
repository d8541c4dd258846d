"""Turn a data set into tokens: `accelerate launch pipelines/encode_dataset.py --tokenizer DIR --output
DIR`.

Left out: VAEs, whose latents are not tokens.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.cli import parse, run
from pipelines.data import DataConfig, Examples, load_splits, to_float
from pipelines.report import progress
from pipelines.tokens import TOKENS_FILE, TokenInfo, write_info, write_shard
from pipelines.training import quiet_logging
from tokenizer import Tokenizer
from tokenizer.config import require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of encode_dataset.py."""

    tokenizer: str = "runs/tokenizer"
    """Folder or Hub id of the tokenizer."""
    output: Path = Path("runs/tokens")
    """Folder for the tokens."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to encode."""
    batch_size: int = 256
    """Items per forward pass and process; codes do not depend on it."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected 1 or more")


def main() -> None:
    """Encode both splits; every process writes its own shards, the main one tokens.json at the end."""
    options = parse(EncodeOptions, __doc__ or "")
    accelerator = Accelerator()
    quiet_logging(accelerator)
    tok = Tokenizer.from_pretrained(options.tokenizer).to(accelerator.device)
    if not tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} is a VAE and has no codes; draw from it with sample.py --tokenizer"
        )
    if (options.output / TOKENS_FILE).exists():
        raise ValueError(
            f"{options.output} already holds tokens; choose another --output or delete that folder"
        )
    splits = load_splits(options.data, tok.modality.fit)
    first = splits.train.x(0)
    info = TokenInfo(
        tokenizer=options.tokenizer,
        fingerprint=tok.fingerprint(),
        codebook_size=tok.codebook_size,
        num_codebooks=tok.num_codebooks,
        grid=tuple(tok.encode(to_float(first[None].to(accelerator.device))).shape[2:]),
        item_shape=tuple(first.shape),
        class_names=splits.class_names,
        source=splits.name,
    )
    accelerator.wait_for_everyone()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", splits.train), ("held_out", splits.held_out)):
        encode_split(accelerator, tok, examples, name, info, options)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_info(options.output, info)
        counts = f"{len(splits.train)} training and {len(splits.held_out)} held-out items"
        logger.info("%s as %s codes each, in %s", counts, info.codes_per_item, options.output)
    accelerator.end_training()


def encode_split(
    accelerator: Accelerator,
    tok: Tokenizer,
    examples: Examples,
    name: str,
    info: TokenInfo,
    options: EncodeOptions,
) -> None:
    """Encode this process's contiguous share of a split into one shard; shards in order give the split's
    order."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = range(len(examples) * rank // world, len(examples) * (rank + 1) // world)
    parts = [torch.zeros((0, info.num_codebooks, *info.grid), dtype=torch.int64)]
    labels, ids = [np.zeros(0, np.int64)], list[str]()
    bar = progress(len(mine), f"encode {name}", 0, accelerator.is_main_process)
    for start in range(mine.start, mine.stop, options.batch_size):
        # Labels and ids of what was read: a picture that turns out unreadable is replaced by its neighbour.
        x, label, index = examples.take(np.arange(start, min(start + options.batch_size, mine.stop)))
        parts.append(tok.encode(to_float(x.to(accelerator.device))).cpu())
        labels.append(label.numpy())
        ids += [examples.id(i) for i in index.tolist()]
        bar.update(len(index))
    bar.close()
    write_shard(options.output, name, rank, world, info, torch.cat(parts), np.concatenate(labels), ids)


if __name__ == "__main__":
    run(main)
