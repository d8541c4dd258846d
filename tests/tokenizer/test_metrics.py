"""Metrics against hand-made and numpy values."""

import math

import numpy as np
import pytest
import torch

from tests.helpers.warm import run_ranks
from tokenizer.metrics import (
    CodeUsage,
    bernoulli_elbo,
    bits_per_dim,
    gaussian_elbo,
    kid,
    psnr,
    psnr_from_mse,
    ssim,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_of_a_known_offset() -> None:
    x = noise(3, 1, 8, 8) / 2
    x_hat = torch.stack([x[0] + 0.2, x[1] - 0.02, x[2]])
    got = psnr(x_hat, x)
    # Peak to peak 2: 20 log10(2 / 0.2) = 20 dB; equal pictures are capped.
    assert got.shape == (3,)
    assert got.tolist() == pytest.approx([20, 40, 100], abs=1e-3)
    assert psnr_from_mse(torch.tensor([0.04, 0.0])).tolist() == pytest.approx([20, 100])


def test_psnr_clamps_to_the_range() -> None:
    assert psnr(torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 1, 2, 2)).item() == 100


def test_psnr_is_per_item_not_of_the_mean() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x_hat = torch.stack([x[0] + 0.2, x[1] + 0.02])
    assert psnr(x_hat, x).mean().item() == pytest.approx(30, abs=1e-3)
    assert psnr(x_hat.bfloat16(), x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [3, 4, 8, 11, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_one_on_equals_and_falls_with_noise(size: int, channels: int) -> None:
    x = noise(2, channels, size, size + 2)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    little, much = ((x + s * noise(*x.shape, seed=1)).clamp(-1, 1) for s in (0.1, 0.8))
    assert (ssim(little, x) > ssim(much, x)).all() and (ssim(much, x) < 0.95).all()


def test_ssim_of_flat_pictures_by_hand() -> None:
    # Without structure SSIM is its luminance term, on [0, 1]: (2ab + c1) / (a² + b² + c1), c1 = 0.01².
    a, b = 0.25, 0.75
    flat = [torch.full((1, 1, 16, 16), 2 * v - 1) for v in (a, b)]
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(*flat).item() == pytest.approx(expected, rel=1e-4)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ssim: .*3 x 3 .*got \(1, 1, 2, 9\)"):
        ssim(torch.zeros(1, 1, 2, 9), torch.zeros(1, 1, 2, 9))
    with pytest.raises(ValueError, match=r"one shape .*\(1, 1, 4, 4\) and \(1, 3, 4, 4\)"):
        psnr(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"empty, got \(0, 1, 4, 4\)"):
        psnr(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], got torch.uint8"):
        psnr(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_code_usage_against_numpy() -> None:
    codes = torch.randint(0, 7, (5, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    codes[:, 1] = codes[:, 1].clamp(max=2)
    usage = CodeUsage(num_codebooks=2, codebook_size=16)
    usage.update(codes[:2])
    usage.update(codes[2:].to(torch.int32))
    assert usage.counts.dtype == torch.int64
    for k in range(2):
        expected = np.bincount(codes[:, k].numpy().ravel(), minlength=16)
        p = expected[expected > 0] / expected.sum()
        bits = -(p * np.log2(p)).sum()
        assert usage.counts[k].tolist() == expected.tolist()
        assert usage.usage()[k].item() == pytest.approx((expected > 0).mean())
        assert usage.entropy_bits()[k].item() == pytest.approx(bits)
        assert usage.perplexity()[k].item() == pytest.approx(2**bits)


def test_uniform_and_single_codes() -> None:
    usage = CodeUsage(2, 8)
    usage.update(torch.stack([torch.arange(8), torch.full((8,), 3)])[None])
    assert usage.usage().tolist() == [1, 1 / 8]
    assert usage.perplexity().tolist() == pytest.approx([8, 1])
    assert usage.entropy_bits().tolist() == pytest.approx([3, 0])


def test_code_usage_refuses_codes_that_do_not_fit() -> None:
    usage = CodeUsage(1, 8)
    with pytest.raises(ValueError, match=r"no codes .*update\(codes\)"):
        usage.perplexity()
    with pytest.raises(ValueError, match=r"\[0, 8\), got \[0, 8\]"):
        usage.update(torch.tensor([[[0, 8]]]))
    with pytest.raises(ValueError, match=r"\[0, 8\), got \[-1, 0\]"):
        usage.update(torch.tensor([[[0, -1]]]))
    with pytest.raises(ValueError, match=r"expected integer codes \(B, 1"):
        usage.update(torch.zeros(2, 2, 4, dtype=torch.int64))
    assert usage.counts.sum() == 0


COUNT = """
import torch, torch.distributed as dist
from pipelines.run.command_line import leave_group
from tokenizer.metrics import CodeUsage

dist.init_process_group("gloo")
usage = CodeUsage(1, 4)
usage.update(torch.tensor([[[dist.get_rank(), 3]]]))
usage.reduce()
usage.reduce()  # counting twice would show
print(usage.counts.tolist())
leave_group()
"""


def test_code_usage_sums_over_processes() -> None:
    for rank in run_ranks(2, "-c", COUNT):
        assert (rank.code, rank.out) == (0, "[[1, 1, 0, 2]]\n"), rank.err


def test_gaussian_elbo_against_the_density() -> None:
    x, x_hat, kl = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1), torch.tensor([1.0, 7.0])
    density = torch.distributions.Normal(x_hat, 0.3).log_prob(x).sum((1, 2, 3))
    assert gaussian_elbo(x_hat, x, kl, sigma=0.3).tolist() == pytest.approx((density - kl).tolist(), rel=1e-5)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"sigma .*positive.*got {sigma}"):
            gaussian_elbo(x_hat, x, kl, sigma)
    with pytest.raises(ValueError, match=r"kl .*\(2,\), got \(\)"):
        gaussian_elbo(x_hat, x, kl[0], 0.3)


def test_bits_per_dim_is_the_mass_of_an_8_bit_level() -> None:
    # One value at level 100, half a level off the mean: its exact mass is the integral over the level.
    step, sigma = 2 / 255, 0.05
    x = torch.tensor([[[[100 * step - 1]]]], dtype=torch.float64)
    normal = torch.distributions.Normal(x + step / 2, sigma)
    mass = (normal.cdf(x + step / 2) - normal.cdf(x - step / 2)).item()
    elbo = gaussian_elbo(x + step / 2, x, torch.zeros(1), sigma)
    assert bits_per_dim(elbo, dims=1).item() == pytest.approx(-math.log2(mass), abs=2e-3)
    with pytest.raises(ValueError, match=r"dims .*C · H · W.*got 0"):
        bits_per_dim(elbo, dims=0)


def test_a_uniform_density_costs_eight_bits() -> None:
    elbo = torch.tensor([784 * math.log(255 / 256 / 2)])  # uniform over 256 levels of width 2/255
    assert bits_per_dim(elbo, dims=784).item() == pytest.approx(8, abs=1e-5)


def test_bernoulli_elbo_by_hand() -> None:
    x = torch.tensor([[[[1.0, -1.0, 0.2]]]])
    x_hat = torch.tensor([[[[0.5, 0.5, -1.0]]]])  # probabilities 0.75, 0.75 and 1e-6
    expected = math.log(0.75) + math.log(0.25) + math.log(1e-6) - 2
    assert bernoulli_elbo(x_hat, x, torch.tensor([2.0])).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"bernoulli_elbo: .*\(B, 1, H, W\), got \(1, 3, 2, 2\)"):
        bernoulli_elbo(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1))


def test_kid_against_a_loop() -> None:
    a, b = noise(4, 3), noise(4, 3, seed=1)
    kernel = [[(float(p @ q) / 3 + 1) ** 3 for q in torch.cat([a, b])] for p in torch.cat([a, b])]
    within = sum(kernel[i][j] + kernel[4 + i][4 + j] for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel[i][4 + j] for i in range(4) for j in range(4)) / 16
    mean, std = kid(a, b, subsets=3, subset_size=4)
    assert mean == pytest.approx(within - 2 * across, abs=1e-6)
    assert std == pytest.approx(0, abs=1e-6)  # all rows are in every subset


def test_kid_tells_distributions_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(400, 8, generator=generator) for _ in range(2))
    same, spread = kid(a, b, subsets=20, subset_size=100, generator=generator)
    shifted, _ = kid(a, b + 0.5, subsets=20, subset_size=100, generator=generator)
    assert abs(same) < 0.05 and 0 < spread < 0.1
    assert shifted > 0.2
    runs = [kid(a, b, 5, 50, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_kid_refuses_too_few_rows() -> None:
    with pytest.raises(ValueError, match=r"subset_size in \[2, 10\].*got 100 and 1000"):
        kid(torch.zeros(10, 2), torch.zeros(20, 2))
    with pytest.raises(ValueError, match=r"kid: .*\(n, d\) and \(m, d\), got"):
        kid(torch.zeros(10, 2), torch.zeros(10, 3))
