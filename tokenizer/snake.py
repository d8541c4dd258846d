"""The Snake activation, x + sin²(αx) / α, in one piece of memory and with its own gradient.

Left out: the layer that learns α (`tokenizer.layers_1d`), and gradients of gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Added to α before dividing by it.
TINY = 1e-9


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x: (B, C, 1, T), alpha: (C, 1, 1) → (B, C, 1, T), in the wider of their types (Ziyin et al. 2020,
    arXiv 2006.08195, equation 3)."""
    y: Tensor = _Snake.apply(x, alpha)  # type: ignore[no-untyped-call]
    return y


class _Snake(torch.autograd.Function):
    """Keeps x, and no other activation, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        y = (alpha * x).sin_().square_()
        return torch.addcmul(x.to(y), y, 1 / (alpha + TINY), out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dx = 1 + sin(2αx), dy/dα = (x sin(2αx) − sin²(αx) / α) / α."""
        x, alpha = ctx.saved_tensors
        inverse = 1 / (alpha + TINY)
        angle = alpha * x
        slope = torch.sin(2 * angle)
        square = angle.sin_().square_()
        to_alpha = torch.addcmul(x * slope, square, -inverse, out=square).mul_(inverse).mul_(grad)
        return slope.add_(1).mul_(grad).to(x), to_alpha.sum(dim=(0, 2, 3))[:, None, None].to(alpha)
