"""Figures of samples beside plain formulas, and what stands in the way of them.

Left out: the script (scripts/test_evaluate_samples.py).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.data.batches import Splits, load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from pipelines.evaluation.samples import codes, pictures, sounds
from pipelines.evaluation.samples.classifier import Classifier, small, train_classifier
from pipelines.evaluation.samples.frechet import Gaussian, frechet_distance, gaussian_of, mel_windows
from pipelines.evaluation.samples.kinds import Figures, check_samples, draw_samples
from pipelines.evaluation.samples.pictures import nearest_distances, weighted_median
from pipelines.run.generator import Generator
from pipelines.tokens.items import TokenSplit
from prior import Prior, PriorConfig
from tests.helpers.tiny import codec, tokenizer
from tokenizer.modalities.image import ImageConfig


def chance(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prior_of(tok: Any, grid: tuple[int, ...], names: tuple[str, ...] = (), **changes: Any) -> Prior:
    torch.manual_seed(0)
    fingerprint = {"tokenizer_fingerprint": tok.fingerprint()}
    size = {"dim": 16, "depth": 1, "heads": 2, "num_codebooks": tok.num_codebooks, **fingerprint}
    return Prior(PriorConfig(tok.codebook_size, grid=grid, class_names=names, **size, **changes)).eval()


def emoji(limit: int) -> Splits:
    return load_splits(DataConfig(path="embedded:emoji", limit=limit), ImageConfig(size=(16, 16)).build())


# Fréchet distance


def test_the_distance_of_gaussians_by_hand() -> None:
    """Of diagonal ones Σ (μ - ν)² + (σ - τ)²; it is the same in any other axes."""
    mean, sigma, tau = torch.tensor([1.0, 2, 0]), torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 2, 0])
    a = Gaussian(torch.zeros(3).double(), torch.diag(sigma.double() ** 2))
    b = Gaussian(mean.double(), torch.diag(tau.double() ** 2))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 9)
    turn = torch.linalg.qr(chance(3, 3).double()).Q
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(15)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Two that do not commute: tr (A B)^½ of 2 x 2 is sqrt(tr AB + 2 sqrt det AB).
    p, q = (m @ m.T + torch.eye(2).double() for m in (chance(2, 2).double(), chance(2, 2, seed=1).double()))
    cross = math.sqrt(float((p @ q).trace()) + 2 * math.sqrt(float((p @ q).det())))
    zero = torch.zeros(2).double()
    expected = float(p.trace() + q.trace()) - 2 * cross
    assert frechet_distance(Gaussian(zero, p), Gaussian(zero, q)) == pytest.approx(expected)


def test_a_covariance_is_shrunk_to_its_diagonal() -> None:
    x = chance(50, 3)
    plain = np.cov(x.double().numpy().T)
    mean, shrunk = gaussian_of(x)
    assert mean.tolist() == pytest.approx(x.double().mean(0).tolist())
    assert shrunk.diagonal().tolist() == pytest.approx(np.diag(plain).tolist())
    assert float(shrunk[0, 2]) == pytest.approx(0.9 * plain[0, 2])
    with pytest.raises(ValueError, match="2 rows"):
        gaussian_of(x[:1])


def test_windows_are_half_seconds() -> None:
    time = torch.arange(20000) / 16000
    x = torch.stack([0.5 * torch.sin(2 * math.pi * 300 * time), torch.zeros(20000)])[:, None]
    features = mel_windows(x, 16000)
    assert features.shape == (4, 60)  # two whole windows of each, three times 20 bands
    assert (features[2:] == -5).all() and features[0].view(3, 20).argmax(1).tolist() == [1, 1, 1]
    assert torch.allclose(features[0, 20:24], features[1, 20:24], atol=0.05)


# Sound


def test_silent_frames() -> None:
    x = torch.zeros(1, 1, 1600)
    x[..., :800] = 0.01 * chance(800)  # -40 dB
    x[..., 800:] = 0.5 + 0.001 * chance(800)  # -60 dB, beside its mean
    assert sounds.silent_share(x, 8000) == 0.5


def test_joined_windows_hold_each_clip_once() -> None:
    clips = load_splits(DataConfig(path="embedded:speech", limit=3), codec().modality).held_out
    whole = sum(clips.samples(i) for i in range(3))  # type: ignore[attr-defined]
    windows = sounds.joined_windows(clips, 4000, 1000, 0)  # type: ignore[arg-type]
    assert windows.shape == (whole // 4000, 1, 4000)
    total = sum(float(clips.x(i).abs().double().sum()) for i in range(3))
    assert 0.95 * total < float(windows.abs().double().sum()) <= total * (1 + 1e-6)
    assert len(sounds.joined_windows(clips, 4000, 2, 0)) == 2  # type: ignore[arg-type]


# Codes


def test_repeats_and_copies() -> None:
    x = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2]])[:, None]
    assert codes.repeats(x) == 0.5 and codes.repeats(x[:2]) == 0
    items = TokenSplit(np.array([[[9, 9]], [[1, 3]]], np.uint16), np.array([-1, -1]))
    assert codes.copies([x, x[1:2], x[:1]], items) == [0.25, 1, 0]


def test_means_and_spreads_are_over_seeds() -> None:
    figures = Figures()
    for value in (1.0, 3.0):
        figures.add("kid", "samples", value)
    figures.add("kid", "training", 5)
    assert figures.metrics() == {"samples_kid": 2, "samples_kid_std": math.sqrt(2), "training_kid": 5}


# Pictures


def test_the_nearest_is_that_of_all_batches() -> None:
    queries, table = chance(5, 7), chance(9, 7, seed=1)
    table[6] = queries[2]
    found = nearest_distances(queries, table.split(4))
    expected = (queries[:, None].double() - table.double()).norm(dim=2).amin(1)
    assert found.tolist() == pytest.approx(expected.tolist()) and found[2] == 0


def test_weights_let_classes_count_alike() -> None:
    values = torch.tensor([5.0, 1, 2, 3])
    assert weighted_median(values, None) == 2
    assert weighted_median(values, torch.tensor([9.0, 1, 1, 1])) == 5
    assert pictures.mean(values, torch.tensor([3.0, 1, 1, 1])) == pytest.approx(21 / 6)


def test_a_classifier_reads_what_it_learnt_and_is_the_same_again() -> None:
    """Dark and light pictures, of which one class has far fewer."""
    splits = emoji(60)
    train: Any = splits.train
    light = np.array([float(train.x(i).float().mean()) for i in range(60)])
    train.labels = (light > np.quantile(light, 0.8)).astype(np.int64)
    first, second = (train_classifier(train, 2, steps=12) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    x = to_float(torch.stack([train.x(int(i)) for i in (light.argmin(), light.argmax())]))
    assert first.read(x).tolist() == [0, 1]
    assert small(torch.zeros(1, 3, 128, 64)).shape == (1, 3, 64, 32)
    train.labels = None
    with pytest.raises(ValueError, match="labels"):
        train_classifier(train, 2)


class Mean(torch.nn.Module):
    """Features (B, 12): the means of four quarters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_figures_of_pictures_beside_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    classifier = Classifier(3, 9, widths=(4, 8)).eval()
    monkeypatch.setattr(pictures, "lite_features", lambda _: Mean())
    monkeypatch.setattr(pictures, "train_classifier", lambda *_: classifier)
    tok, splits = tokenizer(), emoji(40)
    generator = Generator(prior_of(tok, (4, 4), splits.class_names), tok)
    draws = draw_samples(generator, 18, 2, 7, {})
    found = pictures.PictureSamples(generator, splits, 18, 7).measure(draws, None).metrics()

    x, labels = to_float(torch.stack([splits.held_out.x(i) for i in range(40)])), splits.held_out.labels
    assert labels is not None
    share = torch.from_numpy(1 / np.bincount(labels, minlength=9)[labels])
    with torch.no_grad():
        x_hat = tok.decode(tok.encode(x)).clamp(-1, 1)
        drawn = [tok.decode(draw.codes).clamp(-1, 1) for draw in draws]
        right = [(classifier.read(y) == torch.from_numpy(labels)).double() for y in (x, x_hat)]
    assert found["held_out_agreement"] == pytest.approx(float((right[0] * share).sum() / share.sum()))
    assert found["reconstructions_agreement"] == pytest.approx(float((right[1] * share).sum() / share.sum()))
    agree = [float((classifier.read(y) == draws[0].labels).double().mean()) for y in drawn]
    assert found["samples_agreement"] == pytest.approx(sum(agree) / 2)
    assert found["samples_agreement_std"] == pytest.approx(abs(agree[0] - agree[1]) / math.sqrt(2))

    table = to_float(torch.stack([splits.train.x(i) for i in range(40)])).flatten(1)
    distance = [torch.cdist(y.flatten(1), table).amin(1).sort().values[8] for y in drawn]  # the ninth of 18
    assert found["samples_nearest"] == pytest.approx(float(sum(distance)) / 2, rel=1e-4)
    kernel = lambda a, b: (a.double() @ b.double().T / 12 + 1) ** 3  # noqa: E731
    a, b, w = Mean()(x_hat), Mean()(x), torch.outer(share, share).fill_diagonal_(0)
    within = [(kernel(f, f) * w).sum() / w.sum() for f in (a, b)]
    expected = within[0] + within[1] - 2 * (kernel(a, b) * w).sum() / w.sum()
    assert found["reconstructions_kid"] == pytest.approx(float(expected))
    blank = (x.flatten(1).std(1, correction=0) < 0.03).double()
    assert found["held_out_blanks"] == pytest.approx(float((blank * share).sum() / share.sum()))
    assert found["samples_repeats"] == 0
    assert {"samples_kid", "samples_kid_std", "training_kid", "training_blanks"} < found.keys()
    assert "training_agreement" not in found and "samples_copies" not in found


def test_samples_are_as_many_of_each_class_and_those_of_a_seed() -> None:
    tok = tokenizer()
    generator = Generator(prior_of(tok, (4, 4), ("a", "b")), tok)
    first, second = draw_samples(generator, 6, 2, 2, {"temperature": 0.9})
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1] and not torch.equal(first.codes, second.codes)
    again = torch.cat(list(generator.draw("b", 3, seed=1, temperature=0.9)))
    assert torch.equal(second.codes[3:], again)


# Bad input


@pytest.mark.parametrize(
    ("count", "scale", "names", "unconditional", "match"),
    [
        (3, 1.0, (), True, "--samples 3: expected 4 or more"),
        (8, 1.0, ("a", "b", "c"), True, "give 6 or 9"),
        (5, 1.0, tuple("abcdefghi"), True, "give 9$"),
        (8, 2.0, (), True, "has no classes; leave it out"),
        (8, 2.0, ("a", "b"), False, "label dropout was 0"),
    ],
)
def test_what_cannot_be_drawn(
    count: int, scale: float, names: tuple[str, ...], unconditional: bool, match: str
) -> None:
    tok = tokenizer()
    prior = prior_of(tok, (4, 4), names, unconditional=unconditional)
    with pytest.raises(ValueError, match=match):
        check_samples(prior, emoji(8), count, scale)


def test_too_little_is_held_out() -> None:
    splits = emoji(8)
    few = dataclasses.replace(splits, held_out=splits.held_out.pick(np.arange(8) < 3))
    with pytest.raises(ValueError, match=r"3 are held out.*--data\.valid-fraction"):
        check_samples(prior_of(tokenizer(), (4, 4)), few, 8, 1.0)


def test_windows_of_a_sound_must_be_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = codec()
    splits = load_splits(DataConfig(path="embedded:speech", limit=2), tok.modality)
    monkeypatch.setattr(sounds, "available", lambda: ("dnsmos",))
    with pytest.raises(ValueError, match=r"windows of 0\.5 s.*--seconds"):
        sounds.SoundSamples(Generator(prior_of(tok, (4,)), tok), splits, 8, 8)
    with pytest.raises(ValueError, match="needs 4 windows"):
        sounds.SoundSamples(Generator(prior_of(tok, (4000,)), tok), splits, 8, 8)
