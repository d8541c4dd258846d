"""Codes longer than a prior's grid: windows that begin with the end of what is there.

Left out: drawing within a window (`Prior.sample`), and turning codes into sound.
"""

from typing import Unpack

import torch
from torch import Tensor

from prior.checks import Array, Label, as_codes, check_prefix
from prior.model import Prior
from prior.sampling.choice import SamplingOptions, generator_of


def continue_codes(
    prior: Prior,
    batch_size: int,
    frames: int,
    label: Label = None,
    prefix: Array | None = None,
    overlap: int | None = None,
    generator: torch.Generator | int | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """Draw codes (batch_size, K, frames, *grid[1:]) int64 of any number of frames (rows of a picture).

    The first window of grid[0] frames is drawn as `Prior.sample` does, each further one with the last
    `overlap` frames (left out: half of the window) as its prefix. This is an approximation: a window forgets
    all that lies before its prefix, and takes that for its beginning. A larger overlap forgets less and costs
    more. `prefix` (batch_size or 1, K, n, *grid[1:]), of any length up to `frames`, begins the result.
    `label` and `options` are those of `Prior.sample`, in every window.

    Each example has a stream of its own, seeded from `generator`, so that neither the number of frames nor
    the other examples change what is drawn. Raises `ValueError` for an argument out of range.
    """
    window = prior.config.grid[0]
    overlap = window // 2 if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ValueError(
            f"overlap: expected 0 to {window - 1} frames (the window has {window}), got {overlap}"
        )
    codes = _begin(prior, batch_size, prefix)
    if frames < max(1, codes.shape[2]):
        least = f"{codes.shape[2]} (the prefix's) or more" if codes.shape[2] else "1 or more"
        raise ValueError(f"frames: expected {least}, got {frames}")
    generator = generator_of(generator)
    source = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(1 << 62, (batch_size,), generator=generator, device=source).tolist()
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    while codes.shape[2] < frames:
        done = codes.shape[2]
        # A prefix that leaves room in the window is seen whole.
        kept = done if done < window else overlap
        new = prior.sample(
            batch_size,
            label,
            codes[:, :, done - kept :],
            generator=streams,
            size=min(window, kept + frames - done),
            **options,
        )
        codes = torch.cat([codes, new[:, :, kept:]], dim=2)
    return codes


def _begin(prior: Prior, batch_size: int, prefix: Array | None) -> Tensor:
    """The codes (batch_size, K, n, *grid[1:]) before the first window, n 0 without a prefix."""
    config = prior.config
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    if prefix is None:
        prefix = torch.zeros((1, config.num_codebooks, 0, *config.grid[1:]), dtype=torch.int64)
    prefix = as_codes(prefix, prior.head.device, "prefix")
    # Checked here and not by the windows, which see only its end.
    length = prefix.shape[2] if prefix.ndim == len(config.grid) + 2 else 0
    shape = (config.num_codebooks, length, *config.grid[1:])
    check_prefix(prefix, config.codebook_size, shape, batch_size)
    return prefix.expand(batch_size, *shape)
