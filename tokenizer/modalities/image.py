"""Pictures: convolutional encoder and decoder, and the way from any picture file to tensors and back.

Left out: reading single file formats (`pictures.py`) and attention (see `tokenizer.modalities.image`).
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.checks import Size, checked_list, checked_preprocess_size
from tokenizer.modalities import CardWords, Modality, ModalityConfig, check_levels
from tokenizer.modalities.files.pictures import fit_picture, open_picture
from tokenizer.variants import require

# Pixels along one axis.
MAX_SIZE = 16384


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), both 3 × 3. Without normalisation, which would cost a pass over memory
    per layer and tie positions together; the second convolution starts at zero so that depth is safe
    instead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return y


class Downsample(nn.Conv2d):
    """A convolution whose stride is even and whose kernel is twice the stride: (H, W) → (H, W) / stride."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, kernel_size=2 * stride, stride=stride, padding=stride // 2)


class Upsample2d(nn.Module):
    """A 3 × 3 convolution to stride² times the channels, then depth to space (Shi et al. 2016, arXiv
    1609.05158): all work happens at the small size, and no checkerboard comes from overlapping strides."""

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, channels * stride**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.stride)


@dataclass(frozen=True)
class ImageConfig(ModalityConfig, kind="image"):
    """Pictures, and the convolutional networks for them."""

    channels: int = 3
    """1 for grey, 3 for RGB."""
    size: tuple[int, int] = (32, 32)
    """Height and width that pictures are resized and cropped to for training. A trained model takes any
    size.
    """
    strides: tuple[int, ...] = (2, 2)
    """Reduction per level, each even; their product is pixels per code along each axis."""
    widths: tuple[int, ...] = (32, 96)
    """Channels per level, from the finest."""
    blocks: tuple[int, ...] = (1, 2)
    """Residual blocks per level, from the finest."""
    output: Literal["linear", "tanh"] = "linear"
    """The decoder's last function; `tanh` keeps x_hat inside (-1, 1), which the loss `bernoulli` needs."""

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"channels is {self.channels}, expected 1 (grey) or 3 (RGB)")
        require(
            all(1 <= s <= MAX_SIZE for s in self.size), f"size is {self.size}, expected 1 to {MAX_SIZE} each"
        )
        check_levels(self.strides, self.widths, self.blocks)
        require(
            all(s in (2, 4, 8) for s in self.strides), f"strides are {self.strides}, expected 2, 4 or 8 each"
        )

    def check_losses(self, used: Set[str]) -> None:
        probabilities = self.output == "tanh" and self.channels == 1
        require(
            "bernoulli" not in used or probabilities, "the loss bernoulli needs output tanh and channels 1"
        )
        require("ms_ssim" not in used or min(self.size) >= 7, "the loss ms_ssim needs 7 pixels or more")

    def build(self) -> "ImageModality":
        return ImageModality(self)


class ImageModality(Modality):
    """Pictures x: (B, channels, H, W) in [-1, 1]."""

    name = "image"
    pipeline_tag = "image-feature-extraction"
    axes = ("H", "W")

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        self.channels, self.size = config.channels, config.size
        self.stride = math.prod(config.strides)

    def build_encoder(self, out_channels: int) -> nn.Module:
        """Per level a strided convolution and residual blocks; then one linear map per position to the
        code."""
        layers: list[nn.Module] = []
        channels = self.channels
        for stride, width, blocks in zip(
            self.config.strides, self.config.widths, self.config.blocks, strict=True
        ):
            layers += [Downsample(channels, width, stride), *(ResidualBlock(width) for _ in range(blocks))]
            channels = width
        layers += [nn.SiLU(), nn.Conv2d(channels, out_channels, 1)]
        return _channels_last(layers)

    def build_decoder(self, in_channels: int) -> nn.Module:
        """The encoder's mirror."""
        levels = list(zip(self.config.strides, self.config.widths, self.config.blocks, strict=True))[::-1]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, levels[0][1], 3, padding=1)]
        outputs = [*(width for _, width, _ in levels[1:]), self.channels]
        for (stride, width, blocks), channels in zip(levels, outputs, strict=True):
            layers += [
                *(ResidualBlock(width) for _ in range(blocks)),
                nn.SiLU(),
                Upsample2d(width, channels, stride),
            ]
        if self.config.output == "tanh":
            layers.append(nn.Tanh())
        return _channels_last(layers)

    def pad(self, x: Tensor) -> Tensor:
        """Repeat the last row and column up to the next multiple of the stride."""
        bottom, right = (-x.shape[2] % self.stride, -x.shape[3] % self.stride)
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    def fit(self, item: Any) -> NDArray[np.uint8]:
        """A PIL image as uint8 (channels, *size): resized to cover the size, cropped in the middle."""
        return fit_picture(item, self.config.size, self.channels)

    def preprocess(self, source: Any, size: Size = None) -> Tensor:
        """A path, PIL image, array (H, W[, C]), or a list of them, or a tensor ([B, ]C, H, W) uint8, as x:
        (B, channels, *size) in [-1, 1].

        Any kind of picture is taken (palette, alpha on white, CMYK, 16 bits, colour profiles); it is resized
        to cover the size, (H, W) or a number for a square (left out: config.size), and cropped in the middle;
        with "keep" it stays as it is. Raises `ValueError` naming the file for what is not a readable picture,
        or of more than PIL.Image.MAX_IMAGE_PIXELS (`open_picture` with `max_megapixels` opens larger ones),
        for an impossible size, and if those of a list, kept, differ in size.
        """
        wanted = checked_preprocess_size(size, self.config.size, self.axes, MAX_SIZE)
        if isinstance(source, Tensor):
            source = _pictures_of(source)
        if isinstance(source, Sequence) and not isinstance(source, str | bytes):
            items = [self.preprocess(item, wanted or "keep") for item in checked_list(list(source))]
            sizes = sorted({tuple(x.shape[2:]) for x in items})
            if len(sizes) > 1:
                raise ValueError(
                    f"the pictures have {len(sizes)} sizes (H, W), {sizes[0]} to {sizes[-1]}, expected one; "
                    "give the size=(H, W) to bring them to, or preprocess them one by one"
                )
            return torch.cat(items)
        fitted = fit_picture(open_picture(source), cast("tuple[int, int] | None", wanted), self.channels)
        return torch.from_numpy(fitted)[None].float() / 127.5 - 1

    def postprocess(self, x_hat: Tensor) -> list[Image.Image]:
        """x_hat (B, channels, H, W) in [-1, 1] as PIL images of mode L or RGB; values outside are clipped."""
        if x_hat.ndim != 4 or x_hat.shape[1] != self.channels:
            raise ValueError(f"expected (B, {self.channels}, H, W), got {tuple(x_hat.shape)}")
        pixels = ((x_hat.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        return [Image.fromarray(p.permute(1, 2, 0).squeeze(-1).numpy()) for p in pixels]

    def card_words(self) -> CardWords:
        return CardWords("pictures", "them", "picture.png", "picture = tok.postprocess(x_hat)[0]")

    def preprocessor_config(self) -> dict[str, Any]:
        height, width = self.config.size
        return {
            "image_processor_type": "tokenloom",
            "size": {"height": height, "width": width},
            "num_channels": self.channels,
            "resize": "cover, then centre crop",
            "rescale": "x / 127.5 - 1",
            "alpha": "composited on white",
        }


def _pictures_of(x: Tensor) -> list[NDArray[np.uint8]]:
    """A tensor ([B, ]C, H, W) uint8 as arrays (H, W, C). `ValueError` for another one: of floats nobody can
    tell whether 0 is black or grey."""
    x = x[None] if x.ndim == 3 else x
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise ValueError(
            "expected a tensor of pictures as uint8 (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels, got "
            f"{x.dtype} {tuple(x.shape)}; floats in [-1, 1] are what encode takes, those in [0, 1] are "
            "(255 * x).round().byte()"
        )
    return [rearrange(picture, "c h w -> h w c").numpy() for picture in x.cpu()]


def _channels_last(layers: list[nn.Module]) -> nn.Module:
    """Channels last, because oneDNN and cuDNN convolve faster so (about 1.1 × on CPU)."""
    network = nn.Sequential(*layers)
    for p in network.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return network
