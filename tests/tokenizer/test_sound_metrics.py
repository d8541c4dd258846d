"""Metrics of sound against plain formulas, and against direct calls of the packages that compute them.

Left out: DNSMOS's network (test_dnsmos.py).
"""

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.functional import resample
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from tests.helpers.speech import RATE, noise, speech
from tokenizer import sound_metrics
from tokenizer.dnsmos import overall_score
from tokenizer.sound_metrics import INSTALL, Scores, available, bitrate, dnsmos, is_silent, pesq, si_sdr, stoi

SPEECH_METRICS = {"stoi": stoi, "pesq": pesq, "dnsmos": dnsmos}
# Building the package takes a C compiler, which not every machine has. -ra, the default here, says so.
NO_PESQ = f"PESQ is not measured in this run, as the package pesq is not installed; {INSTALL}"
needs_pesq = pytest.mark.skipif("pesq" not in available(), reason=NO_PESQ)
NAMES = ["stoi", pytest.param("pesq", marks=needs_pesq), "dnsmos"]


def clip(seconds: float = 1.2) -> Tensor:
    """Speech in mono, (1, 1, T)."""
    return speech(4, seconds)[None]


def test_si_sdr_by_hand() -> None:
    # Two tones of whole periods are orthogonal: what the second adds is all distortion.
    t = torch.arange(16000) / 16000
    x, other = (torch.sin(2 * math.pi * hz * t)[None, None] for hz in (440, 1000))
    x_hat = torch.cat([x + 0.1 * other, x + other, 0.5 * x + 0.005 * other])
    assert si_sdr(x_hat, x.expand(3, 1, -1)).tolist() == pytest.approx([20, 0, 40], abs=1e-3)


def test_si_sdr_is_the_plain_formula_and_torchmetrics() -> None:
    x = torch.cat([speech(4, 2.0), speech(5, 2.0)])[:, None] + 0.1  # the offset of a channel does not count
    x_hat = (0.7 * x + noise(x, 0.02)).clamp(-1, 1)
    wanted = []
    for a, b in zip(x_hat[:, 0].double().numpy(), x[:, 0].double().numpy(), strict=True):
        a, b = a - a.mean(), b - b.mean()
        target = (a @ b) / (b @ b) * b
        wanted.append(10 * np.log10((target @ target) / ((a - target) @ (a - target))))
    assert si_sdr(x_hat, x).tolist() == pytest.approx(wanted, rel=1e-6)
    peer = scale_invariant_signal_distortion_ratio(x_hat, x, zero_mean=True)[:, 0]
    assert peer.tolist() == pytest.approx(wanted, abs=1e-2)


def test_si_sdr_ignores_scale_and_sees_all_channels_at_once() -> None:
    x = torch.cat([speech(4, 1.0), speech(5, 1.0)])[None]
    x_hat = x + noise(x, 0.01)
    whole = si_sdr(x_hat, x).item()
    assert si_sdr(0.2 * x_hat, x).item() == pytest.approx(whole, abs=1e-4)
    assert si_sdr(-x_hat, x).item() == pytest.approx(whole, abs=1e-4)
    # Another level in one channel is a distortion, as the ear would have it.
    assert si_sdr(x_hat * torch.tensor([[[1.0], [0.5]]]), x).item() < whole - 3
    half = torch.stack([x[0, 0], torch.zeros_like(x[0, 1])])[None]
    assert math.isfinite(si_sdr(half + noise(half, 0.01), half).item())  # a silent channel is no silent item


def test_si_sdr_of_equals_and_of_silence_is_finite() -> None:
    x = clip(1.0)
    silence = torch.zeros_like(x)
    x_hat = torch.cat([x, silence, x, silence, silence + 0.3])
    reference = torch.cat([x, x, silence, silence, silence + 0.5])
    assert si_sdr(x_hat, reference).tolist() == [100, -100, 0, 0, 0]
    assert is_silent(reference).tolist() == [False, False, True, True, True]
    assert si_sdr(x.bfloat16(), x.bfloat16()).dtype == torch.float32
    assert si_sdr(x.double(), x.double()).dtype == torch.float64


def test_a_silent_reference_leaves_the_mean_of_the_others() -> None:
    x = torch.cat([clip(1.0), torch.zeros(1, 1, RATE)])
    x_hat = x + noise(x, 0.01)
    mean = si_sdr(x_hat, x).sum() / (~is_silent(x)).sum()
    assert mean.item() == si_sdr(x_hat[:1], x[:1]).item() != 0


def test_silence_begins_80_db_below_full_scale() -> None:
    t = torch.arange(16000) / 16000
    tone = torch.sin(2 * math.pi * 440 * t)[None, None] * math.sqrt(2)  # of RMS 1
    assert is_silent(torch.cat([1.01e-4 * tone, 0.99e-4 * tone, 0.5 + 0.99e-4 * tone])).tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("rate", [16000, 8000, 22050])
def test_stoi_is_that_of_pystoi(rate: int) -> None:
    from pystoi import stoi as direct

    x = torch.cat([speech(4, 2.0), speech(5, 2.0)])[:, None]
    x_hat = x + noise(x, 0.02)
    wanted = [direct(b, a, rate) for a, b in zip(x_hat[:, 0].numpy(), x[:, 0].numpy(), strict=True)]
    got = stoi(x_hat, x, rate)
    assert got.values.tolist() == pytest.approx(wanted, rel=1e-5) and got.measured.tolist() == [True, True]
    assert got.mean() == pytest.approx(sum(wanted) / 2, rel=1e-5)


@needs_pesq
def test_pesq_is_that_of_pesq() -> None:
    from pesq import pesq as direct

    x = torch.cat([speech(4, 2.0), speech(5, 2.0)])[:, None]
    x_hat = x + noise(x, 0.002)

    def wanted(rate: int, mode: str, a: Tensor, b: Tensor) -> list[float]:
        pairs = zip(a[:, 0].numpy(), b[:, 0].numpy(), strict=True)
        return [direct(rate, one, one_hat, mode) for one_hat, one in pairs]

    assert pesq(x_hat, x, 16000).values.tolist() == pytest.approx(wanted(16000, "wb", x_hat, x), abs=1e-5)
    a, b = (resample(y, 16000, 8000) for y in (x_hat, x))
    assert pesq(a, b, 8000).values.tolist() == pytest.approx(wanted(8000, "nb", a, b), abs=1e-5)
    a, b = (resample(y, 16000, 24000) for y in (x_hat, x))
    back = (resample(y, 24000, 16000) for y in (a, b))
    assert pesq(a, b, 24000).values.tolist() == pytest.approx(wanted(16000, "wb", *back), abs=1e-5)


def test_dnsmos_takes_any_rate_and_has_no_reference() -> None:
    x = clip()
    whole = dnsmos(x, noise(x, 0.1), RATE).values.item()
    assert whole == pytest.approx(overall_score(x[0, 0]), abs=1e-6)
    high = resample(x, RATE, 24000)
    wanted = overall_score(resample(high, 24000, RATE)[0, 0])
    found = dnsmos(high.requires_grad_(), high, 24000).values
    assert found.item() == pytest.approx(wanted, abs=1e-6) and wanted == pytest.approx(whole, abs=0.1)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("name", "best"), [("stoi", 1.0), pytest.param("pesq", 4.644, marks=needs_pesq), ("dnsmos", 2.65505)]
)
def test_noise_lowers_the_metrics_of_speech(name: str, best: float) -> None:
    x, metric = clip(), SPEECH_METRICS[name]
    found = [metric(x + noise(x, level), x, RATE).values.item() for level in (0, 0.001, 0.01, 0.1)]
    assert found[0] == pytest.approx(best, abs=1e-3)
    assert found == sorted(found, reverse=True) and found[3] < found[0] - 0.1


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_mixed_to_one(name: str) -> None:
    metric, mono = SPEECH_METRICS[name], clip()
    x_hat = mono + noise(mono, 0.01)
    stereo, stereo_hat = (torch.cat([0.5 * y, 1.5 * y], dim=1) / 2 for y in (mono, x_hat))
    got = metric(stereo_hat, stereo, RATE).values
    assert got.tolist() == pytest.approx(metric(x_hat / 2, mono / 2, RATE).values.tolist(), abs=1e-4)


# DNSMOS knows speech under noise that is worse than silence.
@pytest.mark.parametrize(
    ("name", "worst"), [("stoi", 0.0), pytest.param("pesq", 1.0, marks=needs_pesq), ("dnsmos", 1.83986)]
)
def test_what_cannot_be_measured_is_left_out_and_counted(name: str, worst: float) -> None:
    metric, x = SPEECH_METRICS[name], clip()
    silence = torch.zeros_like(x)
    both = metric(torch.cat([x + noise(x, 0.01), x, silence]), torch.cat([x, silence, x]), RATE)
    assert both.measured.tolist() == [True, False, True]
    assert both.values.tolist()[1:] == pytest.approx(
        [0, worst], abs=1e-4
    )  # silence in place of speech is as bad as it gets
    assert both.mean() == pytest.approx(both.values.sum().item() / 2)
    for length in (1, 100, 3000):  # too short
        got = metric(x[..., :length], x[..., :length], RATE)
        assert (got.values.tolist(), got.measured.tolist(), got.mean()) == ([0], [False], None)


def test_stoi_needs_enough_that_is_not_silent() -> None:
    x = torch.cat([clip(0.3), torch.zeros(1, 1, RATE)], dim=-1)
    assert stoi(x, x, RATE).measured.tolist() == [False]
    # 30 frames and one more, at 10 kHz.
    tone = torch.sin(torch.arange(6600) * 0.3)[None, None] / 2
    shortest = 4097 * 16 // 10 + 1
    got = stoi(tone[..., :shortest], tone[..., :shortest], RATE)
    assert got.measured.tolist() == [True] and got.values.item() == pytest.approx(1)
    assert not stoi(tone[..., : 4096 * 16 // 10], tone[..., : 4096 * 16 // 10], RATE).measured.any()


@needs_pesq
def test_pesq_of_a_long_clip_is_the_mean_of_its_parts() -> None:
    # 60 words with pauses between: more than the 50 that the package has room for.
    word = torch.cat([speech(4, 0.5), torch.zeros(1, 5000)], dim=-1)
    x = word.repeat(1, 60)[None]
    x_hat = x + noise(x, 0.003)
    length = x.shape[-1]
    assert length / RATE > 3 * sound_metrics.PESQ_SECONDS
    parts = [
        pesq(a, b, RATE).values.item()
        for a, b in zip(x_hat.tensor_split(4, -1), x.tensor_split(4, -1), strict=True)
    ]
    got = pesq(x_hat, x, RATE)
    assert got.measured.tolist() == [True]
    assert got.values.item() == pytest.approx(sum(parts) / 4, abs=1e-5)


@pytest.mark.parametrize("name", SPEECH_METRICS)
def test_missing_packages_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = available()
    assert {"stoi", "dnsmos"} <= {*before}
    package = {"stoi": "pystoi", "pesq": "pesq", "dnsmos": "speechmos"}[name]
    monkeypatch.setitem(sys.modules, package, None)
    assert available() == tuple(metric for metric in before if metric != name)
    with pytest.raises(ValueError, match=rf"{name} needs the package {package}; .*'\.\[metrics\]'"):
        SPEECH_METRICS[name](clip(), clip(), RATE)


def test_scores_of_nothing_have_no_mean() -> None:
    assert Scores(torch.zeros(2), torch.zeros(2, dtype=torch.bool)).mean() is None


def test_data_that_no_metric_takes() -> None:
    x = clip(0.5)
    nan = torch.where(torch.arange(x.shape[-1]) == 7, torch.nan, x)
    for x_hat, reference, message in [
        (x[..., 1:], x, r"one shape \(B, C, T\).*got .*7999\) and .*8000\)"),
        (x[0], x[0], r"one shape \(B, C, T\)"),
        (x[:0], x[:0], r"empty, got \(0, "),
        (nan, x, "x_hat .*finite.*got NaN.*diverged"),
        (x, x / 0, "^x .*finite.*got NaN"),
        (x.long(), x.long(), r"x_hat .*\[-1, 1\], got torch.int64"),
    ]:
        speech_metrics = [SPEECH_METRICS[name] for name in available()]
        for call in (si_sdr, *(lambda a, b, m=m: m(a, b, RATE) for m in speech_metrics)):
            with pytest.raises(ValueError, match=message):
                call(x_hat, reference)


def test_bitrate() -> None:
    assert bitrate(8, 10, 320, 24000) == 6000  # EnCodec's, at 24 kHz
    assert bitrate(1, math.log2(1000), 512, 16000) == pytest.approx(311.43, abs=0.01)
    for numbers in ((0, 10, 320, 24000), (8, 10, 0, 24000), (8, 10, 320, -1)):
        with pytest.raises(
            ValueError, match="num_codebooks.*sample_rate.*positive, got {}, {}, {} and {}".format(*numbers)
        ):
            bitrate(*numbers)
