"""The Snake activation, x + sin²(αx) / α, in one piece of memory and with its own gradient.

Left out: the layer that learns α (`tokenizer.layers_1d`), and gradients of gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# 1 / α is computed as α / (α² + TINY), which is 0 and not infinite at α = 0.
TINY = 1e-9


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x: (B, C, 1, T), alpha: (C, 1, 1) → (B, C, 1, T), in the wider of their types (Ziyin et al. 2020,
    arXiv 2006.08195, equation 3)."""
    y: Tensor = _Snake.apply(x, alpha)
    return y


class _Snake(torch.autograd.Function):
    """Keeps x, and no other activation, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        y = (alpha * x).sin_().square_()
        return torch.addcmul(x.to(y), y, _inverse(alpha)[0].to(alpha))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """With g ≈ 1 / α: dy/dx = 1 + αg sin(2αx) and dy/dα = x g sin(2αx) + g' sin²(αx)."""
        x, alpha = ctx.saved_tensors
        inverse, slope_of_inverse = (part.to(alpha) for part in _inverse(alpha))
        angle = alpha * x
        slope = torch.sin(2 * angle).mul_(inverse)
        to_alpha = (x * slope).addcmul_(angle.sin_().square_(), slope_of_inverse).mul_(grad)
        to_x = slope.mul_(alpha).add_(1).mul_(grad)
        return to_x.to(x), to_alpha.sum(dim=(0, 2, 3))[:, None, None].to(alpha)


def _inverse(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """g = α / (α² + TINY) and its derivative, at least float32."""
    alpha = alpha.to(torch.promote_types(alpha.dtype, torch.float32))
    square = alpha.square()
    return alpha / (square + TINY), (TINY - square) / (square + TINY).square()
