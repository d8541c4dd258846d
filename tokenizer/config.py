"""The config of a tokenizer: its modality, its bottleneck and the weights of its losses.

Left out: the configs of single modalities and bottlenecks, which stand in their files.
"""

from dataclasses import dataclass, field, fields

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.losses import default_weights, describe_losses, validate_weights
from tokenizer.modalities import ModalityConfig
from tokenizer.modalities.image import ImageConfig
from tokenizer.variants import require


@dataclass(frozen=True)
class DecoderConfig:
    """Where a decoder is not the mirror of its encoder. No code depends on it."""

    widths: tuple[int, ...] | None = None
    """Channels per level, from the finest; left out, those of the encoder."""
    blocks: tuple[int, ...] | None = None
    """Residual blocks per level, from the finest; left out, those of the encoder."""
    deeper: int = 0
    """Pictures: residual blocks that each level has beyond those."""

    network: str | None = None
    """Sound: `waveform`, or `frames`, which has `dim` and `depth` in place of `widths` and `blocks`. Left
    out, that of the encoder."""
    dim: int | None = None
    """Channels of the network `frames`."""
    depth: int | None = None
    """Residual blocks of the network `frames`."""

    def applied(self, modality: ModalityConfig) -> ModalityConfig:
        """The config of a modality whose mirror is this decoder. `ValueError` for one that cannot be."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "deeper"}
        changes = {name: value for name, value in given.items() if value is not None}
        try:
            require(self.deeper >= 0, f"deeper is {self.deeper}, expected 0 or more")
            if self.deeper:
                if not isinstance(modality, ImageConfig):
                    own = "tokenloom's own networks of pictures"
                    raise ValueError(f"deeper is {self.deeper}, but only {own} can be; give 0")
                changes["blocks"] = tuple(n + self.deeper for n in self.blocks or modality.blocks)
            return modality.with_networks(**changes) if changes else modality
        except ValueError as error:
            raise ValueError(f"decoder: {error}") from error


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
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoder, where it differs from the encoder."""

    def __post_init__(self) -> None:
        validate_weights(self.losses, self.modality.kind)
        self.decoder.applied(self.modality)
        self.modality.check_losses({name for name, weight in self.losses.items() if weight > 0})
