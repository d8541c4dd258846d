"""What families of pictures share: networks of another library as they are, and codes by the nearest entry of
one codebook.

Left out: the networks themselves, which their library builds (the families beside this file).
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks import Bottleneck, Bottlenecked
from tokenizer.bottlenecks.parts.estimators import straight_through
from tokenizer.distributed import Step
from tokenizer.foreign import Family
from tokenizer.modalities.image import ImageConfig, ImageModality
from tokenizer.search import nearest


class PictureNetwork(nn.Module):
    """Modules of another library, `parts`, and what it does with them, `run`."""

    def __init__(self, parts: nn.ModuleDict, run: Callable[[nn.ModuleDict, Tensor], Tensor]) -> None:
        super().__init__()
        self.parts, self._run = parts, run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.parts, x)


class ForeignPicture(ImageModality):
    """Pictures x: (B, channels, H, W) in [-1, 1], for networks that halve their size `levels` times."""

    def __init__(self, channels: int, size: int, levels: int) -> None:
        around = (1,) * levels
        super().__init__(
            ImageConfig(
                channels=channels, size=(size, size), strides=(2,) * levels, widths=around, blocks=around
            )
        )


class NearestEntry(Bottleneck):
    """The entry of a library's codebook that is nearest to z, by the search of this project. `unit`: vectors
    and entries are compared, and decoded, at length 1."""

    def __init__(self, family: Family, whole: Any, entries: Callable[[nn.ModuleDict], Tensor], unit: bool):
        super().__init__()
        self.parts, self._entries, self.unit = family.parts(whole, family.bottleneck_parts), entries, unit
        self.num_codebooks = 1
        self.codebook_size, self.in_dim = entries(self.parts).shape
        self.out_dim = self.in_dim

    def codebook_vectors(self) -> Tensor:
        entries = self._entries(self.parts).detach()
        return F.normalize(entries, dim=1) if self.unit else entries

    def compared(self, z: Tensor) -> Tensor:
        rows = rearrange(z, "b d h w -> 1 (b h w) d").to(torch.promote_types(z.dtype, torch.float32))
        return F.normalize(rows, dim=2) if self.unit else rows

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        codes = self.encode(z)
        return Bottlenecked(straight_through(z, self.decode(codes)), codes, {}, {})

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            vectors = self.compared(z)[0]
            codes = nearest(vectors, self.codebook_vectors().to(vectors.dtype))
        return rearrange(codes, "(b h w) -> b 1 h w", h=z.shape[2], w=z.shape[3])

    def decode(self, codes: Tensor) -> Tensor:
        return rearrange(self.codebook_vectors()[codes[:, 0]], "b h w d -> b d h w")
