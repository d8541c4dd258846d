"""Reconstruction losses against hand-made values and a numpy MS-SSIM."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenizer import losses
from tokenizer.losses import LOSSES, default_weights, reconstruction_losses, validate_weights


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Smooth pictures in [-1, 1]: low-resolution noise, enlarged."""
    b, c, h, w = shape
    noise = torch.rand(b, c, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(noise, (h, w), mode="bilinear")


def numpy_ms_ssim(a: np.ndarray, b: np.ndarray, taps: int, sigma: float, betas: list[float]) -> float:
    """MS-SSIM of two (C, H, W) pictures in [0, 1], written from the paper with plain windows."""
    offset = np.arange(taps) - taps // 2
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma**2))
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        views = np.lib.stride_tricks.sliding_window_view(x, (taps, taps), axis=(1, 2))
        return (views * window).sum((-1, -2))

    result = 1.0
    for scale, beta in enumerate(betas):
        mean_a, mean_b = blur(a), blur(b)
        var = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
        structure = (2 * (blur(a * b) - mean_a * mean_b) + 0.03**2) / (var + 0.03**2)
        if scale == len(betas) - 1:
            structure = structure * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        result *= structure.mean() ** beta
        c, h, w = (side // 2 * 2 if i else side for i, side in enumerate(a.shape))
        a, b = (x[:, :h, :w].reshape(c, h // 2, 2, w // 2, 2).mean((2, 4)) for x in (a, b))
    return float(result)


def test_l1_and_l2_by_hand() -> None:
    x_hat, x = torch.tensor([[[[0.5, -0.5]]]]), torch.tensor([[[[0.0, 0.5]]]])
    got = reconstruction_losses(x_hat, x, {"l1": 1.0, "l2": 0.3, "ms_ssim": 0.0})
    assert got.keys() == {
        "l1",
        "l2",
    }  # unweighted, and only what has a weight (ms_ssim would refuse the size)
    assert got["l1"].item() == pytest.approx(0.75)
    assert got["l2"].item() == pytest.approx((0.25 + 1.0) / 2)


def data_and_loss(name: str, channels: int, seed: int) -> tuple[Tensor, Callable[..., Tensor]]:
    """Data that the loss `name` is for, and the loss as a function of two of them."""
    entry = LOSSES[name]
    if entry.modality == "audio":
        sound = 0.3 * torch.randn(2, min(channels, 2), 4000, generator=torch.Generator().manual_seed(seed))
        return sound, lambda x_hat, x: entry.function(x_hat, x, 16000)
    return pictures(2, channels, 28, 32, seed=seed), entry.function


def test_cauchy_by_hand_and_nearer_to_what_is_likely_than_to_the_mean() -> None:
    x_hat, x = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0.1, 0.0]], [[0.2, 0.0]]]])
    assert LOSSES["cauchy"].function(x_hat, x).item() == pytest.approx(math.log(1 + 0.05 / 0.01) / 2)
    seen = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1)  # a value that is 1 in two of three cases
    of_likely, of_mean = (LOSSES["cauchy"].function(torch.full_like(seen, v), seen) for v in (1.0, 1 / 3))
    assert of_likely < of_mean


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_loss_is_zero_on_equals_and_has_a_gradient_elsewhere(name: str, channels: int) -> None:
    x, function = data_and_loss(name, channels, seed=0)
    if name == "bernoulli":  # it looks at the sign of x alone
        x = x.sign()
    assert function(x, x).item() == pytest.approx(0, abs=2e-6)
    x_hat = data_and_loss(name, channels, seed=1)[0].requires_grad_()
    value = function(x_hat, x)
    value.backward()
    assert value.shape == () and value.item() > 0.01
    assert x_hat.grad is not None and x_hat.grad.isfinite().all() and x_hat.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_leave_autocast_and_half_precision(name: str) -> None:
    x, function = data_and_loss(name, 3, seed=0)
    x_hat = data_and_loss(name, 3, seed=1)[0]
    exact = function(x_hat.double(), x.double())
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(x_hat, x).item() == pytest.approx(exact.item(), rel=1e-5)
    half = function(x_hat.bfloat16(), x)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("name", ["mel", "stft"])
def test_losses_of_sound_are_finite_on_silence(name: str) -> None:
    silence = torch.zeros(2, 1, 3000)
    for x_hat, x in ((silence, silence), (silence, silence + 0.1), (silence + 0.1, silence)):
        x_hat = x_hat.clone().requires_grad_()
        value = reconstruction_losses(x_hat, x, {name: 1.0}, 16000)[name]
        value.backward()
        assert value.isfinite() and x_hat.grad is not None and x_hat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("size", "taps", "sigma", "scales"),
    [(7, 7, 6 / 7, 1), (28, 7, 6 / 7, 3), (32, 7, 6 / 7, 3), (57, 7, 6 / 7, 4), (176, 11, 1.5, 5)],
)
def test_ms_ssim_is_the_papers(size: int, taps: int, sigma: float, scales: int) -> None:
    x = pictures(1, 3, size, size + 3)
    x_hat = (0.8 * x + 0.2 * pictures(1, 3, size, size + 3, seed=1)).clamp(-1, 1)
    betas = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    a, b = ((p[0].double().numpy() + 1) / 2 for p in (x_hat, x))
    expected = 1 - numpy_ms_ssim(a, b, taps, sigma, list(betas / betas.sum()))
    assert 0.001 < expected < 0.6
    assert losses.ms_ssim(x_hat, x).item() == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_opposites_has_a_gradient_downhill() -> None:
    # Every scale anti-correlates: a relu before the power would give NaN here, a hard floor no gradient.
    x = pictures(2, 1, 32, 32).double()
    x_hat = (-x).requires_grad_()
    value = losses.ms_ssim(x_hat, x)
    value.backward()
    assert 0.9 < value.item() <= 1
    assert x_hat.grad is not None and x_hat.grad.isfinite().all()
    stepped = x_hat.detach() - 0.1 * x_hat.grad / x_hat.grad.abs().max()
    assert losses.ms_ssim(stepped, x) < value


def test_flat_pictures_give_a_finite_gradient() -> None:
    x_hat = torch.zeros(1, 1, 28, 28, requires_grad=True)
    losses.ms_ssim(x_hat, torch.zeros(1, 1, 28, 28)).backward()
    assert x_hat.grad is not None and x_hat.grad.isfinite().all()


def test_ms_ssim_refuses_pictures_below_one_scale() -> None:
    with pytest.raises(ValueError, match=r"ms_ssim: .*7 x 7 .*\(6, 9\); .*l1 or l2"):
        losses.ms_ssim(torch.zeros(1, 1, 6, 9), torch.zeros(1, 1, 6, 9))


def test_unequal_shapes_and_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"l1: x_hat and x must have one shape.*\(2, 1, 4, 4\)"):
        losses.l1(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"l2: .*empty, got \(0, 1, 4, 4\)"):
        losses.l2(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4))


def test_weights_are_validated() -> None:
    assert default_weights() == dict.fromkeys(
        ("bernoulli", "cauchy", "l1", "l2", "mel", "ms_ssim", "stft"), 0.0
    )
    validate_weights({**default_weights(), "l1": 1.0}, "image")
    for weights, message in [
        ({"l3": 1.0}, "unknown image loss 'l3'; known: bernoulli, cauchy, l1, l2, ms_ssim"),
        ({"mel": 1.0}, "unknown image loss 'mel'; known: bernoulli, cauchy, l1, l2, ms_ssim"),
        ({"l1": -1.0}, "l1 .*not negative, got -1.0"),
        ({"l1": float("nan")}, "l1 .*finite.*got nan"),
        ({"l1": float("inf")}, "l1 .*finite.*got inf"),
        (default_weights(), "weights .* 0; .*bernoulli, cauchy, l1, l2, ms_ssim"),
        ({}, "weights .* 0; .*bernoulli, cauchy, l1, l2, ms_ssim"),
    ]:
        with pytest.raises(ValueError, match=message):
            validate_weights(weights, "image")
    with pytest.raises(ValueError, match="'l3'; known: bernoulli, cauchy, l1, l2, mel"):
        reconstruction_losses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), {"l3": 0.0})


def test_a_new_loss_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOSSES", dict(LOSSES))
    losses.loss("worst", modality="image")(lambda x_hat, x: (x_hat - x).abs().max())
    got = reconstruction_losses(torch.tensor([[[[1.0, 0.5]]]]), torch.zeros(1, 1, 1, 2), {"worst": 2.0})
    assert got["worst"].item() == 1 and "worst" in default_weights()
    with pytest.raises(ValueError, match="already a loss named 'worst'"):
        losses.loss("worst", modality="image")(losses.l1)
