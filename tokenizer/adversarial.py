"""What decoders and discriminators learn from each other: adversarial losses, matching of features, and views
of pictures that both are shown.

Left out: the discriminators (`tokenizer.discriminators`), and who learns when (`pipelines/train_decoder.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.devices import send
from tokenizer.discriminators import Judgement
from tokenizer.distributed import Step


class AdversarialLoss(NamedTuple):
    """What logits cost: the discriminator those of data and of what the decoder made, the decoder its own;
    and the logit that parts what is taken for data from what is not."""

    of_data: Callable[[Tensor], Tensor]
    of_made: Callable[[Tensor], Tensor]
    of_decoder: Callable[[Tensor], Tensor]
    border: float


ADVERSARIAL_LOSSES = {
    # max(0, 1 − D(x)) + max(0, 1 + D(x̂)), and −D(x̂) (Lim and Ye 2017, arXiv 1705.02894, section 3.1).
    "hinge": AdversarialLoss(
        lambda d: F.relu(1 - d).mean(), lambda d: F.relu(1 + d).mean(), lambda d: -d.mean(), 0.0
    ),
    # (D(x) − 1)² + D(x̂)², and (D(x̂) − 1)² (Mao et al. 2017, arXiv 1611.04076, equation 9).
    "least_squares": AdversarialLoss(
        lambda d: (d - 1).square().mean(), lambda d: d.square().mean(), lambda d: (d - 1).square().mean(), 0.5
    ),
}


def discriminator_loss(kind: str, of_x: Judgement, of_x_hat: Judgement) -> tuple[Tensor, Tensor]:
    """The mean loss over all views, a scalar, and the accuracy, the share of logits on the right side of the
    border, data and not alike."""
    loss = ADVERSARIAL_LOSSES[kind]
    pairs = [(a[-1], b[-1]) for a, b in zip(of_x, of_x_hat, strict=True)]
    losses = [loss.of_data(a) + loss.of_made(b) for a, b in pairs]
    right = [((a > loss.border).float().mean() + (b < loss.border).float().mean()) / 2 for a, b in pairs]
    return torch.stack(losses).mean(), torch.stack(right).mean().detach()


def decoder_loss(kind: str, of_x_hat: Judgement) -> Tensor:
    """What the decoder pays for being found out, the mean over all views, a scalar."""
    return torch.stack([ADVERSARIAL_LOSSES[kind].of_decoder(view[-1]) for view in of_x_hat]).mean()


def feature_matching(of_x: Judgement, of_x_hat: Judgement) -> Tensor:
    """Mean over views and layers of |D_l(x) − D_l(x̂)| over the mean of |D_l(x)|, a scalar (Défossez et al.
    2022, arXiv 2210.13438, section 3.4, equation 2). Gradients reach x̂ alone."""
    terms = [
        (a.detach() - b).abs().mean() / a.detach().abs().mean().clamp(min=1e-6)
        for view, view_hat in zip(of_x, of_x_hat, strict=True)
        for a, b in zip(view[:-1], view_hat[:-1], strict=True)
    ]
    return torch.stack(terms).mean()


def steepness(of_x: Judgement, of_near: Judgement, distance: float) -> Tensor:
    """Mean over views of (D(x + δ) − D(x))² / distance², δ normal noise of that standard deviation: about the
    squared length of the logits' gradient, a scalar (R1 of Mescheder et al. 2018, arXiv 1801.04406, section
    4.1, by differences as Lin et al. 2025, arXiv 2501.08316, section 3.4)."""
    pairs = zip(of_x, of_near, strict=True)
    return torch.stack([(a[-1] - b[-1]).square().mean() for a, b in pairs]).mean() / distance**2


# Of the side of a picture: how far a view is shifted at most, and how large a hole it has.
SHIFT, HOLE = 1 / 8, 1 / 2


def differentiable_view(x: Tensor, step: Step | None, purpose: str) -> Tensor:
    """Pictures (B, C, H, W) in a random view each: brightness, saturation, contrast, a shift with zeros
    behind, and a square hole (Zhao et al. 2020, arXiv 2006.10738, section 3.2); gradients pass. What is
    random follows from the step, the purpose and the example's place in the global batch.

    A discriminator that sees data, and what a decoder made, in such views alone cannot learn a small set by
    heart.
    """
    b, _, h, w = x.shape
    u = torch.stack([_uniform(b, step, f"{purpose}.{i}") for i in range(7)]).to(x.dtype)
    u = send(u, x.device)[:, :, None, None, None]
    x = x + u[0] - 0.5
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (2 * u[1]) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (u[2] + 0.5) + mean
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    across, down = (((2 * u[i] - 1) * SHIFT * n).round().long().view(b, 1) for i, n in ((3, w), (4, h)))
    x = _shifted(_shifted(x, rows, down, 2), columns, across, 3)
    top, left = (u[i].view(b, 1) * (n + 1) - HOLE * n / 2 for i, n in ((5, h), (6, w)))
    inside = _within(rows, top, HOLE * h)[:, :, None] & _within(columns, left, HOLE * w)[:, None]
    return x.masked_fill(inside[:, None], 0)


def _uniform(count: int, step: Step | None, purpose: str) -> Tensor:
    return torch.rand(count, dtype=torch.float64) if step is None else step.uniform(count, purpose)


def _shifted(x: Tensor, places: Tensor, by: Tensor, axis: int) -> Tensor:
    """x with each example moved along an axis by `by` (B, 1) places; zeros come in."""
    n = len(places)
    source = places - by  # (B, n)
    shape = [len(x), 1, 1, 1]
    shape[axis] = n
    index = source.clamp(0, n - 1).view(shape).expand_as(x)
    outside = ((source < 0) | (source >= n)).view(shape)
    return x.gather(axis, index).masked_fill(outside, 0)


def _within(places: Tensor, start: Tensor, length: float) -> Tensor:
    return (places >= start) & (places < start + length)
