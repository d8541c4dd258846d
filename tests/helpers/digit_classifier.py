"""A small ConvNet that reads handwritten digits, to judge drawn ones by. It shares nothing with the models
but the training pictures.

Left out: files. Training it anew takes about a minute on two CPU cores.
"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.examples import Examples
from pipelines.data.kinds import to_float
from tokenizer.distributed import keyed_generator
from tokenizer.modalities.image import ImageConfig

# Largest changes of a view: radians, shear, share of the size, and share of half a side (2 pixels of 28).
TURN, SHEAR, ZOOM, SHIFT = 0.2, 0.2, 0.1, 1 / 7


def embedded_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pictures (N, 1, 28, 28) in [-1, 1] and digits (N,) int64: 8,004 for training and 1,996 held out."""
    modality = ImageConfig(channels=1, size=(28, 28)).build()
    splits = load_splits(DataConfig(path="embedded:digits"), modality)
    return _all_of(splits.train), _all_of(splits.held_out)


def _all_of(examples: object) -> tuple[Tensor, Tensor]:
    assert isinstance(examples, Examples)
    x, digits, _ = examples.take(np.arange(len(examples)))
    return to_float(x), digits


def views(x: Tensor, generator: torch.Generator) -> Tensor:
    """x (B, C, H, W) in [-1, 1], each picture turned, sheared, zoomed and moved a little; black comes in."""
    u = torch.rand((6, len(x)), generator=generator) * 2 - 1
    cos, sin = (u[0] * TURN).cos(), (u[0] * TURN).sin()
    shear, (rows, columns), (down, right) = u[1] * SHEAR, 1 + u[2:4] * ZOOM, u[4:6] * SHIFT
    matrix = torch.stack([columns * cos, shear - rows * sin, right, columns * sin, rows * cos, down])
    grid = F.affine_grid(rearrange(matrix, "(i j) b -> b i j", i=2), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


def network(widths: Sequence[int]) -> nn.Sequential:
    """Two convolutions per width, each width at half the size of the one before, then their mean: logits
    (B, 10)."""
    layers, before = list[nn.Module](), 1
    for i, width in enumerate(widths):
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i < len(widths) - 1 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        before = width
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(before, 10))


def train_classifier(
    x: Tensor, digits: Tensor, *, epochs: int = 8, widths: Sequence[int] = (24, 48, 96), seed: int = 0
) -> nn.Module:
    """A classifier of pictures x (N, 1, H, W) by their `digits` (N,), in eval mode; the seed decides all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights and dropout
        generator = keyed_generator(seed, "digit classifier")
        classifier, batch, rate = network(widths).train(), 64, 4e-3
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=0.05)
        steps = epochs * (len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
        for _ in range(epochs):
            shuffled = torch.randperm(len(x), generator=generator)
            for rows in shuffled[: len(x) // batch * batch].split(batch):
                logits = classifier(views(x[rows], generator))
                optimizer.zero_grad()
                F.cross_entropy(logits, digits[rows], label_smoothing=0.1).backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


@torch.no_grad()
def read_digits(classifier: nn.Module, x: Tensor) -> Tensor:
    """Pictures x (N, 1, H, W) in [-1, 1] → the digits (N,) that they are read as."""
    return torch.cat([classifier(part).argmax(1) for part in x.split(256)])
