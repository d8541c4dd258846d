"""A VGG16 whose weights come with a package of the package index, for perceptual losses without a download.

It is that of shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv 2207.13686): pools are a maximum of
neighbours and then a blur, so that a shift by a pixel changes little (Zhang 2019, arXiv 1904.11486).

Left out: its learnt weights per channel, and the package's code, of which none is run.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.installation import install_extra

STLPIPS = "stlpips:vgg16"
PACKAGE, FILE = "stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth"
# Of the file in release 0.0.2, which is a pickle.
SHA256 = "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250"
# Channels of the convolutions of each block; a pool stands between two blocks.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Blur(nn.Module):
    """Every second value of a picture (B, C, H, W) under the filter [1, 2, 1] / 4 along both axes, its border
    reflected (or, of one pixel, repeated)."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = repeat(line[:, None] * line, "h w -> c 1 h w", c=channels)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mode = "reflect" if min(x.shape[2:]) > 1 else "replicate"
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode), self.kernel, stride=2, groups=x.shape[1])


# The last ReLU of each block.
STLPIPS_LAYERS = (3, 9, 17, 25, 33)


def vgg16() -> nn.Sequential:
    """The network, with random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for block in BLOCKS:
        if layers:
            layers += [nn.MaxPool2d(2, stride=1), Blur(channels)]
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def stlpips_network(spec: str) -> nn.Sequential:
    """The network of "stlpips:vgg16" with its weights, frozen; `ValueError` for another spec, and where its
    package is not installed or holds another file than the one that was tried."""
    if spec != STLPIPS:
        raise ValueError(f"unknown network {spec!r}; known of stlpips: {STLPIPS}")
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{spec}: {PACKAGE} is not installed; {install_extra('perceptual')}")
    path = Path(found.submodule_search_locations[0], FILE)
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(
            f"{spec}: {path} is missing or not the file of stlpips_pytorch 0.0.2; install that release "
            f"again: {install_extra('perceptual')}"
        )
    held: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    # net.slice1.0.weight → 0.weight; other entries are its filters, which are those of Blur, and its scales.
    state = {
        name.split(".", 2)[2]: value
        for name, value in held.items()
        if name.startswith("net.") and not name.endswith(".filt")
    }
    network = vgg16()
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)
