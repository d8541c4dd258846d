"""Series of several channels over time, such as a robot's joints or biosignals, and the way from files of
`numpy.save` to tensors and back.

Left out: its networks (`signals.py`), reading files (`files/series.py`), and other rates than the model's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.modalities import CardWords, ModalityConfig
from tokenizer.modalities.files.series import Series
from tokenizer.modalities.signals import SignalModality, SignalOptions
from tokenizer.variants import require


@dataclass(frozen=True)
class SeriesConfig(SignalOptions, ModalityConfig, kind="series"):
    """Series of several channels, and the convolutional networks for them."""

    channels: int = 3
    """Channels of every series."""
    sample_rate: int = 100
    """Samples per second; files do not know it, so all are taken to have it."""
    size: tuple[int] = (256,)
    scale: tuple[float, ...] = (1.0,)
    """Largest magnitude of the values, of all channels or of each: they are divided by it and clamped."""
    strides: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (48, 64, 96)
    blocks: tuple[int, ...] = (1, 1, 2)
    activation: Literal["snake", "elu"] = "elu"

    def __post_init__(self) -> None:
        require(1 <= self.channels <= 4096, f"channels is {self.channels}, expected 1 to 4096")
        require(1 <= self.sample_rate <= 10**6, f"sample_rate is {self.sample_rate}, expected 1 to 10^6 Hz")
        require(
            len(self.scale) in (1, self.channels) and all(0 < s < float("inf") for s in self.scale),
            f"scale is {self.scale}, expected a number above 0, or one for each of {self.channels} channels",
        )
        super().__post_init__()

    def build(self) -> "SeriesModality":
        return SeriesModality(self)


class SeriesModality(SignalModality):
    """Series x: (B, channels, T) in [-1, 1]."""

    name, many, reader = "series", "series", "numpy"
    pipeline_tag = "feature-extraction"

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__(config)
        self.scale = config.scale

    def open(self, source: Any, name: str | None = None, report: bool = True) -> Series:
        return Series(source, self.channels, self.scale, name)

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
