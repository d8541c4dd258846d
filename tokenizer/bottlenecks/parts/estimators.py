"""How gradients pass a quantizer, whose own derivative is zero almost everywhere.

Left out: quantizers themselves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# A shorter z_e counts as this long where lengths are divided.
SHORTEST = 1e-6


class _StraightThrough(torch.autograd.Function):
    """e itself, where z_e + (e − z_e) would be e but for rounding, in two more tensors."""

    @staticmethod
    def forward(z_e: Tensor, e: Tensor) -> Tensor:
        return e.view_as(e)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def needs_gradient(z_e: Tensor) -> bool:
    """Whether a gradient is to pass z_e. That does not ask for training mode: eval mode ends what a quantizer
    does to itself, updates, noise and dropout, and the encoder may still learn through a frozen one."""
    return torch.is_grad_enabled() and z_e.requires_grad


def straight_through(z_e: Tensor, e: Tensor) -> Tensor:
    """Forward e, backward the identity (Bengio et al. 2013, arXiv 1308.3432): (M, D) → (M, D)."""
    z_q: Tensor = _StraightThrough.apply(z_e, e.detach())
    return z_q


def rotate(z_e: Tensor, e: Tensor) -> Tensor:
    """Forward e, backward the rotation and scaling that takes z_e to e (Fifty et al. 2024, arXiv 2410.06424,
    section 4.2), so that the angle between gradient and vector is kept: (M, D) → (M, D)."""
    with torch.no_grad():
        from_, to = F.normalize(z_e, eps=SHORTEST), F.normalize(e, eps=SHORTEST)
        between = F.normalize(from_ + to, eps=SHORTEST)
        scale = e.norm(dim=1, keepdim=True) / z_e.norm(dim=1, keepdim=True).clamp(min=SHORTEST)
    # R = I − 2 r rᵀ + 2 ê ẑᵀ is the rotation from ẑ to ê, r the unit vector between them (equation 4).
    rotated = (
        z_e - 2 * (z_e * between).sum(1, keepdim=True) * between + 2 * (z_e * from_).sum(1, keepdim=True) * to
    )
    q: Tensor = scale * rotated
    return straight_through(q, e)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotate,
}
