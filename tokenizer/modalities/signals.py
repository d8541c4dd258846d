"""Signals over time: convolutional encoder and decoder for any number of channels and any length.

Left out: what the signals are of, and their way from files and back (`audio.py`, `series.py`).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.checks import Size, checked_list, checked_preprocess_size
from tokenizer.layers_1d import ELU, Chain, Conv, Layer, Network, Residual, Snake, Upsample1d
from tokenizer.modalities import Modality, check_levels
from tokenizer.modalities.files.spans import Signal
from tokenizer.variants import require

# Dilations of a level's residual blocks, in turn (Kumar et al. 2023, arXiv 2306.06546, section 3.1).
DILATIONS = (1, 3, 9)
# Of an item that is asked for in one piece: 4 GB.
MAX_SAMPLES = 1 << 30


@dataclass(frozen=True)
class SignalOptions:
    """The fields that the configs of signals have in common."""

    channels: int
    """Channels of every signal."""
    sample_rate: int
    """Samples per second."""
    size: tuple[int]
    """Samples of a training crop. A trained model takes any length."""
    strides: tuple[int, ...]
    """Reduction per level; their product is samples per code."""
    widths: tuple[int, ...]
    """Channels of the networks per level, from the finest."""
    blocks: tuple[int, ...]
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
        require(1 <= self.size[0] <= 1 << 26, f"size is {self.size}, expected 1 to 2^26 samples")
        self.check_networks()
        require(
            all(1 <= s <= 1024 for s in self.strides) and math.prod(self.strides) <= 1 << 16,
            f"strides are {self.strides}, expected 1 to 1024 each and a product of at most 65536",
        )
        require(
            1 <= self.kernel <= 63 and self.kernel % 2 == 1,
            f"kernel is {self.kernel}, expected an odd number from 1 to 63",
        )

    def check_networks(self) -> None:
        """`ValueError` for sizes of networks that cannot be."""
        check_levels(self.strides, self.widths, self.blocks)


class SignalModality(Modality):
    """Signals x: (B, channels, T) in [-1, 1], of any length T."""

    axes = ("T",)
    timed = True
    # What several of them are called, and the package that reads their files.
    many: ClassVar[str]
    reader: ClassVar[str]

    def __init__(self, config: SignalOptions) -> None:
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
                Upsample1d(width, channels, 3, stride, **options),
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

    def open(self, source: Any, name: str | None = None, report: bool = True) -> Signal:
        """A file or object at the rate and in the channels of the model. `name` stands for it in messages;
        `report` False leaves it to the caller to say what was clamped."""
        raise TypeError(f"{type(self).__name__} does not define open")

    def opened(self, source: Any, most: int | None) -> Tensor:
        """An item (channels, T) in [-1, 1], or its first samples, `most` of them."""
        with self.open(source) as signal:
            return torch.from_numpy(signal.read(0, None if most is None else min(most, signal.length)))

    def preprocess(self, source: Any, size: Size = None) -> Tensor:
        """An item, or a list of them, as x: (B, channels, T) in [-1, 1]. `size`: the first so many samples,
        with zeros after the end of a shorter one; left out or "keep": its own length. Raises `ValueError` for
        what cannot be read, for an impossible size, and if those of a list differ in length."""
        if not isinstance(source, list):
            wanted = self._wanted(size)
            item = self.opened(source, wanted)
            return F.pad(item, (0, (wanted or item.shape[1]) - item.shape[1]))[None]
        x, lengths = self.preprocess_batch(source, size)
        least, most = int(lengths.min()), int(lengths.max())
        if size in (None, "keep") and least < most:
            raise ValueError(
                f"the {self.many} have {least} to {most} samples, expected one length; "
                "preprocess_batch pads them with zeros to the longest and tells their lengths, which "
                "encode(x, lengths) takes"
            )
        return x

    def preprocess_batch(self, sources: list[Any], size: Size = None) -> tuple[Tensor, Tensor]:
        """A list as x (B, channels, T), with zeros after each one's end up to the longest, or to `size`;
        and how many samples (B,) int64 are its own. Errors as of `preprocess`."""
        wanted = self._wanted(size)
        items = [self.opened(item, wanted) for item in checked_list(sources)]
        lengths = torch.tensor([item.shape[1] for item in items])
        x = torch.zeros(len(items), self.channels, wanted or int(lengths.max()))
        for row, item in zip(x, items, strict=True):
            row[:, : item.shape[1]] = item
        return x, lengths

    def _wanted(self, size: Size) -> int | None:
        """The samples that an item is brought to; None: its own."""
        wanted = checked_preprocess_size(size, None, self.axes, MAX_SAMPLES)
        return wanted[0] if wanted else None
