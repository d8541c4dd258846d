"""The discriminator of pictures: it judges patches, so that texture counts and not the whole.

Left out: batch normalisation, which its authors have.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tokenizer.discriminators import (
    Convolutions,
    Discriminator,
    DiscriminatorConfig,
    Judgement,
    channels_of,
    receptive_field,
)
from tokenizer.variants import require


@dataclass(frozen=True)
class PatchConfig(DiscriminatorConfig, kind="patch"):
    """Patches of pictures, as many as fit."""

    modality: ClassVar[str] = "image"

    width: int = 64
    """Channels of the first layer; each further one has twice as many, up to 8 times."""
    layers: int = 2
    """Layers that halve the picture: 2 see patches of 26 pixels, 3 of 54."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.layers <= 6, f"layers is {self.layers}, expected 1 to 6")

    def build(self, channels: int) -> "Patch":
        return Patch(self, channels)


class Patch(Discriminator):
    """Convolutions that each halve the picture, then two that do not; a logit for every patch (Isola et al.
    2017, arXiv 1611.07004, section 3.2.2)."""

    def __init__(self, config: PatchConfig, channels: int) -> None:
        super().__init__()
        layers, last = [], channels
        for i in range(config.layers):
            width = channels_of(i, config.width)
            layers.append(nn.Conv2d(last, width, 4, stride=2, padding=1))
            last = width
        width = channels_of(config.layers, config.width)
        layers.append(nn.Conv2d(last, width, 3, padding=1))
        logits = nn.Conv2d(width, 1, 3, padding=1)
        self.least_size = receptive_field([*layers, logits], 0)
        self.convolutions = Convolutions(layers, logits)

    def forward(self, x: Tensor) -> Judgement:
        return [self.convolutions(x)]
