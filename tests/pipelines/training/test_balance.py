"""Losses balanced by their gradients: shares as asked for, whatever their sizes, batches and processes."""

import pytest
import torch
from torch import Tensor

from pipelines.training.balance import Balance


def x_hat(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def pulls(x: Tensor, by: tuple[float, float]) -> dict[str, Tensor]:
    """Losses that pull along axes of their own, by so much."""
    return {"first": by[0] * x[:, 0].mean(), "second": by[1] * x[:, 1].mean(), "third": 0 * x[:, 2].mean()}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("by", [(1.0, 1.0), (1000.0, 0.001)])
def test_shares_are_those_of_the_weights(batch: int, by: tuple[float, float]) -> None:
    x, balance = x_hat(batch), Balance({"first": 3.0, "second": 1.0, "unused": 0.0})
    for _ in range(3):
        x.grad = None
        balance(pulls(x, by), x).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.75, 0.25, 0.0]]).expand(batch, 3) / batch)


def test_a_loss_that_begins_later_takes_its_share_then() -> None:
    x, balance = x_hat(), Balance({"first": 1.0, "second": 1.0})
    first = {"first": pulls(x, (5.0, 1.0))["first"]}
    balance(first, x).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0] * 4, torch.tensor([1.0, 0.0, 0.0]))
    x.grad = None
    balance(pulls(x, (5.0, 1.0)), x).backward()
    torch.testing.assert_close(x.grad[0] * 4, torch.tensor([0.5, 0.5, 0.0]))


def test_averages_are_slow_saved_and_untouched_by_what_is_not_finite() -> None:
    x, balance = x_hat(), Balance({"first": 1.0, "second": 1.0})
    balance(pulls(x, (1.0, 1.0)), x)
    before = balance.norms / balance.counts
    balance(pulls(x, (float("nan"), 1.0)), x)
    assert torch.isfinite(balance.norms).all()
    balance(pulls(x, (2.0, 1.0)), x)
    after = balance.norms / balance.counts
    assert 1 < after[0] / before[0] < 2 and after[1] == pytest.approx(before[1].item())
    other = Balance({"first": 1.0, "second": 1.0})
    other.load_state_dict(balance.state_dict())
    assert torch.equal(other(pulls(x, (1.0, 1.0)), x), balance(pulls(x, (1.0, 1.0)), x))
