"""Turn a data set into tokens: `accelerate launch pipelines/encode_dataset.py --tokenizer DIR --output
DIR`.

Left out: VAEs, whose latents are not tokens; `quantize_vae.py` gives them codes first.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.cli import parse, run
from pipelines.data import Clips, DataConfig, Examples, Splits, load_splits, to_float
from pipelines.report import progress
from pipelines.tokens import TOKENS_FILE, TokenInfo, write_info, write_shard
from pipelines.training import patient_accelerator, require_equal
from tokenizer import Tokenizer
from tokenizer.config import require

logger = logging.getLogger(__name__)

# Samples of sound that are read at once.
BLOCK = 1 << 18


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
    """Pictures per forward pass and process; codes do not depend on it. Sound: no effect, it goes clip by
    clip."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected 1 or more")


def main() -> None:
    """Encode both splits; every process writes its own shards, the main one tokens.json at the end."""
    options = parse(EncodeOptions, __doc__ or "")
    accelerator = patient_accelerator()
    tok = Tokenizer.from_pretrained(options.tokenizer).to(accelerator.device)
    if not tok.bottleneck.num_codebooks:
        raise ValueError(
            f"{options.tokenizer} is a VAE and has no codes; quantize_vae.py gives it some, and sample.py "
            "--tokenizer draws from it as it is"
        )
    if (options.output / TOKENS_FILE).exists():
        raise ValueError(
            f"{options.output} already holds tokens; choose another --output or delete that folder"
        )
    splits = load_splits(options.data, tok.modality)
    require_equal(accelerator, splits.digest(), "the data")
    info = describe_tokens(options, tok, splits)
    accelerator.wait_for_everyone()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", splits.train), ("held_out", splits.held_out)):
        encode_split(accelerator, tok, examples, name, info, options)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_info(options.output, info)
        counts = f"{len(splits.train)} training and {len(splits.held_out)} held-out items"
        what = f"{info.codes_per_item} codes each"
        if info.is_sound:
            what = f"{info.frame_rate:g} frames of {info.num_codebooks} codes per second"
        logger.info("%s as %s, in %s", counts, what, options.output)
    accelerator.end_training()


def describe_tokens(options: EncodeOptions, tok: Tokenizer, splits: Splits) -> TokenInfo:
    """What tokens.json says of the codes."""
    if isinstance(splits.train, Clips):
        rate = tok.modality.sample_rate
        item_shape, grid = (tok.modality.channels,), ()
        time = {"frame_rate": rate / tok.stride, "sample_rate": rate, "stride": tok.stride}
    else:
        first = splits.train.x(0)
        item_shape, time = tuple(first.shape), {}
        grid = tuple(tok.encode(to_float(first[None].to(tok.device))).shape[2:])
    return TokenInfo(
        tokenizer=options.tokenizer,
        fingerprint=tok.fingerprint(),
        codebook_size=tok.codebook_size,
        num_codebooks=tok.num_codebooks,
        grid=grid,
        item_shape=item_shape,
        class_names=splits.class_names,
        source=splits.name,
        **time,
    )


def encode_split(
    accelerator: Accelerator,
    tok: Tokenizer,
    examples: Examples | Clips,
    name: str,
    info: TokenInfo,
    options: EncodeOptions,
) -> None:
    """Encode this process's contiguous share of a split into one shard; shards in order give the split's
    order."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = range(len(examples) * rank // world, len(examples) * (rank + 1) // world)
    bar = progress(len(mine), f"encode {name}", 0, accelerator.is_main_process)
    if isinstance(examples, Clips):
        parts = sound_codes(tok, examples, mine)
    else:
        parts = picture_codes(tok, examples, mine, options.batch_size)
    codes, labels, ids = list[Tensor](), list[int](), list[str]()
    for part in parts:
        codes.append(part.codes)
        labels += part.labels
        ids += part.ids
        bar.update(part.items)
    bar.close()
    if info.grid:
        empty = torch.zeros((0, info.num_codebooks, *info.grid), dtype=torch.int64)
        column: Tensor | list[Tensor] = torch.cat([empty, *codes])
    else:
        column = codes
    write_shard(options.output, name, rank, world, info, column, np.array(labels, np.int64), ids)


class Encoded(NamedTuple):
    """Codes of some items that follow each other, their labels (-1: none) and ids; `items` were looked at."""

    codes: Tensor
    labels: list[int]
    ids: list[str]
    items: int


def picture_codes(tok: Tokenizer, examples: Examples, which: range, batch_size: int) -> Iterator[Encoded]:
    """Codes (b, K, h, w) of batches of pictures."""
    for start in range(which.start, which.stop, batch_size):
        # Labels and ids of what was read: a picture that turns out unreadable is replaced by its neighbour.
        x, label, index = examples.take(np.arange(start, min(start + batch_size, which.stop)))
        codes = tok.encode(to_float(x.to(tok.device))).cpu()
        yield Encoded(codes, label.tolist(), [examples.id(i) for i in index.tolist()], len(index))


def sound_codes(tok: Tokenizer, clips: Clips, which: range) -> Iterator[Encoded]:
    """Codes (K, t) of clip after clip, each alone and in chunks, so that they depend on nothing else and a
    clip may be longer than memory. One that can no longer be read is left out, and named in the log."""
    for i in which:
        try:
            blocks = (block[None].to(tok.device) for block in clips.blocks(i, BLOCK))
            codes = torch.cat([part.cpu() for part in tok.encode_stream(blocks)], dim=2)[0]
        except (ValueError, OSError) as error:
            logger.warning("left out a sound that can no longer be read: %s", error)
            continue
        yield Encoded(codes, [-1 if clips.labels is None else int(clips.labels[i])], [clips.id(i)], 1)


if __name__ == "__main__":
    run(main)
