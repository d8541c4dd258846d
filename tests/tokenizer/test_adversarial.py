"""Adversarial losses by hand-made logits, matching of features, and differentiable views."""

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import pictures
from tokenizer.adversarial import (
    ADVERSARIAL_LOSSES,
    decoder_loss,
    differentiable_view,
    discriminator_loss,
    feature_matching,
    steepness,
)
from tokenizer.discriminators import Judgement
from tokenizer.distributed import Step


def judged(*logits: float) -> Judgement:
    """One view without features."""
    return [[torch.tensor(logits, requires_grad=True)]]


@pytest.mark.parametrize(
    ("kind", "of_x", "of_x_hat", "loss", "accuracy", "of_decoder"),
    [
        ("hinge", (2.0, 0.5), (-2.0, 0.5), (0 + 0.5) / 2 + (0 + 1.5) / 2, 0.75, (2.0 - 0.5) / 2),
        ("least_squares", (1.0, 0.0), (0.0, 0.25), 0.5 + 0.03125, 0.75, (1 + 0.5625) / 2),
    ],
)
def test_losses_of_the_papers(
    kind: str,
    of_x: tuple[float, ...],
    of_x_hat: tuple[float, ...],
    loss: float,
    accuracy: float,
    of_decoder: float,
) -> None:
    found, right = discriminator_loss(kind, judged(*of_x), judged(*of_x_hat))
    assert found.item() == pytest.approx(loss) and right.item() == pytest.approx(accuracy)
    assert not right.requires_grad
    assert decoder_loss(kind, judged(*of_x_hat)).item() == pytest.approx(of_decoder)


@pytest.mark.parametrize("kind", ADVERSARIAL_LOSSES)
def test_each_side_pulls_its_way(kind: str) -> None:
    """The discriminator raises logits of data and lowers others; the decoder raises its own."""
    of_x, of_x_hat = judged(0.2), judged(0.2)
    discriminator_loss(kind, of_x, of_x_hat)[0].backward()
    assert of_x[0][0].grad < 0 < of_x_hat[0][0].grad  # type: ignore[operator]
    made = judged(0.2)
    decoder_loss(kind, made).backward()
    assert made[0][0].grad < 0  # type: ignore[operator]


def test_views_count_alike() -> None:
    few, many = judged(0.0), judged(*[4.0] * 99)
    assert decoder_loss("hinge", few + many).item() == -2


def test_features_match_relative_to_their_size() -> None:
    a, b = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0], requires_grad=True)
    logits = torch.zeros(1)
    found = feature_matching([[a, 10 * a, logits]], [[b, 10 * b, logits + 9]])
    assert found.item() == pytest.approx(0.5)  # 1 / 2 in both layers; logits do not count
    found.backward()
    assert torch.equal(b.grad, torch.tensor([0.25, 0.25]))
    assert feature_matching([[a, logits]], [[a, logits]]).item() == 0


def view(x: Tensor, step: Step | None = None, purpose: str = "made") -> Tensor:
    return differentiable_view(x, step or Step(0, 7, 0, len(x)), purpose)


def test_views_differ_by_example_step_and_purpose_and_by_nothing_else() -> None:
    x = pictures(1, 3, 16, 16).expand(4, -1, -1, -1)
    seen = view(x)
    assert all((seen[i] - seen[j]).abs().max() > 0.1 for i in range(4) for j in range(i))
    assert torch.equal(seen, view(x))
    for other in (view(x, Step(0, 8, 0, 4)), view(x, Step(1, 7, 0, 4)), view(x, purpose="data")):
        assert not torch.equal(seen, other)
    halves = [view(x[:2], Step(0, 7, 0, 4)), view(x[2:], Step(0, 7, 2, 4))]
    assert torch.equal(torch.cat(halves), seen)  # whoever has which rows


def test_views_are_of_the_whole_range() -> None:
    """Each of brightness, shift and hole by what it does to a grey picture; together they hide
    a quarter."""
    x = torch.full((400, 1, 16, 16), 0.5)
    seen = view(x, Step(0, 1, 0, 400))
    levels = seen.flatten(1).max(1).values
    assert levels.min() < 0.1 and levels.max() > 0.9
    hidden = (seen == 0).float().mean((1, 2, 3))
    assert hidden.mean() == pytest.approx(0.25, abs=0.06) and hidden.max() <= 0.5


def test_shifts_move_and_do_not_wrap() -> None:
    x = torch.zeros(300, 1, 16, 16)
    x[:, :, 0, 0] = 1000.0  # a bright corner
    seen = view(x, Step(0, 2, 0, 300)) > 100
    where = seen.nonzero()
    assert len(where) > 50 and int(where[:, 2:].max()) <= 2
    assert len({(int(r), int(c)) for _, _, r, c in where}) == 9


def test_gradients_pass_through_views() -> None:
    x = pictures(4, 3, 16, 16).requires_grad_()
    view(x).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert ((x.grad != 0).float().mean((1, 2, 3)) > 0.4).all()


def test_steepness_is_the_gradients_length() -> None:
    slope = torch.tensor([3.0, -4.0])
    x = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(1))
    of_x, of_near = ([[y @ slope]] for y in (x, x + 0.05 * noise))
    assert steepness(of_x, of_near, 0.05).item() == pytest.approx(25, rel=0.05)
    assert steepness(of_x + of_x, of_near + of_x, 0.05).item() == pytest.approx(12.5, rel=0.05)
