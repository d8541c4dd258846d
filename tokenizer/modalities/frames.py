"""Networks for sound of which nearly all work happens once per frame: blocks between a short-time Fourier
transform and its inverse.

Left out: the layers (`tokenizer/layers_1d.py`), and the transform (`tokenizer/lapped.py`).
"""

from typing import NamedTuple

from tokenizer.lapped import InverseSTFT, Spectrum
from tokenizer.layers_1d import GELU, Chain, ChannelNorm, Conv, Layer, Network, Residual, Scale

# Channels inside a block, for each of those between blocks.
EXPANSION = 2


class FramesOptions(NamedTuple):
    """What both networks have in common: channels of the sound, samples per frame `hop`, channels `dim` and
    number `depth` of the blocks, and frames under their convolutions."""

    channels: int
    hop: int
    dim: int
    depth: int
    kernel: int
    causal: bool


def frames_encoder(options: FramesOptions, out_channels: int) -> Network:
    """(B, channels, t · hop) → (B, out_channels, t). A frame is made of its own samples and half as many on
    each side (causal: as many before)."""
    dim = options.dim
    spectrum = Spectrum(options.channels, options.hop, options.causal)
    front: list[Layer] = [spectrum, Conv(options.channels * 3 * spectrum.bins, dim, 1), ChannelNorm(dim)]
    return Network([*front, *_blocks(options), ChannelNorm(dim), Conv(dim, out_channels, 1)])


def frames_decoder(options: FramesOptions, in_channels: int) -> Network:
    """(B, in_channels, t) → (B, channels, t · hop)."""
    dim = options.dim
    front: list[Layer] = [Conv(in_channels, dim, options.kernel, causal=options.causal), ChannelNorm(dim)]
    end = InverseSTFT(options.channels, options.hop, options.causal)
    head = Conv(dim, options.channels * 2 * end.bins, 1)
    return Network([*front, *_blocks(options), ChannelNorm(dim), head, end])


def _blocks(options: FramesOptions) -> list[Layer]:
    """ConvNeXt blocks over time (Liu et al. 2022, arXiv 2201.03545, section 2; layer scale as in arXiv
    2306.00814)."""
    dim, depth = options.dim, options.depth
    blocks: list[Layer] = []
    for _ in range(depth):
        mixed = Conv(dim, dim, options.kernel, causal=options.causal, groups=dim)
        wide, narrow = Conv(dim, EXPANSION * dim, 1), Conv(EXPANSION * dim, dim, 1)
        body: list[Layer] = [mixed, ChannelNorm(dim), wide, GELU(), narrow, Scale(dim, 1 / depth)]
        blocks.append(Residual(Chain(body)))
    return blocks
