"""Small data sets of tokens, and what they say of themselves.

Left out: tests.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.tokens.info import TokenInfo, write_info
from pipelines.tokens.shards import write_shard
from tokenizer.distributed import keyed_generator

INFO = TokenInfo(
    tokenizer="runs/tok",
    fingerprint="0123456789abcdef",
    codebook_size=50,
    num_codebooks=2,
    grid=(2, 3),
    item_shape=(3, 8, 12),
    class_names=("cat", "dog"),
    source="pets",
)


def info_with(**changes: Any) -> TokenInfo:
    return TokenInfo(**{**INFO.__dict__, **changes})


def some_codes(count: int, info: TokenInfo = INFO, key: int = 0) -> Tensor:
    shape = (count, info.num_codebooks, *info.grid)
    return torch.randint(info.codebook_size, shape, generator=keyed_generator(key))


def write(
    folder: Path, codes: Any, labels: Any = None, info: TokenInfo = INFO, split: str = "train", **at: int
) -> Path:
    """One shard (by default the only one) and tokens.json."""
    folder.mkdir(exist_ok=True)
    labels = np.full(len(codes), -1) if labels is None else np.asarray(labels)
    shard, shards = at.get("shard", 0), at.get("shards", 1)
    ids = [f"{split}:{shard}:{i}" for i in range(len(codes))]
    path = write_shard(folder, split, shard, shards, info, codes, labels.astype(np.int64), ids)
    write_info(folder, info)
    return path


SOUND = TokenInfo(
    tokenizer="runs/tok",
    fingerprint="0123456789abcdef",
    codebook_size=50,
    num_codebooks=3,
    grid=(),
    item_shape=(1,),
    class_names=("cat", "dog"),
    source="calls",
    frame_rate=50.0,
    sample_rate=16000,
    stride=320,
)


def some_clips(*lengths: int, info: TokenInfo = SOUND, key: int = 0) -> list[Tensor]:
    """Codes (K, t) of one clip for each length."""
    codes = torch.randint(
        info.codebook_size, (info.num_codebooks, sum(lengths)), generator=keyed_generator(key)
    )
    return list(codes.split(lengths, dim=1))
