"""The contract of discriminators, which tell data from what a decoder makes, and the registry that finds
them.

Left out: the discriminators themselves. Each is one file beside this one; a new file is found without
touching others. What they are trained by is in `tokenizer.adversarial`.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tokenizer.hub.model import HubModel
from tokenizer.variants import Variant, require

# Of each view that a discriminator has of x: the activations of its layers (B, channels, ...), the last of
# which are its logits (B, 1, ...), high for data and low for what a decoder made.
Judgement = list[list[Tensor]]

SLOPE = 0.2


class Discriminator(nn.Module):
    """Judges x (B, channels, *size), example by example: there is no normalisation over a batch, with which
    one process and two would differ."""

    # Samples (or pixels) along each axis below which there is nothing to judge.
    least_size: int

    def forward(self, x: Tensor) -> Judgement:
        """x: (B, channels, *size) → what it makes of each of its views."""
        raise TypeError(f"{type(self).__name__} does not define forward")


@dataclass(frozen=True)
class DiscriminatorConfig(Variant):
    """Base of the discriminators' configs."""

    home: ClassVar[str] = __name__
    # The data that it is for.
    modality: ClassVar[str] = ""
    # Whether it is taken where none is named: not if it needs a package that may not be installed.
    by_default: ClassVar[bool] = True

    width: int = 32
    """Channels of the first layer; later ones have more."""

    def __post_init__(self) -> None:
        require(1 <= self.width <= 1024, f"width is {self.width}, expected 1 to 1024")

    def build(self, channels: int) -> Discriminator:
        """The discriminator of this config, for data of so many channels."""
        raise TypeError(f"{type(self).__name__} does not define build")


def kinds(modality: str) -> dict[str, type[DiscriminatorConfig]]:
    """The registered configs for data of a modality, by name."""
    members: dict[str, Any] = DiscriminatorConfig.members()
    return {name: config for name, config in sorted(members.items()) if config.modality == modality}


@dataclass(frozen=True)
class JuryConfig:
    """Several discriminators of the same data."""

    modality: str
    """What the data are."""
    channels: int
    """Channels of the data."""
    members: tuple[DiscriminatorConfig, ...]
    """The discriminators."""

    def __post_init__(self) -> None:
        require(self.channels >= 1, f"channels is {self.channels}, expected 1 or more")
        require(len(self.members) > 0, "members is empty, expected at least one discriminator")
        known = kinds(self.modality)
        require(bool(known), f"there are no discriminators for modality {self.modality!r}")
        for member in self.members:
            require(
                member.kind in known,
                f"discriminator {member.kind} is not for modality {self.modality}; known: {', '.join(known)}",
            )

    @classmethod
    def of(cls, modality: str, channels: int, names: tuple[str, ...] = (), width: int | None = None) -> Self:
        """The discriminators of these names, or those that the modality has by default; `width`: of all their
        first layers. `ValueError` for an unknown name."""
        known = kinds(modality)
        for name in names:
            require(
                name in known,
                f"unknown discriminator {name!r} for modality {modality}; known: {', '.join(known)}",
            )
        usual = [name for name, config in known.items() if config.by_default]
        members = [known[name]() for name in names or usual]
        if width is not None:
            members = [replace(member, width=width) for member in members]
        return cls(modality, channels, tuple(members))


class Jury(HubModel):
    """Several discriminators as one model: x (B, channels, *size) → the views of all of them."""

    model_type = "tokenloom-discriminator"
    config_class = JuryConfig
    config: JuryConfig

    def __init__(self, config: JuryConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(member.build(config.channels) for member in config.members)

    @property
    def least_size(self) -> int:
        """Samples (or pixels) along each axis that all of them need."""
        return max(member.least_size for member in self._each())

    def forward(self, x: Tensor) -> Judgement:
        """In at least float32, whatever autocast says: losses of a few logits are not worth rounding them."""
        if x.shape[1] != self.config.channels:
            raise ValueError(f"expected x (B, {self.config.channels}, *size), got {tuple(x.shape)}")
        if min(x.shape[2:]) < self.least_size:
            raise ValueError(
                f"x is {tuple(x.shape[2:])}, but the discriminators need {self.least_size} along each axis; "
                "take larger training items, or other discriminators"
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return [view for member in self._each() for view in member(x)]

    def _each(self) -> list[Discriminator]:
        return [member for member in self.members if isinstance(member, Discriminator)]

    def card_fields(self) -> dict[str, Any]:
        kinds_of = ", ".join(member.kind for member in self.config.members)
        return {
            "tags": [self.config.modality],
            "summary": f"Discriminators ({kinds_of}) that a decoder was trained against; a tokenizer needs "
            "none of them, and further training goes on from them.",
            "usage": "accelerate launch pipelines/train_decoder.py --discriminator THIS_FOLDER ...",
        }


class Convolutions(nn.Module):
    """Layers with weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868), as Kumar et al. 2023
    (arXiv 2306.06546) have them, and leaky ReLUs between: x → the activations of all, and then the logits."""

    def __init__(self, layers: list[nn.Conv2d], logits: nn.Conv2d) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.logits = weight_norm(logits)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            found.append(x)
        return [*found, self.logits(x)]


def receptive_field(layers: list[nn.Conv2d], axis: int) -> int:
    """Steps of the input that one of the output sees, along an axis."""
    reach, stride = 1, 1
    for layer in layers:
        reach += (layer.kernel_size[axis] - 1) * layer.dilation[axis] * stride
        stride *= layer.stride[axis]
    return reach


def channels_of(layer: int, width: int, most: int = 8) -> int:
    """Channels of a layer (from 0) where each has twice those of the one before it, up to `most` times the
    first one's."""
    return width * min(most, 1 << layer)
