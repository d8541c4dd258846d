"""The discriminator of sound by its waveform: every p-th sample beside each other, for several periods p.

Left out: the multi-scale discriminator of older vocoders, which spectra do better (`stft.py`).
"""

from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.discriminators import Convolutions, Discriminator, DiscriminatorConfig, Judgement
from tokenizer.variants import require

# Periods under a convolution; shorter sound has none that it would see whole.
KERNEL = 5


@dataclass(frozen=True)
class PeriodConfig(DiscriminatorConfig, kind="period"):
    """Samples a period apart, for several periods."""

    modality: ClassVar[str] = "audio"

    width: int = 32
    """Channels of the first layer; each further one has 4 times as many, up to 32 times."""
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """The periods, in samples; primes, so that they overlap as little as they can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.periods) > 0, "periods is empty, expected one or more")
        require(
            all(2 <= p <= 1024 for p in self.periods), f"periods are {self.periods}, expected 2 to 1024 each"
        )

    def build(self, channels: int) -> "Period":
        return Period(self, channels)


class Period(Discriminator):
    """For each period p the signal as a picture (T / p, p), convolved along time alone (Kong et al. 2020,
    arXiv 2010.05646, section 2.3)."""

    def __init__(self, config: PeriodConfig, channels: int) -> None:
        super().__init__()
        self.periods = config.periods
        self.views = nn.ModuleList()
        for _ in config.periods:
            layers, last = [], channels
            for i in range(4):
                width = config.width * min(4**i, 32)
                layers.append(nn.Conv2d(last, width, (KERNEL, 1), (3, 1), padding=(KERNEL // 2, 0)))
                last = width
            layers.append(nn.Conv2d(last, last, (KERNEL, 1), padding=(KERNEL // 2, 0)))
            logits = nn.Conv2d(last, 1, (3, 1), padding=(1, 0))
            self.views.append(Convolutions(layers, logits))
        self.least_size = KERNEL * max(config.periods)

    def forward(self, x: Tensor) -> Judgement:
        return [view(folded(x, period)) for view, period in zip(self.views, self.periods, strict=True)]


def folded(x: Tensor, period: int) -> Tensor:
    """x (B, C, T) → (B, C, ceil(T / period), period), zeros after the end."""
    return rearrange(F.pad(x, (0, -x.shape[2] % period)), "b c (t p) -> b c t p", p=period)
