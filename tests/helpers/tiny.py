"""Tiny models that tests share: any registered bottleneck with small sizes, and a tokenizer around it.

Left out: tests. Nothing here names a bottleneck, so that one added later is tested without an edit.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, kinds
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.distributed import Step
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.image import ImageConfig

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)

# Taken by the bottlenecks that have such fields; all others keep their kind's defaults.
SMALL: dict[str, Any] = {
    "codebook_size": 24,
    "dim": 6,
    "codebook_dim": 4,
    "num_codebooks": 2,
    "groups": 2,
    "kmeans_steps": 2,
}


# Configs beside the defaults of the kinds, by name: the kind and what differs.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vq-cosine": ("vq", {"distance": "cosine"}),
    "vq-gradient": ("vq", {"update": "gradient"}),
    "vq-gradient-cosine-rotation": (
        "vq",
        {"update": "gradient", "distance": "cosine", "gradient": "rotation"},
    ),
    "vq-simvq": ("vq", {"update": "simvq"}),
    "vq-simvq-cosine": ("vq", {"update": "simvq", "distance": "cosine"}),
    "vq-rotation": ("vq", {"gradient": "rotation"}),
    "rvq-gradient": ("rvq", {"stage": VQConfig(update="gradient", dim=4, codebook_dim=4)}),
}


def bottleneck_config(name: str, **changes: Any) -> BottleneckConfig:
    """The config of a kind, or of one of VARIANTS, with small sizes, and `changes`."""
    kind, differs = VARIANTS.get(name, (name, {}))
    config = _small(dataclasses.replace(kinds()[kind](), **differs))
    return dataclasses.replace(config, **changes)


def _small(config: BottleneckConfig) -> BottleneckConfig:
    """`config` with small sizes, and so the bottlenecks that it holds."""
    fields = [f.name for f in dataclasses.fields(config)]
    small = {name: SMALL[name] for name in fields if name in SMALL}
    inner = {n: _small(v) for n in fields if isinstance(v := getattr(config, n), BottleneckConfig)}
    return dataclasses.replace(config, **small, **inner)


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


def made_once(make: Callable[P, M]) -> Callable[P, M]:
    """`make`, for a file of tests that asks for the same models again and again: a copy of what was made of
    these arguments, with torch's generator as it is after making. Only where no test changes how."""

    @functools.cache
    def made(*args: P.args, **options: P.kwargs) -> tuple[M, Tensor]:
        return make(*args, **options), torch.get_rng_state()

    def copied(*args: P.args, **options: P.kwargs) -> M:
        model, state = made(*args, **options)
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return copied


def image_config(**changes: Any) -> ImageConfig:
    """Small pictures and small networks; a stride of 4."""
    small: dict[str, Any] = {"size": (16, 16), "strides": (2, 2), "widths": (4, 8), "blocks": (1, 1)}
    return ImageConfig(**{**small, **changes})


def audio_config(**changes: Any) -> AudioConfig:
    """Small networks for sound; a stride of 60, of which one is odd."""
    small: dict[str, Any] = {"size": (960,), "strides": (4, 5, 3), "kernel": 5}
    if changes.get("network") == "frames":
        small |= {"dim": 8, "depth": 2}
    else:
        small |= {"widths": (6, 8, 8), "blocks": (1, 2, 1)}
    return AudioConfig(**{**small, **changes})


def tokenizer(
    kind: str = "vq", seed: int = 0, losses: dict[str, float] | None = None, **modality: Any
) -> Tokenizer:
    """A tiny tokenizer of pictures in eval mode, with seeded weights everywhere (zero-initialised ones too)
    and a codebook that its data use."""
    config = TokenizerConfig(image_config(**modality), bottleneck_config(kind), losses or {"l2": 1.0})
    return _lively(config, seed, lambda c, i: pictures(8, c, 32, 32, seed=i))


def codec(kind: str = "rvq", seed: int = 0, **modality: Any) -> Tokenizer:
    """The same for sound."""
    config = TokenizerConfig(audio_config(**modality), bottleneck_config(kind), {"l1": 1.0, "mel": 1.0})
    return _lively(config, seed, lambda c, i: sounds(8, c, 1200, seed=i))


def _lively(config: TokenizerConfig, seed: int, data: Callable[[int, int], Tensor]) -> Tokenizer:
    torch.manual_seed(seed)
    tok = Tokenizer(config)
    with torch.no_grad():
        for parameter in tok.parameters():
            if parameter.ndim == 4:
                parameter.normal_(std=(1.5 / parameter[0].numel()) ** 0.5)
    for index in range(4):
        tok(data(tok.modality.channels, index), Step(seed, index, 0, 8))
    return tok.eval()


def sounds(batch: int, channels: int, samples: int, seed: int = 0) -> Tensor:
    """Chirps in noise, in [-1, 1]: (batch, channels, samples)."""
    generator = torch.Generator().manual_seed(seed)
    pitch, bend = torch.rand(2, batch, channels, 1, generator=generator)
    time = torch.linspace(0, 1, samples)
    noise = torch.randn(batch, channels, samples, generator=generator)
    return 0.6 * torch.sin(6.28 * samples / 60 * (pitch * time + bend * time**2)) + 0.05 * noise


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random pictures in [-1, 1]: (batch, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 4, 4, generator=generator)
    fine = torch.randn(batch, channels, height, width, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return torch.tanh(x + 0.2 * fine)
