"""The config of a tokenizer: its modality, its bottleneck and the weights of its losses.

Left out: the configs of single modalities and bottlenecks, which stand in their files.
"""

from dataclasses import dataclass, field

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.losses import default_weights, describe_losses, validate_weights
from tokenizer.modalities import ModalityConfig
from tokenizer.modalities.image import ImageConfig


def _default_losses() -> dict[str, float]:
    return {**default_weights(), "l2": 1.0}


def _losses_help() -> str:
    return f"Weights of the reconstruction losses. {'; '.join(describe_losses())}."


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is made of."""

    modality: ModalityConfig = field(default_factory=ImageConfig)
    """What the data are, and the networks for them."""
    bottleneck: BottleneckConfig = field(default_factory=VQConfig)
    """Between encoder and decoder: a quantizer, or the Gaussian posterior of a VAE."""
    losses: dict[str, float] = field(default_factory=_default_losses, metadata={"help": _losses_help()})
    """Weights of the reconstruction losses, by name."""

    def __post_init__(self) -> None:
        validate_weights(self.losses, self.modality.kind)
        self.modality.check_losses({name for name, weight in self.losses.items() if weight > 0})
