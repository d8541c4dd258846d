"""GaussianQuant: codes, KL per group and the weights of TDC against plain lines, and codes for a trained VAE.

Left out: what every bottleneck keeps (test_contract.py), the VAE itself (test_gaussian.py), and the script
(pipelines/scripts/test_quantize_vae.py).
"""

import itertools
import math
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.helpers.tiny import bottleneck_config, latents, tokenizer
from tokenizer.bottlenecks.gaussian_quant import GaussianQuant
from tokenizer.distributed import Step


def quantizer(**changes: Any) -> GaussianQuant:
    defaults = {"dim": 4, "group_dim": 2, "codebook_size": 64}
    bottleneck = bottleneck_config("gaussian_quant", **{**defaults, **changes}).build()
    assert isinstance(bottleneck, GaussianQuant)
    return bottleneck.train()


def certain(bottleneck: GaussianQuant, batch: int, *grid: int, logvar: float = -3.0, seed: int = 0) -> Tensor:
    """z whose posterior has standard normal means and log-variances about `logvar`."""
    mean, noise = latents(bottleneck, batch, *grid, seed=seed).chunk(2, dim=1)
    return torch.cat([mean, logvar + 0.5 * noise], dim=1)


# Codes


@pytest.mark.parametrize("size", [3, 500, 3000])
def test_codes_are_those_that_posterior_prefers_most_over_prior(size: int) -> None:
    bottleneck = quantizer(codebook_size=size).double()
    z = certain(bottleneck, 5, 3, 7).double()
    mean, std = z[:, :4], (z[:, 4:] / 2).exp()
    codebook = bottleneck.codebook
    expected = torch.empty(5, 2, 3, 7, dtype=torch.int64)
    for b, k, h, w in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        group = slice(2 * k, 2 * k + 2)
        posterior = torch.distributions.Normal(mean[b, group, h, w], std[b, group, h, w])
        ratio = posterior.log_prob(codebook) - torch.distributions.Normal(0.0, 1.0).log_prob(codebook)
        expected[b, k, h, w] = ratio.sum(1).argmax()
    assert torch.equal(bottleneck.encode(z), expected)
    decoded = bottleneck.decode(expected)
    for channel in range(4):
        assert torch.equal(decoded[:, channel], codebook[expected[:, channel // 2], channel % 2])
    # In float32 hardly any code differs, and then hardly in what it decodes to.
    single = bottleneck.float().encode(z.float())
    assert (single == expected).double().mean() > 0.98


def test_of_single_channels_codes_are_nearest_to_the_mean() -> None:
    bottleneck = quantizer(group_dim=1, codebook_size=5000).double()
    z = certain(bottleneck, 2, 90, logvar=-12).double()
    distances = (z[:, :4, :, None] - bottleneck.codebook[:, 0]).abs()
    assert torch.equal(bottleneck.encode(z), distances.argmin(-1))
    # In float32 an entry that is farther by less than what rounding of the search hides.
    found = bottleneck.float().eval()(z.float()).z_q.double()
    assert ((found - z[:, :4]).abs() - distances.amin(-1)).max() < 1e-3


def test_a_channel_that_the_posterior_knows_nothing_of_does_not_choose() -> None:
    bottleneck = quantizer(codebook_size=4000, dim=2)
    for free in (-0.01, 0.0, 0.3):
        z = torch.tensor([0.5, 0.02, -6.0, free]).view(1, 4, 1)
        entry = bottleneck.decode(bottleneck.encode(z)).flatten()
        assert entry[0].item() == pytest.approx(0.5, abs=0.1) and abs(entry[1]) < 2
        z = torch.tensor([0.02, -0.02, free, free]).view(1, 4, 1)
        assert bottleneck.decode(bottleneck.encode(z)).abs().max() < 0.5


@pytest.mark.parametrize("group_dim", [1, 2, 4])
def test_a_larger_codebook_comes_nearer_to_the_mean(group_dim: int) -> None:
    errors = []
    for size in (4, 64, 1024, 16384):
        bottleneck = quantizer(group_dim=group_dim, codebook_size=size)
        z = certain(bottleneck, 8, 16, logvar=-5)
        errors.append((bottleneck.eval()(z).z_q - z[:, :4]).square().mean().item())
    assert all(a > 1.5 * b for a, b in itertools.pairwise(errors)) and errors[-1] < 0.06


def test_far_means_get_the_farthest_entries() -> None:
    bottleneck = quantizer(codebook_size=100)
    z = torch.tensor([1e6, 1e6, -1e6, 1e6, -30.0, -30.0, -40.0, -40.0]).view(1, 8, 1)
    entries = bottleneck.decode(bottleneck.encode(z)).view(2, 2)
    sums = bottleneck.codebook @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).T
    assert torch.equal((entries * torch.tensor([[1.0, 1.0], [-1.0, 1.0]])).sum(1), sums.amax(0))


def test_the_codebook_is_standard_normal_and_the_seeds() -> None:
    codebook = quantizer(codebook_size=20000).codebook
    assert codebook.shape == (20000, 2) and codebook.unique().numel() > 39000
    assert codebook.mean(0).tolist() == pytest.approx([0, 0], abs=0.03)
    torch.testing.assert_close(codebook.T.cov(), torch.eye(2), atol=0.03, rtol=0)
    torch.manual_seed(5)
    assert torch.equal(quantizer(codebook_size=20000).codebook, codebook)
    assert not torch.equal(quantizer(codebook_size=20000, seed=1).codebook, codebook)


def test_what_is_saved_decides_not_the_generator() -> None:
    bottleneck, other = quantizer(), quantizer(seed=1)
    z = certain(bottleneck, 4, 9)
    assert not torch.equal(other.encode(z), bottleneck.encode(z))
    other.load_state_dict(bottleneck.state_dict())
    assert torch.equal(other.encode(z), bottleneck.encode(z))


def test_vectors_of_plots_belong_together() -> None:
    bottleneck = quantizer()
    z = certain(bottleneck, 3, 5, logvar=-9)
    vectors, compared = bottleneck.codebook_vectors(), bottleneck.compared(z)
    assert vectors.shape == (2, 64, 2) and compared.shape == (2, 15, 2)
    nearest = torch.cdist(compared, vectors).argmin(2)
    same = nearest == rearrange(bottleneck.encode(z), "b k t -> k (b t)")
    assert same.float().mean() > 0.9


# Training


def test_training_is_that_of_the_vae() -> None:
    bottleneck = quantizer(target_divergence=False, kl_weight=0.5, kl_warmup_steps=4)
    vae = bottleneck_config("gaussian", dim=4, kl_weight=0.5, kl_warmup_steps=4).build().train()
    z, step = certain(bottleneck, 6, 5), Step(3, 1, 0, 6)
    out, expected = bottleneck(z, step), vae(z, step)
    assert torch.equal(out.z_q, expected.z_q)
    for name in ("kl", "posterior_std"):
        torch.testing.assert_close(out.stats[name], expected.stats[name])
    torch.testing.assert_close(out.losses["kl"], expected.losses["kl"])
    assert out.stats["kl_bits_per_code"].item() == pytest.approx(out.stats["kl"].item() / math.log(2) / 10)
    assert torch.equal(out.codes, bottleneck.encode(z))
    used = out.codes.unique().numel() / 64
    assert out.stats["usage"].item() == pytest.approx(used)
    assert torch.equal(bottleneck.kl_weights, torch.ones(3))


def reference_step(z: Tensor, weights: list[float], target: float, tolerance: float) -> tuple[float, Tensor]:
    """The weighted KL of a global batch z (B, 8, T), and its bits per group less the target."""
    mean, logvar = z[:, :4], z[:, 4:]
    kl = (mean**2 + logvar.exp() - 1 - logvar) / 2
    bits = torch.stack([kl[:, :2].sum(1), kl[:, 2:].sum(1)], 1) / math.log(2) - target
    weight = torch.full_like(bits, weights[1])
    weight[bits < -tolerance] *= weights[0]
    weight[bits > tolerance] *= weights[2]
    nats = (bits + target) * math.log(2)
    return (weight * nats).sum().item() / len(z), bits


@pytest.mark.parametrize("passes", [1, 3])
def test_tdc_by_plain_lines(passes: int) -> None:
    bottleneck = quantizer(kl_weight=0.25, codebook_size=32, tolerance=0.7).double()
    weights = [1.0, 1.0, 1.0]
    moved = set()
    for index in range(40):
        # From far too few bits to far too many, so that every weight goes both ways.
        z = certain(bottleneck, 6, 4, logvar=-9.0 * index / 40, seed=index).double()
        expected, bits = reference_step(z, weights, 5.0, 0.7)
        losses = [
            bottleneck(part, Step(0, index, 6 // passes * i, 6, last=i == passes - 1)).losses["kl"].item()
            for i, part in enumerate(z.chunk(passes))
        ]
        assert sum(losses) / passes == pytest.approx(0.25 * expected, rel=1e-12)
        below, above = ((bits < -0.7).double().mean() > 0.01, (bits > 0.7).double().mean() > 0.01)
        grow = (not below, bool(bits.sum() > 0), bool(above))
        moved |= set(enumerate(grow))
        weights = [w * (1.01 if g else 1 / 1.01) for w, g in zip(weights, grow, strict=True)]
        weights = [min(weights[0], 1.0), weights[1], max(weights[2], 1.0)]
        assert bottleneck.kl_weights.tolist() == pytest.approx(weights, rel=1e-12)
    assert len(moved) == 6


@pytest.mark.parametrize("size", [8, 32])
def test_tdc_pulls_every_group_to_the_bits_of_a_code(size: int) -> None:
    bottleneck = quantizer(codebook_size=size, kl_weight=0.1)
    generator = torch.Generator().manual_seed(0)
    # Channels of very different worth: without TDC the first group would take most bits.
    wanted, worth = torch.randn(16, 4, 4, generator=generator), torch.tensor([8.0, 4, 1, 1]).view(1, 4, 1)
    z = torch.zeros(16, 8, 4, requires_grad=True)
    optimizer = torch.optim.Adam([z], 0.05)
    for index in range(500):
        out = bottleneck(z, Step(0, index, 0, 16))
        loss = (worth * (out.z_q - wanted).square()).sum((1, 2)).mean() + out.losses["kl"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits = bottleneck.posterior(z).kl_by_channel().detach() / math.log(2)
    groups = rearrange(bits, "b (k m) t -> k (b t) m", m=2).sum(2).mean(1)
    assert groups.tolist() == pytest.approx([math.log2(size)] * 2, abs=1.0)


def test_weights_of_tdc_are_saved_and_are_not_coding() -> None:
    bottleneck = quantizer()
    for index in range(5):
        bottleneck(certain(bottleneck, 4, 5), Step(0, index, 0, 4))
    assert not torch.equal(bottleneck.kl_weights, torch.ones(3))
    assert "kl_weights" in bottleneck.state_dict() and bottleneck.not_coding == {"kl_weights"}
    tok = tokenizer("gaussian_quant")
    before = tok.fingerprint()
    tok.bottleneck.kl_weights.mul_(2)
    assert tok.fingerprint() == before
    tok.bottleneck.codebook.mul_(2)
    assert tok.fingerprint() != before


def test_values_that_are_not_finite_leave_all_as_it_was() -> None:
    bottleneck = quantizer()
    z = certain(bottleneck, 2, 5)
    bottleneck(z, Step(0, 0, 0, 2))
    state = {k: v.clone() for k, v in {**bottleneck.state_dict(), **bottleneck.training_state()}.items()}
    z[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"z_e \(2, 8, 5\) .*NaN.* step 8"):
        bottleneck(z, Step(0, 7, 0, 2))
    with pytest.raises(ValueError, match=r"z_e .*NaN"):
        bottleneck.encode(z)
    for name, value in {**bottleneck.state_dict(), **bottleneck.training_state()}.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim is 0, expected 1 to 4096"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0, expected 0 or more"),
        ({"codebook_size": 0}, r"codebook_size is 0, expected 2 to 2\^24"),
        ({"codebook_size": 1}, r"codebook_size is 1, expected 2 to 2\^24"),
        ({"group_dim": 3}, "group_dim is 3, expected a divisor of dim, 4"),
        ({"group_dim": 0}, "group_dim is 0, expected a divisor of dim, 4"),
        ({"group_dim": 8}, "group_dim is 8, expected a divisor of dim, 4"),
        ({"tolerance": -0.1}, "tolerance is -0.1, expected 0 or more"),
        ({"tolerance": math.inf}, "tolerance is inf, expected 0 or more"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantizer(**changes)
