"""Convolutional blocks that encoders and decoders are built of: residual, downsampling and upsampling, in
2-d.

Left out: attention, whose cost and codes would depend on the size of the picture.
"""

from torch import Tensor, nn
from torch.nn import functional as F


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


class Upsample(nn.Module):
    """A 3 × 3 convolution to stride² times the channels, then depth to space (Shi et al. 2016, arXiv
    1609.05158): all work happens at the small size, and no checkerboard comes from overlapping strides."""

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, channels * stride**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.stride)
