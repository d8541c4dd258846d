"""Gaussian: posterior, sample, KL, warm-up and noise of the VAE's bottleneck, against the paper by hand.

Left out: what every bottleneck keeps (test_contract.py).
"""

import math

import pytest
import torch

from tests.helpers.tiny import bottleneck_config, latents
from tokenizer.bottlenecks.gaussian import Gaussian, Posterior
from tokenizer.distributed import Step


def gaussian(**changes: object) -> Gaussian:
    bottleneck = bottleneck_config("gaussian", **{"dim": 2, **changes}).build()
    assert isinstance(bottleneck, Gaussian)
    return bottleneck.train()


def test_kl_by_hand() -> None:
    mean = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    logvar = torch.log(torch.tensor([[[1.0, 4.0]], [[1.0, 0.25]]]))
    kl = Posterior(mean, logvar).kl()
    by_hand = [0.5 * (1 + 0) + 0.5 * (4 - 1 - math.log(4)), 0.5 * (4 + 0.25 - 1 - math.log(0.25))]
    assert kl.tolist() == pytest.approx(by_hand)
    normals = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normals, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(kl, expected)
    assert Posterior(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4)).kl().tolist() == [0, 0, 0]


def test_loss_and_stats_are_the_mean_kl_of_the_batch() -> None:
    bottleneck = gaussian(kl_weight=0.5)
    z = latents(bottleneck, 3, 4, 5)
    out = bottleneck(z)
    kl = bottleneck.posterior(z).kl()
    assert out.stats["kl"].item() == pytest.approx(kl.mean().item())
    assert out.losses["kl"].item() == pytest.approx(0.5 * kl.mean().item())
    assert out.stats["posterior_std"].item() == pytest.approx((0.5 * z[:, 2:]).exp().mean().item())


def test_samples_have_the_posteriors_mean_and_variance() -> None:
    posterior = Posterior(
        torch.tensor([1.0, -3.0]).expand(40000, 2), torch.tensor([0.0, 2.0]).expand(40000, 2)
    )
    z = posterior.sample(torch.Generator().manual_seed(0))
    assert z.mean(0).tolist() == pytest.approx([1, -3], abs=0.05)
    assert z.std(0).tolist() == pytest.approx([1, math.e], rel=0.02)
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(0)), z)
    assert not torch.equal(posterior.sample(torch.Generator().manual_seed(1)), z)
    assert torch.equal(posterior.mode(), posterior.mean)


def test_the_sample_is_reparameterised() -> None:
    mean, logvar = torch.zeros(2, 3, requires_grad=True), torch.full((2, 3), 0.6, requires_grad=True)
    z = Posterior(mean, logvar).sample(torch.Generator().manual_seed(0))
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones(2, 3))
    torch.testing.assert_close(logvar.grad, z.detach() / 2)  # dσ/dlogvar = σ / 2


def test_training_samples_and_eval_takes_the_mean() -> None:
    bottleneck = gaussian()
    z = latents(bottleneck, 500, 4)
    mean, std = z[:, :2], (0.5 * z[:, 2:]).exp()
    noise = (bottleneck(z, Step(0, 0, 0, 500)).z_q - mean) / std
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(bottleneck.eval()(z).z_q, mean)


def test_noise_depends_on_seed_step_and_row_alone() -> None:
    bottleneck = gaussian()
    z = latents(bottleneck, 6, 5)
    whole = bottleneck(z, Step(0, 3, 0, 6)).z_q
    parts = [bottleneck(z[i : i + 2], Step(0, 3, i, 6, last=i == 4)).z_q for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(9)
    assert torch.equal(bottleneck(z, Step(0, 3, 0, 6)).z_q, whole)
    assert not torch.equal(bottleneck(z, Step(0, 4, 0, 6)).z_q, whole)
    assert not torch.equal(bottleneck(z, Step(1, 3, 0, 6)).z_q, whole)
    noise = (whole - z[:, :2]) / (0.5 * z[:, 2:]).exp()
    assert (noise[0] - noise[1]).abs().min() > 1e-4


def test_kl_weight_warms_up_linearly() -> None:
    bottleneck = gaussian(kl_weight=3.0, kl_warmup_steps=4)
    z = latents(bottleneck, 2, 5)

    def factor(step: Step | None) -> float:
        out = bottleneck(z, step)
        return (out.losses["kl"] / out.stats["kl"]).item()

    factors = [factor(Step(0, i, 0, 2)) for i in range(6)]
    assert factors == pytest.approx([0.75, 1.5, 2.25, 3, 3, 3])
    assert factor(None) == pytest.approx(3)


def test_log_variance_is_clamped() -> None:
    bottleneck = gaussian()
    z = torch.tensor([0.0, 0.0, 1e6, -1e6]).view(1, 4, 1).requires_grad_()
    posterior = bottleneck.posterior(z)
    assert posterior.logvar.flatten().tolist() == [20, -30]
    out = bottleneck(z, Step(0, 0, 0, 1))
    out.losses["kl"].backward()
    assert torch.isfinite(out.losses["kl"]) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim is 0, expected 1 to 4096"),
        ({"kl_weight": -0.1}, "kl_weight is -0.1, expected 0 or more"),
        ({"kl_weight": math.inf}, "kl_weight is inf, expected 0 or more"),
        ({"kl_warmup_steps": -1}, "kl_warmup_steps is -1, expected 0 or more"),
    ],
)
def test_bad_gaussian_configs_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian(**changes)
