"""A discriminator of pictures that looks through a frozen network, so that little is left to learn and small
data go further.

Left out: the network's weights in what is saved; they come with a package, and loading checks them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tokenizer.anti_aliased import BLOCKS, STLPIPS, STLPIPS_LAYERS, stlpips_network
from tokenizer.discriminators import Convolutions, Discriminator, DiscriminatorConfig, Judgement
from tokenizer.perceptual import MEAN, STD
from tokenizer.variants import require


@dataclass(frozen=True)
class FeaturesConfig(DiscriminatorConfig, kind="features"):
    """What a frozen network sees in pictures."""

    modality: ClassVar[str] = "image"
    by_default: ClassVar[bool] = False

    width: int = 64
    """Channels of each layer that is trained."""
    network: str = STLPIPS
    """The frozen network; its weights come with a package, and are checked by their hash."""
    blocks: tuple[int, ...] = (1, 2, 3)
    """Blocks of the network whose last layer is looked at; each halves the picture but for the first one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.network == STLPIPS, f"network is {self.network!r}, expected {STLPIPS}")
        known = range(1, len(BLOCKS) + 1)
        rising = list(self.blocks) == sorted(set(self.blocks) & set(known))
        require(
            rising and len(self.blocks) > 0,
            f"blocks are {self.blocks}, expected some of 1 to {len(BLOCKS)}, rising",
        )

    def build(self, channels: int) -> "Features":
        return Features(self, channels)


class Features(Discriminator):
    """Three small convolutions on each of some blocks of a frozen network: a logit for every place of every
    block (Sauer et al. 2021, arXiv 2111.01007, section 3.1; without their random mixing of blocks and scales,
    which was not tried).

    The network sees pictures of three channels as they are, and each channel of others as a grey picture.
    """

    def __init__(self, config: FeaturesConfig, channels: int) -> None:
        super().__init__()
        self.blocks, self.grey = config.blocks, channels != len(MEAN)
        # One value of the last block is left.
        self.least_size = 2 ** (max(config.blocks) - 1)
        self.heads = nn.ModuleList(head(BLOCKS[block - 1][-1], config.width) for block in config.blocks)
        self.make_unsaved()

    def make_unsaved(self) -> None:
        """The frozen network, up to the last block that is looked at; in a tuple, where nn.Module does not
        see it: it is neither saved nor trained."""
        with torch.device("cpu"):
            whole = stlpips_network(STLPIPS)
        self._frozen = (whole[: STLPIPS_LAYERS[max(self.blocks) - 1] + 1].eval(),)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._frozen[0]._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor) -> Judgement:
        if not self.grey:
            return self._judged(x)
        return [view for channel in x.split(1, 1) for view in self._judged(channel.expand(-1, 3, -1, -1))]

    def _judged(self, x: Tensor) -> Judgement:
        """x: (B, 3, H, W) in [-1, 1] → a view for each block."""
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
        x = ((x + 1) / 2 - mean) / std
        looked_at = [STLPIPS_LAYERS[block - 1] for block in self.blocks]
        found: Judgement = []
        for i, layer in enumerate(self._frozen[0]):
            x = layer(x)
            if i in looked_at:
                found.append(self.heads[len(found)](normalised(x)))
        return found


def head(channels: int, width: int) -> Convolutions:
    """What is trained of a block: it sees a place first, then its neighbours and theirs."""
    layers = [nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 3, padding=1)]
    return Convolutions(layers, nn.Conv2d(width, 1, 3, padding=1))


def normalised(f: Tensor) -> Tensor:
    """f (B, C, H, W), blocks of very different sizes, at a mean square of 1 at every place, as in the
    perceptual distance."""
    return f * torch.rsqrt(f.square().mean(1, keepdim=True) + 1e-6)
