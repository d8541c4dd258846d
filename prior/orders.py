"""Orders: which position of the grid is predicted first, which next; a prior of the order `any` knows all.

An order is (P,) int64, or (B, P) with one for each example: `order[i]` is the position, counted in raster
order, whose codes are predicted i-th. The codes of a position stay together, in the pattern's order. A pass
in an order is one over codes that were put in that order: only where a step stands and what it predicts are
told anew (`PriorNetwork.hidden`), as in RAR (arXiv 2411.00776, section 3.2).

Left out: what training draws (`train_prior.py`), and choosing the next positions while drawing
(`sampling/parallel.py`).
"""

import torch
from torch import Tensor

from prior.checks import Array, as_codes
from prior.config import PriorConfig


def require_any_order(config: PriorConfig, what: str) -> None:
    """`ValueError` unless a prior of this config has learnt every order, which `what` needs."""
    if config.order != "any":
        raise ValueError(
            f"{what} needs a prior that has learnt every order, and this one knows raster order only; leave "
            "it out, or train a prior with --model.order any"
        )


def check_order(
    order: Array, config: PriorConfig, batch_size: int, device: torch.device, look: bool = True
) -> Tensor:
    """`order` (P,) or (batch_size, P) → (1, P) or (batch_size, P) int64 on `device`.

    Raises `ValueError` unless each row holds every position once (without a `look` at the values, for which a
    GPU stands still, they may not) and the prior of this config has learnt every order.
    """
    require_any_order(config, "order")
    order = as_codes(order, device, "order")
    positions = config.num_positions
    if order.dtype != torch.int64 or tuple(order.shape) not in ((positions,), (batch_size, positions)):
        raise ValueError(
            f"order: expected int64 of shape ({positions},) or ({batch_size}, {positions}), got "
            f"{order.dtype} of shape {tuple(order.shape)}"
        )
    order = order.view(-1, positions)
    if look and bool((order.sort(dim=1).values != torch.arange(positions, device=device)).any()):
        raise ValueError(f"order: expected every position from 0 to {positions - 1} once in each row")
    return order


def random_orders(count: int, positions: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` random orders (count, positions) int64, on the generator's device."""
    device = torch.device("cpu") if generator is None else generator.device
    chance = torch.rand((count, positions), generator=generator, dtype=torch.float64, device=device)
    return chance.argsort(dim=1, stable=True)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """x (B, K, *grid) with its positions in `order` (1 or B, P): place i holds position order[i]."""
    return x.flatten(2).gather(2, order[:, None].expand(len(x), x.shape[1], -1)).view(x.shape)


def in_raster(x: Tensor, order: Tensor) -> Tensor:
    """The inverse of `in_order`."""
    return in_order(x, order.argsort(dim=1))


def first_to_last(order: Tensor, rank: Tensor) -> Tensor:
    """`order` (1 or B, P) with positions of lower `rank` (B, P) int64 before those of higher; within a rank
    they stay as they are."""
    order = order.expand(len(rank), -1)
    return order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))
