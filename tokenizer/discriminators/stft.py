"""The discriminator of sound by its spectra: complex transforms of several windows, judged by bands.

Left out: magnitudes alone, which cannot tell a buzz from a voice: phases stay.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizer.discriminators import Convolutions, Discriminator, DiscriminatorConfig, Judgement
from tokenizer.variants import require

# Borders of the bands, as shares of half the sample rate (Kumar et al. 2023, arXiv 2306.06546, section 3.3).
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class STFTConfig(DiscriminatorConfig, kind="stft"):
    """Short-time Fourier transforms of several windows, each in bands."""

    modality: ClassVar[str] = "audio"

    width: int = 32
    """Channels of all layers."""
    windows: tuple[int, ...] = (2048, 1024, 512)
    """Samples of the windows; each hops by a quarter of itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.windows) > 0, "windows is empty, expected one or more")
        require(
            all(64 <= w <= 1 << 14 and w % 4 == 0 for w in self.windows),
            f"windows are {self.windows}, expected multiples of 4 from 64 to 16384",
        )

    def build(self, channels: int) -> "STFT":
        return STFT(self, channels)


class STFT(Discriminator):
    """For each window, real and imaginary parts of the transform as channels of a picture of time and
    frequency, in bands with convolutions of their own (Kumar et al. 2023, arXiv 2306.06546, section 3.3)."""

    def __init__(self, config: STFTConfig, channels: int) -> None:
        super().__init__()
        self.windows = config.windows
        self.least_size = max(config.windows)
        self.views = nn.ModuleList(_Bands(2 * channels, config.width) for _ in config.windows)

    def forward(self, x: Tensor) -> Judgement:
        return [view(spectrum(x, window)) for view, window in zip(self.views, self.windows, strict=True)]


def spectrum(x: Tensor, window: int) -> Tensor:
    """x (B, C, T) → real and imaginary parts (B, 2 C, frames, window / 2 + 1), under a Hann window, scaled so
    that noise keeps its level."""
    hann = torch.hann_window(window, device=x.device, dtype=x.dtype)
    flat = rearrange(x, "b c t -> (b c) t")
    found = torch.stft(flat, window, window // 4, window, hann, pad_mode="constant", return_complex=True)
    parts = torch.view_as_real(found / hann.norm())
    return rearrange(parts, "(b c) f t p -> b (c p) t f", b=len(x))


class _Bands(nn.Module):
    """Convolutions for each band, whose frequencies shrink by 2 three times; then one logit layer for all."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.bands = nn.ModuleList(
            Convolutions(
                [
                    nn.Conv2d(channels, width, (3, 9), (1, 1), padding=(1, 4)),
                    *(nn.Conv2d(width, width, (3, 9), (1, 2), padding=(1, 4)) for _ in range(3)),
                    nn.Conv2d(width, width, (3, 3), padding=(1, 1)),
                ],
                nn.Conv2d(width, 1, (3, 3), padding=(1, 1)),
            )
            for _ in BANDS[1:]
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, 2 C, frames, bins) → activations of all bands, and the logits of all, (B, 1, frames, ...)."""
        bins = picture.shape[3]
        borders = [round(share * bins) for share in BANDS]
        found: list[Tensor] = []
        logits = []
        for band, low, high in zip(self.bands, borders[:-1], borders[1:], strict=True):
            *activations, last = band(picture[..., low:high])
            found += activations
            logits.append(last)
        return [*found, torch.cat(logits, dim=3)]
