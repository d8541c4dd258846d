"""The tokenizer's objective: weights of the losses, the KL, gradients to every weight, and that it is learnt.

Left out: losses and bottlenecks by themselves (test_losses.py, tokenizer/bottlenecks/test_contract.py), and
the training scripts (pipelines/scripts/test_training.py).
"""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.tiny import bottleneck_config, image_config, pictures, tokenizer
from tests.tokenizer.test_model import KINDS
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.distributed import Step


def test_losses_are_weighted_and_stats_are_not() -> None:
    tok = tokenizer("vq", losses={"l1": 0.0, "l2": 2.5, "bernoulli": 0.0})
    x = pictures(2, 3, 10, 9)
    out = tok(x)
    mse = F.mse_loss(out.x_hat, x)
    assert set(out.losses) == {"l2", "commitment"}
    torch.testing.assert_close(out.losses["l2"], 2.5 * mse)
    torch.testing.assert_close(out.stats["l2"], mse.detach())
    assert out.losses["commitment"].item() == pytest.approx(0.25 * out.stats["commitment"].item())
    both = tokenizer("vq", losses={"l1": 1.0, "l2": 1.0})(x)
    assert {"l1", "l2", "commitment"} == set(both.losses)
    torch.testing.assert_close(both.losses["l1"], F.l1_loss(both.x_hat, x))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_stats_are_finite_scalars_that_train_every_weight(kind: str) -> None:
    tok = tokenizer(kind).train()
    out = tok(pictures(4, 3, 20, 20), Step(0, 50, 0, 4))
    for name, value in {**out.losses, **out.stats}.items():
        assert value.shape == () and torch.isfinite(value), name
    assert not any(v.requires_grad for v in out.stats.values())
    torch.stack(list(out.losses.values())).sum().backward()
    for name, parameter in tok.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_kl_is_in_nats_per_element() -> None:
    tok = tokenizer("gaussian")
    x = pictures(2, 3, 10, 9)
    out = tok(x)
    kl = tok.posterior(x).kl().mean()
    assert out.stats["kl"].item() == pytest.approx(kl.item())
    assert out.losses["kl"].item() == pytest.approx(kl.item() / (3 * 10 * 9))
    # So that losses["kl"] + losses["bernoulli"], times the elements, is −ELBO.
    tok = tokenizer("gaussian", losses={"bernoulli": 1.0}, output="tanh", channels=1)
    x = torch.where(pictures(2, 1, 8, 8) > 0, 1.0, -1.0)
    out = tok(x)
    nats = -torch.distributions.Bernoulli((out.x_hat + 1) / 2).log_prob((x > 0).float()).sum((1, 2, 3)).mean()
    total = 64 * sum(v.item() for v in out.losses.values())
    assert total == pytest.approx((nats + out.stats["kl"]).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns(kind: str) -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(image_config(), bottleneck_config(kind), {"l2": 1.0})
    if kind == "gaussian":
        config = dataclasses.replace(config, bottleneck=bottleneck_config(kind, kl_weight=0.01))
    tok = Tokenizer(config).train()
    optimizer = torch.optim.Adam(tok.parameters(), 1e-2)
    x = pictures(16, 3, 16, 16)
    losses = []
    for index in range(60):
        out = tok(x, Step(0, index, 0, 16))
        optimizer.zero_grad()
        torch.stack(list(out.losses.values())).sum().backward()
        optimizer.step()
        losses.append(out.losses["l2"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert F.mse_loss(tok.eval()(x).x_hat, x).item() < 0.7 * x.var().item()


def test_bf16_autocast_keeps_the_losses_in_float32() -> None:
    tok = tokenizer("vq").train()
    x = pictures(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = tok(x, Step(0, 50, 0, 4))
    assert {v.dtype for v in out.losses.values()} == {torch.float32}
    assert out.z_q.dtype == torch.float32
    expected = tokenizer("vq").train()(x, Step(0, 50, 0, 4))
    assert out.losses["l2"].item() == pytest.approx(expected.losses["l2"].item(), rel=0.05)
