"""Tiny models that tests share: any registered bottleneck with small sizes, and a tokenizer around it.

Left out: tests. Nothing here names a bottleneck, so that one added later is tested without an edit.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, kinds
from tokenizer.distributed import Step
from tokenizer.modalities.image import ImageConfig

# Taken by the bottlenecks that have such fields; all others keep their kind's defaults.
SMALL: dict[str, Any] = {
    "codebook_size": 24,
    "dim": 6,
    "codebook_dim": 4,
    "num_codebooks": 2,
    "groups": 2,
    "kmeans_steps": 2,
}


def bottleneck_config(kind: str, **changes: Any) -> BottleneckConfig:
    """The config of `kind` with small sizes, and `changes`."""
    cls = kinds()[kind]
    fields = {f.name for f in dataclasses.fields(cls)}
    config: BottleneckConfig = cls(**{**{k: v for k, v in SMALL.items() if k in fields}, **changes})
    return config


def latents(bottleneck: Bottleneck, batch: int, *grid: int, seed: int = 0) -> Tensor:
    """Standard normal z (batch, in_dim, *grid), float32."""
    shape = (batch, bottleneck.in_dim, *grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, dtype: torch.dtype = torch.float32, steps: int = 6, **changes: Any) -> Bottleneck:
    """A bottleneck in training mode, of seeded weights, past whatever its first steps do (as k-means)."""
    torch.manual_seed(0)
    bottleneck = bottleneck_config(kind, **changes).build().to(dtype).train()
    for index in range(steps):
        bottleneck(latents(bottleneck, 8, 3, 4, seed=index).to(dtype), Step(0, index, 0, 8))
    return bottleneck


def image_config(**changes: Any) -> ImageConfig:
    """Small pictures and small networks; a stride of 4."""
    small: dict[str, Any] = {"size": (16, 16), "strides": (2, 2), "widths": (4, 8), "blocks": (1, 1)}
    return ImageConfig(**{**small, **changes})


def tokenizer(
    kind: str = "vq", seed: int = 0, losses: dict[str, float] | None = None, **modality: Any
) -> Tokenizer:
    """A tiny tokenizer of pictures in eval mode, with seeded weights everywhere (zero-initialised ones too)
    and a codebook that its data use."""
    torch.manual_seed(seed)
    config = TokenizerConfig(image_config(**modality), bottleneck_config(kind), losses or {"l2": 1.0})
    tok = Tokenizer(config)
    with torch.no_grad():
        for parameter in tok.parameters():
            if parameter.ndim == 4:
                parameter.normal_(std=(1.5 / parameter[0].numel()) ** 0.5)
    for index in range(4):
        tok(pictures(8, tok.modality.channels, 32, 32, seed=index), Step(seed, index, 0, 8))
    return tok.eval()


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random pictures in [-1, 1]: (batch, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 4, 4, generator=generator)
    fine = torch.randn(batch, channels, height, width, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return torch.tanh(x + 0.2 * fine)
