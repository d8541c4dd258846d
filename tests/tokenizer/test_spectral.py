"""Spectrograms against torchaudio and numpy, and their distances against plain formulas."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor

from tests.helpers.speech import RATE, noise, speech
from tokenizer.spectral import (
    MEL_WINDOWS,
    STFT_SIZES,
    log_mel,
    magnitude,
    mel,
    mel_distance,
    mel_edges,
    stft_distance,
)

DISTANCES = {"mel": lambda a, b: mel_distance(a, b, RATE), "stft": stft_distance}


def clips() -> Tensor:
    """Two seconds of speech, and of clicks that end in silence, in stereo: (2, 2, 32000)."""
    left, right = speech(4, 2.0), speech(5, 2.0)
    clicks = torch.zeros(2, 32000)
    clicks[0, :24000:500], clicks[1, 100:24000:900] = 0.5, -0.3
    return torch.stack([torch.cat([left, right]), clicks])


@pytest.mark.parametrize(("rate", "window", "hop", "bands"), [(16000, 1024, 256, 80), (44100, 2048, 300, 64)])
def test_log_mel_is_that_of_torchaudio(rate: int, window: int, hop: int, bands: int) -> None:
    peer = torchaudio.transforms.MelSpectrogram(
        rate,
        n_fft=window,
        hop_length=hop,
        n_mels=bands,
        power=1.0,
        pad_mode="constant",
        norm=None,
        mel_scale="slaney",
    )
    x = clips()
    got = log_mel(x, rate, window, hop, bands)
    assert got.shape == (2, 2, bands, 1 + x.shape[-1] // hop)
    torch.testing.assert_close(got, peer(x).clamp(min=1e-5).log10(), atol=1e-3, rtol=0)
    assert got.min() == -5


def test_magnitude_of_a_tone_by_hand() -> None:
    # A sine of amplitude a on a bin has a · (sum of the window) / 2 there, and half of it beside.
    t = torch.arange(4096, dtype=torch.float64)
    x = 0.5 * torch.sin(2 * math.pi * 32 / 512 * t)[None, None]
    frame = magnitude(x, 512, 128, 512)[0, 0, :, 10]
    assert frame[30:35].tolist() == pytest.approx([0, 32, 64, 32, 0], abs=1e-6)


def test_mel_follows_slaneys_scale() -> None:
    hz = torch.tensor([0.0, 500, 1000, 6400, 40960], dtype=torch.float64)
    assert mel(hz).tolist() == pytest.approx([0, 7.5, 15, 42, 69])
    edges = mel_edges(16000, 10)
    assert edges.shape == (12,) and edges[0] == 0 and edges[-1].item() == pytest.approx(8000)
    steps = mel(edges).diff()
    assert steps.tolist() == pytest.approx([steps[0].item()] * 11)


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
@pytest.mark.parametrize(("window", "bands"), [*MEL_WINDOWS, (64, 80)])
def test_no_mel_band_is_empty(rate: int, window: int, bands: int) -> None:
    # A click has every frequency, so all bands hear it; those without a bin of their own hear the nearest.
    click = torch.zeros(1, 1, 4 * window)
    click[..., 2 * window] = 1
    heard = log_mel(click, rate, window, window // 4, bands)[0, 0, :, 8]
    assert heard.min() > -4  # of silence it is -5
    nearest = (mel_edges(rate, bands)[1:-1] / (rate / window)).round().long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, rate / 2, bands, rate, norm=None, mel_scale="slaney"
        )
    spectrum = magnitude(click, window, window // 4, window)[0, 0, :, 8]
    empty = peer.amax(0) == 0
    assert torch.equal(heard[empty], spectrum[nearest[empty]].log10())
    torch.testing.assert_close(heard[~empty], (spectrum @ peer[:, ~empty]).log10(), atol=0.01, rtol=0)


def test_mel_distance_is_a_mean_over_windows() -> None:
    x, x_hat = clips(), clips() + noise(clips(), 0.02)
    wanted = np.zeros(2)
    for window, bands in MEL_WINDOWS:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        edges = mel_edges(RATE, bands).numpy()
        hz = np.arange(window // 2 + 1) * RATE / window
        filters = [np.interp(hz, edges[m : m + 3], [0, 1, 0]) for m in range(bands)]
        levels = []
        for y in (x_hat, x):
            padded = np.pad(y.double().numpy(), ((0, 0), (0, 0), (window // 2, window // 2)))
            frames = np.lib.stride_tricks.sliding_window_view(padded, window, -1)[:, :, :: window // 4]
            spectra = np.abs(np.fft.rfft(frames * hann))
            levels.append(np.log10(np.maximum(spectra @ np.array(filters).T, 1e-5)))
        wanted += np.abs(levels[0] - levels[1]).mean((1, 2, 3)) / len(MEL_WINDOWS)
    assert mel_distance(x_hat, x, RATE).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert wanted.min() > 0.1


def test_stft_distance_is_its_two_terms() -> None:
    x, x_hat = clips(), clips() + noise(clips(), 0.02)
    wanted = torch.zeros(2)
    for fft, hop, window in STFT_SIZES:
        for i in range(2):
            a, b = magnitude(x_hat[i : i + 1], fft, hop, window), magnitude(x[i : i + 1], fft, hop, window)
            wanted[i] += ((a - b) ** 2).sum().sqrt() / (b**2).sum().sqrt() / 3
            wanted[i] += (a.clamp(min=1e-5).log() - b.clamp(min=1e-5).log()).abs().mean() / 3
    torch.testing.assert_close(stft_distance(x_hat, x), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_for_equals_and_grow_with_noise(name: str) -> None:
    x, distance = clips(), DISTANCES[name]
    assert distance(x, x).tolist() == [0, 0]
    found = [distance(x + noise(x, level), x) for level in (0.001, 0.01, 0.1)]
    assert all((a < b).all() for a, b in pairwise(found))
    # Each item has its own value, and both channels count.
    noisy = torch.stack([x[0], x[1] + noise(x[1], 0.01)])
    one = distance(noisy[1:], x[1:]).item()
    assert one > 0 and distance(noisy, x).tolist() == pytest.approx([0, one])
    right = x.clone()
    right[:, 1] += noise(x[:, 1], 0.01)
    assert (distance(right, x) > 0).all() and (distance(right, x) < distance(x + noise(x, 0.01), x)).all()


def test_a_change_of_level_has_a_known_distance() -> None:
    x = noise(torch.zeros(1, 1, 16000), 0.1)  # no band of it comes near the floor
    for gain in (0.5, 2.0):
        assert mel_distance(gain * x, x, RATE).item() == pytest.approx(math.log10(2), rel=1e-3)
        expected = abs(gain - 1) + math.log(2)  # convergence, and the logs' difference
        assert stft_distance(gain * x, x).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", DISTANCES)
def test_silence_gives_finite_values_and_gradients(name: str) -> None:
    silence, sound = torch.zeros(1, 1, 8000), noise(torch.zeros(1, 1, 8000), 0.1)
    for x_hat, x in [(silence, silence), (silence, sound), (sound, silence)]:
        x_hat = x_hat.clone().requires_grad_()
        value = DISTANCES[name](x_hat, x)
        value.sum().backward()
        assert value.isfinite().all() and x_hat.grad is not None and x_hat.grad.isfinite().all()
        assert value.item() < 200  # not so much that it hides all other clips
    assert DISTANCES[name](silence, silence).item() == 0


@pytest.mark.parametrize("name", DISTANCES)
def test_a_first_call_in_inference_mode_leaves_gradients_to_later_ones(name: str) -> None:
    x = noise(torch.zeros(1, 1, 4001), 0.1)
    with torch.inference_mode():
        mel_distance(x, x, 12345)  # a rate that no other test has cached
    x_hat = (x / 2).requires_grad_()
    (mel_distance(x_hat, x, 12345) + DISTANCES[name](x_hat, x)).sum().backward()
    assert x_hat.grad is not None and x_hat.grad.abs().sum() > 0


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_agree_with_differences(name: str) -> None:
    x = noise(torch.zeros(1, 1, 600), 0.1).double()
    x_hat = (x + noise(x, 0.05, seed=1).double()).requires_grad_()
    DISTANCES[name](x_hat, x).sum().backward()
    assert x_hat.grad is not None
    step = noise(x, 1.0, seed=2).double()
    ends = [DISTANCES[name](x_hat.detach() + s * 1e-6 * step, x).item() for s in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((x_hat.grad * step).sum().item(), rel=1e-3)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("length", [1, 7])
def test_clips_shorter_than_a_window(name: str, length: int) -> None:
    x = torch.full((1, 1, length), 0.5)
    assert 0 < DISTANCES[name](x / 2, x).item() < 2


@pytest.mark.parametrize("name", DISTANCES)
def test_unequal_shapes_are_refused(name: str) -> None:
    for shape in ((2, 1, 100), (2, 2, 101), (2, 200)):
        with pytest.raises(ValueError, match=r"one shape \(B, C, T\), got"):
            DISTANCES[name](torch.zeros(shape), torch.zeros(2, 2, 100))
