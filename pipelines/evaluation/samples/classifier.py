"""A small ConvNet that reads the class of a picture, trained on the data that a prior learnt, to judge by it
whether samples show what was asked for.

Left out: files. It is trained anew, by one recipe: about a minute on two CPU cores for pictures of 32 x 32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.data.kinds import Split, to_float
from pipelines.run.progress import progress
from tokenizer.distributed import keyed_generator

# The recipe. Two convolutions per width; larger pictures are brought to SIDE first.
WIDTHS, SIDE, STEPS, BATCH, RATE = (24, 48, 96), 64, 600, 64, 4e-3
# Largest changes of a view: radians, shear, share of the size, and share of half a side.
TURN, SHEAR, ZOOM, SHIFT = 0.2, 0.2, 0.1, 1 / 7


class Classifier(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] → logits (B, classes)."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        layers, before = list[nn.Module](), channels
        for i, width in enumerate(widths):
            for c in (before, width):
                layers += [nn.Conv2d(c, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(width, classes)]
            layers += [nn.MaxPool2d(2)] if i < len(widths) - 1 else last
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(small(x))
        return logits

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """The classes (B,) that pictures are read as."""
        logits: Tensor = self(x)
        return logits.argmax(1)


def train_classifier(
    train: Split, classes: int, device: torch.device | str = "cpu", steps: int = STEPS, seed: int = 0
) -> Classifier:
    """A classifier of labelled pictures, in eval mode. Every class is shown equally often, so that it leans
    to none. The seed decides all (on a CPU with as many threads). `ValueError` for unlabelled data."""
    if train.labels is None or not (train.labels >= 0).any():
        raise ValueError(f"a classifier needs {train.kind.many} with labels, and these have none")
    of_class = [np.flatnonzero(train.labels == c) for c in range(classes)]
    present = torch.tensor([c for c in range(classes) if len(of_class[c])])
    generator = keyed_generator(seed, "classifier")
    with torch.random.fork_rng(devices=[]), progress(steps, "train classifier") as bar:
        torch.manual_seed(seed)  # initial weights and dropout
        network = Classifier(train.shape[0], classes).train().to(device)
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
        for _ in range(steps):
            labels = present[torch.randint(len(present), (BATCH,), generator=generator)]
            place = torch.rand(BATCH, generator=generator, dtype=torch.float64)
            picked = [of_class[c][int(p * len(of_class[c]))] for c, p in zip(labels, place, strict=True)]
            x = small(to_float(torch.stack([train.x(int(i)) for i in picked])).to(device))
            loss = F.cross_entropy(network(views(x, generator)), labels.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return network.eval()


def views(x: Tensor, generator: torch.Generator) -> Tensor:
    """x (B, C, H, W), each picture turned, sheared, zoomed and moved a little; its edge goes on outside."""
    u = torch.rand((6, len(x)), generator=generator) * 2 - 1
    cos, sin = (u[0] * TURN).cos(), (u[0] * TURN).sin()
    shear, (rows, columns), (down, right) = u[1] * SHEAR, 1 + u[2:4] * ZOOM, u[4:6] * SHIFT
    matrix = torch.stack([columns * cos, shear - rows * sin, right, columns * sin, rows * cos, down]).to(x)
    grid = F.affine_grid(rearrange(matrix, "(i j) b -> b i j", i=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def small(x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) with sides of at most `SIDE`, larger ones averaged down to that."""
    height, width = x.shape[2:]
    if max(height, width) <= SIDE:
        return x
    scale = SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(x, size, mode="area")
