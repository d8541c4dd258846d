"""Series of several channels over time, such as a robot's joints or biosignals, and the way from files of
`numpy.save` to tensors and back.

Left out: its networks (`signals.py`), reading files (`files/series.py`), and other rates than the model's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.modalities import CardWords, ModalityConfig
from tokenizer.modalities.files.series import Series
from tokenizer.modalities.signals import SignalModality, check_networks
from tokenizer.variants import require


@dataclass(frozen=True)
class SeriesConfig(ModalityConfig, kind="series"):
    """Series of several channels, and the convolutional networks for them."""

    channels: int = 3
    """Channels of every series."""
    sample_rate: int = 100
    """Samples per second; files do not know it, so all are taken to have it."""
    size: tuple[int] = (256,)
    """Samples of a training crop. A trained model takes any length."""
    scale: tuple[float, ...] = (1.0,)
    """Largest magnitude of the values, of all channels or of each: they are divided by it and clamped."""
    strides: tuple[int, ...] = (2, 2, 2)
    """Reduction per level; their product is samples per code."""
    widths: tuple[int, ...] = (48, 64, 96)
    """Channels of the networks per level, from the finest."""
    blocks: tuple[int, ...] = (1, 1, 2)
    """Residual blocks per level, from the finest."""
    kernel: int = 7
    """Steps under the first convolution of a residual block."""
    activation: Literal["snake", "elu"] = "elu"
    """ELU, or snake, which carries periods well (Ziyin et al. 2020)."""
    causal: bool = False
    """Let no sample see later ones, so that streaming lags by one frame only."""
    weight_norm: bool = False
    """Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868), for --optimizer adamw only."""

    def __post_init__(self) -> None:
        require(1 <= self.channels <= 4096, f"channels is {self.channels}, expected 1 to 4096")
        require(1 <= self.sample_rate <= 10**6, f"sample_rate is {self.sample_rate}, expected 1 to 10^6 Hz")
        require(1 <= self.size[0] <= 1 << 26, f"size is {self.size}, expected 1 to 2^26 samples")
        require(
            len(self.scale) in (1, self.channels) and all(0 < s < float("inf") for s in self.scale),
            f"scale is {self.scale}, expected a number above 0, or one for each of {self.channels} channels",
        )
        check_networks(self)

    def build(self) -> "SeriesModality":
        return SeriesModality(self)


class SeriesModality(SignalModality):
    """Series x: (B, channels, T) in [-1, 1]."""

    name, many = "series", "series"
    pipeline_tag = "feature-extraction"

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__(config)
        self.scale = config.scale

    def opened(self, source: Any, most: int | None) -> Tensor:
        with Series(source, self.channels, self.scale) as series:
            return torch.from_numpy(series.read(0, None if most is None else min(most, series.length)))

    def postprocess(self, x_hat: Tensor) -> list[NDArray[np.float32]]:
        """x_hat (B, channels, T) as arrays (channels, T) float32 in the units of the files."""
        if x_hat.ndim != 3 or x_hat.shape[1] != self.channels:
            raise ValueError(f"expected (B, {self.channels}, T), got {tuple(x_hat.shape)}")
        scale = np.array(self.scale, np.float32)[:, None]
        return [x.numpy() * scale for x in x_hat.detach().float().clamp(-1, 1).cpu()]

    def card_words(self) -> CardWords:
        what = f"series of {self.channels} channels ({self.sample_rate} Hz)"
        return CardWords(
            what, "them", "series.npy", "series = tok.postprocess(x_hat)[0]  # (C, T), in its units"
        )

    def preprocessor_config(self) -> dict[str, Any]:
        return {
            "feature_extractor_type": "tokenloom",
            "feature_size": self.channels,
            "sampling_rate": self.sample_rate,
            "scale": list(self.scale),
            "padding_side": "right",
            "padding_value": 0.0,
            "clip": "[-1, 1]",
        }
