"""Codes of pictures in batches and of sound clip by clip, each in its views.

Left out: where they are written (`encode_dataset.py`).
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pipelines.data.augment import Augment
from pipelines.data.batches import NO_VIEWS, to_float
from pipelines.data.pictures import Examples
from pipelines.data.sounds import Clips
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator

logger = logging.getLogger(__name__)

# Samples of sound that are read at once.
BLOCK = 1 << 18


class Encoded(NamedTuple):
    """Codes of some items that follow each other, their labels (-1: none) and ids; `items` were looked at.

    codes: of pictures one tensor (items · views, K, h, w), of a sound one (K, t) for each view.
    """

    codes: list[Tensor]
    labels: list[int]
    ids: list[str]
    items: int


def picture_codes(
    tok: Tokenizer,
    examples: Examples,
    which: range,
    batch_size: int,
    views: int = 1,
    augment: Augment = NO_VIEWS,
    seed: int = 0,
) -> Iterator[Encoded]:
    """Codes of batches of pictures, the views of a picture one after the other, the plain one first. One that
    can no longer be read is left out, and named in the log."""
    for start in range(which.start, which.stop, batch_size):
        wanted = np.arange(start, min(start + batch_size, which.stop))
        x, label, index = examples.take_readable(wanted)
        if not len(x):
            yield Encoded([], [], [], len(wanted))
            continue
        seen = []
        for view in range(views):
            y = augment.fixed_view(x, index.numpy(), view, len(examples), seed)
            seen.append(tok.encode(to_float(y.to(tok.device))).cpu())
        codes = rearrange(seen, "v b ... -> (b v) ...")
        yield Encoded([codes], label.tolist(), [examples.id(i) for i in index.tolist()], len(wanted))


def sound_codes(
    tok: Tokenizer, clips: Clips, which: range, views: int = 1, seed: int = 0
) -> Iterator[Encoded]:
    """Codes of clip after clip, each alone and in chunks, so that they depend on nothing else and a clip may
    be longer than memory. One that can no longer be read is left out, and named in the log.

    The views of a clip but the first leave out its first samples, fewer than a frame has, a random number by
    (seed, view, clip): frames fall elsewhere, which gives other codes of the same sound.
    """
    for i in which:
        codes = []
        try:
            for view in range(views):
                skip = skipped_samples(min(tok.stride, clips.samples(i)), view, i, seed)
                blocks = (block[None].to(tok.device) for block in without_first(clips.blocks(i, BLOCK), skip))
                codes.append(torch.cat([part.cpu() for part in tok.encode_stream(blocks)], dim=2)[0])
        except (ValueError, OSError) as error:
            logger.warning("left out a sound that can no longer be read: %s", error)
            continue
        yield Encoded(codes, [-1 if clips.labels is None else int(clips.labels[i])], [clips.id(i)], 1)


def skipped_samples(most: int, view: int, clip: int, seed: int) -> int:
    """How many samples a view of a clip leaves out: fewer than `most`, none for view 0, else 1 or more."""
    if view == 0 or most < 2:
        return 0
    return int(torch.randint(1, most, (), generator=keyed_generator(seed, view, clip, "view")))


def without_first(blocks: Iterator[Tensor], skip: int) -> Iterator[Tensor]:
    """Blocks (C, t) of a sound without its first `skip` samples, which the first block has."""
    for block in blocks:
        yield block[:, skip:]
        skip = 0
