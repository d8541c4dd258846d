"""Sound: convolutional encoder and decoder of waveforms, and the way from sound files to tensors and back.

Left out: reading files and resampling (`pipelines/data/clips.py`).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.installation import import_torchaudio
from tokenizer.layers_1d import ELU, Chain, Conv, Layer, Network, Residual, Snake, Upsample
from tokenizer.modalities import CardWords, Modality, ModalityConfig
from tokenizer.modalities.files.sounds import open_sound
from tokenizer.variants import require

# Dilations of a level's residual blocks, in turn (Kumar et al. 2023, arXiv 2306.06546, section 3.1).
DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class AudioConfig(ModalityConfig, kind="audio"):
    """Sound, and the convolutional networks for it."""

    channels: int = 1
    """1 for mono, 2 for stereo."""
    sample_rate: int = 16000
    """Samples per second; sound of another rate is resampled."""
    size: tuple[int] = (16000,)
    """Samples of a training crop. A trained model takes any length."""
    strides: tuple[int, ...] = (8, 8, 5)
    """Reduction per level; their product is samples per code."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels per level, from the finest."""
    blocks: tuple[int, ...] = (1, 2, 3)
    """Residual blocks per level, from the finest."""
    kernel: int = 7
    """Steps under the first convolution of a residual block."""
    activation: Literal["snake", "elu"] = "snake"
    """Snake carries periods well (Ziyin et al. 2020); ELU is cheaper."""
    causal: bool = False
    """Let no sample see later ones, so that streaming lags by one frame only."""
    weight_norm: bool = False
    """Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868), for --optimizer adamw only."""

    def __post_init__(self) -> None:
        require(self.channels in (1, 2), f"channels is {self.channels}, expected 1 (mono) or 2 (stereo)")
        require(
            1000 <= self.sample_rate <= 384_000,
            f"sample_rate is {self.sample_rate}, expected 1000 to 384000 Hz",
        )
        require(1 <= self.size[0] <= 1 << 26, f"size is {self.size}, expected 1 to 2^26 samples")
        levels = len(self.strides)
        require(1 <= levels <= 12, f"strides has {levels} levels, expected 1 to 12")
        require(
            len(self.widths) == len(self.blocks) == levels,
            f"strides, widths and blocks need one value per level, got {levels}, {len(self.widths)} and "
            f"{len(self.blocks)}",
        )
        require(
            all(1 <= s <= 1024 for s in self.strides) and math.prod(self.strides) <= 1 << 16,
            f"strides are {self.strides}, expected 1 to 1024 each and a product of at most 65536",
        )
        require(
            all(1 <= w <= 8192 for w in self.widths), f"widths are {self.widths}, expected 1 to 8192 each"
        )
        require(all(0 <= n <= 64 for n in self.blocks), f"blocks are {self.blocks}, expected 0 to 64 each")
        require(
            1 <= self.kernel <= 63 and self.kernel % 2 == 1,
            f"kernel is {self.kernel}, expected an odd number from 1 to 63",
        )

    def build(self) -> "AudioModality":
        return AudioModality(self)


class AudioModality(Modality):
    """Sound x: (B, channels, T) in [-1, 1]."""

    name = "audio"
    timed = True
    pipeline_tag = "feature-extraction"
    axes = ("T",)

    def __init__(self, config: AudioConfig) -> None:
        import_torchaudio()  # a mistake of the installation is told now, not when a file has another rate
        self.config = config
        self.channels, self.size = config.channels, config.size
        self.sample_rate = config.sample_rate
        self.stride = math.prod(config.strides)

    def build_encoder(self, out_channels: int) -> nn.Module:
        """Per level a strided convolution and residual blocks; then one linear map per frame to the code."""
        layers: list[Layer] = []
        channels = self.channels
        for stride, width, blocks in self._levels():
            layers += [self._conv(channels, width, 2 * stride, stride), *self._blocks(width, blocks)]
            channels = width
        layers += [self._activation(channels), self._conv(channels, out_channels, 1)]
        return Network(layers)

    def build_decoder(self, in_channels: int) -> nn.Module:
        """The encoder's mirror."""
        levels = self._levels()[::-1]
        layers: list[Layer] = [self._conv(in_channels, levels[0][1], 3)]
        outputs = [*(width for _, width, _ in levels[1:]), self.channels]
        options = {"causal": self.config.causal, "weight_norm": self.config.weight_norm}
        for (stride, width, blocks), channels in zip(levels, outputs, strict=True):
            layers += [
                *self._blocks(width, blocks),
                self._activation(width),
                Upsample(width, channels, 3, stride, **options),
            ]
        return Network(layers)

    def _levels(self) -> list[tuple[int, int, int]]:
        return list(zip(self.config.strides, self.config.widths, self.config.blocks, strict=True))

    def _blocks(self, width: int, count: int) -> list[Layer]:
        """act, convolution, act, 1 × 1 convolution, added to the input; the last one starts at zero."""
        blocks: list[Layer] = []
        for i in range(count):
            wide = self._conv(width, width, self.config.kernel, dilation=DILATIONS[i % len(DILATIONS)])
            narrow = self._conv(width, width, 1)
            narrow.start_at_zero()
            blocks.append(Residual(Chain([self._activation(width), wide, self._activation(width), narrow])))
        return blocks

    def _conv(self, channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1) -> Conv:
        config = self.config
        return Conv(channels, width, kernel, stride, dilation, config.causal, config.weight_norm)

    def _activation(self, width: int) -> Layer:
        return Snake(width) if self.config.activation == "snake" else ELU()

    def pad(self, x: Tensor) -> Tensor:
        """Zeros after the end, up to the next multiple of the stride."""
        return F.pad(x, (0, -x.shape[2] % self.stride)) if x.shape[2] % self.stride else x

    def preprocess(self, source: Any) -> Tensor:
        """A path, bytes or (waveform, its rate), or a list of them, as x: (B, channels, T) in [-1, 1].

        (its rate, waveform) and {"array": waveform, "sampling_rate": its rate} are taken too.

        Any sound file is taken; it is mixed to `channels` and resampled to `sample_rate`. A waveform is (T,)
        or (C, T). Raises `ValueError` naming the file for what is not a readable sound, and if those of a
        list differ in length.
        """
        if not isinstance(source, list):
            return torch.from_numpy(open_sound(source, self.sample_rate, self.channels))[None]
        if not source:
            raise ValueError("preprocess got an empty list; give it at least one sound")
        items = [self.preprocess(item) for item in source]
        lengths = sorted({x.shape[2] for x in items})
        if len(lengths) > 1:
            raise ValueError(
                f"the sounds have {lengths[0]} to {lengths[-1]} samples, expected one length; pad them with "
                "zeros to the longest and use encode(x, lengths=...)"
            )
        return torch.cat(items)

    def postprocess(self, x_hat: Tensor) -> list[tuple[NDArray[np.float32], int]]:
        """x_hat (B, channels, T) as (waveform (channels, T) float32, clipped to [-1, 1]; sample rate)."""
        if x_hat.ndim != 3 or x_hat.shape[1] != self.channels:
            raise ValueError(f"expected (B, {self.channels}, T), got {tuple(x_hat.shape)}")
        return [(x.numpy(), self.sample_rate) for x in x_hat.detach().float().clamp(-1, 1).cpu()]

    def card_words(self) -> CardWords:
        channels = "mono" if self.channels == 1 else "stereo"
        result = "waveform, sample_rate = tok.postprocess(x_hat)[0]"
        return CardWords(f"sound ({channels}, {self.sample_rate} Hz)", "it", "sound.wav", result)

    def preprocessor_config(self) -> dict[str, Any]:
        return {
            "feature_extractor_type": "tokenloom",
            "feature_size": self.channels,
            "sampling_rate": self.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "mix": "mean of the channels, or copies of one",
            "resample": "sinc (torchaudio)",
            "clip": "[-1, 1]",
        }
