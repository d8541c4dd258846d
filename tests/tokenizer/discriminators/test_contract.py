"""Discriminators: the contract that every registered one keeps, and several of them as one model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.tiny import pictures, sounds
from tokenizer import anti_aliased
from tokenizer.anti_aliased import stlpips_network
from tokenizer.discriminators import SLOPE, DiscriminatorConfig, Jury, JuryConfig, kinds, receptive_field
from tokenizer.discriminators.features import FeaturesConfig
from tokenizer.discriminators.patch import PatchConfig
from tokenizer.discriminators.period import PeriodConfig, folded
from tokenizer.discriminators.stft import STFTConfig, spectrum
from tokenizer.perceptual import MEAN, STD

SMALL: dict[str, DiscriminatorConfig] = {
    "features": FeaturesConfig(width=4, blocks=(1, 2)),
    "patch": PatchConfig(width=4),
    "stft": STFTConfig(width=4),
    "period": PeriodConfig(width=4),
}
KINDS = sorted({**kinds("image"), **kinds("audio")})


def config_of(kind: str) -> DiscriminatorConfig:
    return SMALL.get(kind) or DiscriminatorConfig.members()[kind]()


def jury(kind: str, channels: int = 1) -> Jury:
    torch.manual_seed(0)
    config = config_of(kind)
    return Jury(JuryConfig(config.modality, channels, (config,)))


def data(kind: str, batch: int = 3, channels: int = 1, size: int | None = None) -> Tensor:
    if config_of(kind).modality == "image":
        return pictures(batch, channels, size or 32, size or 32)
    return sounds(batch, channels, size or 4096)


def test_each_modality_has_its_own() -> None:
    assert set(kinds("image")) >= {"patch"} and set(kinds("audio")) >= {"stft", "period"}
    assert not set(kinds("image")) & set(kinds("audio"))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_view_ends_in_logits(kind: str, channels: int) -> None:
    found = jury(kind, channels)(data(kind, channels=channels))
    assert len(found) >= 1
    for view in found:
        assert len(view) >= 3
        assert all(len(layer) == 3 and layer.dtype == torch.float32 for layer in view)
        assert view[-1].shape[1] == 1 and all(torch.isfinite(layer).all() for layer in view)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_judged_alone(kind: str) -> None:
    net, x = jury(kind), data(kind)
    together = net(x)
    for i in range(len(x)):
        for view, alone in zip(together, net(x[i : i + 1]), strict=True):
            for layer, of_one in zip(view, alone, strict=True):
                torch.testing.assert_close(layer[i : i + 1], of_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_x_and_every_weight(kind: str) -> None:
    net, x = jury(kind), data(kind).requires_grad_()
    sum(view[-1].square().mean() for view in net(x)).backward()
    assert x.grad is not None and (x.grad != 0).any()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_ties_the_examples_of_a_batch(kind: str) -> None:
    names = {type(module).__name__ for module in jury(kind).modules()}
    assert not {name for name in names if "BatchNorm" in name}
    assert not list(jury(kind).buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    net, x = jury(kind), data(kind)
    loaded = Jury.from_pretrained(net.save_pretrained(tmp_path))
    assert loaded.config == net.config
    for a, b in zip(net(x), loaded(x), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_too_small_data_are_refused(kind: str) -> None:
    net = jury(kind)
    net(data(kind, size=net.least_size))
    with pytest.raises(ValueError, match=f"need {net.least_size} along .* larger"):
        net(data(kind, size=net.least_size - 1))
    with pytest.raises(ValueError, match=r"x \(B, 1, \*size\), got \(3, 2"):
        net(data(kind, channels=2))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_not_used(kind: str) -> None:
    net, x = jury(kind), data(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x.bfloat16())
    expected = net(x.bfloat16().float())
    assert all(
        torch.equal(a, b) for v, w in zip(found, expected, strict=True) for a, b in zip(v, w, strict=True)
    )


def test_patches_see_as_far_as_they_say() -> None:
    for layers in (1, 2, 3):
        net = Jury(JuryConfig("image", 1, (PatchConfig(width=2, layers=layers),)))
        x = torch.zeros(1, 1, 96, 96, requires_grad=True)
        logits = net(x + 0.1)[0][-1]
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        assert x.grad is not None
        rows = x.grad[0, 0].abs().sum(1).nonzero()[:, 0]
        assert int(rows.max() - rows.min()) + 1 == net.least_size == {1: 12, 2: 26, 3: 54}[layers]


def test_features_are_seen_through_a_frozen_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved and trained is the heads alone; the network under them follows the device and the type,
    and is looked for when they are loaded."""
    net, x = jury("features", 3), data("features", channels=3)
    first = stlpips_network("stlpips:vgg16")[:4]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    f = first(((x + 1) / 2 - mean) / std)
    f = f / f.square().mean(1, keepdim=True).sqrt()
    found = net(x)
    expected = F.leaky_relu(net.members[0].heads[0].layers[0](f), SLOPE)  # type: ignore[union-attr, index]
    torch.testing.assert_close(found[0][0], expected, rtol=1e-3, atol=1e-4)
    assert [tuple(view[-1].shape[2:]) for view in found] == [(32, 32), (16, 16)]
    assert all(".heads." in name for name in net.state_dict())
    net.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 20_000
    assert net.double()(x.double())[0][-1].dtype == torch.float64
    monkeypatch.setattr(anti_aliased, "SHA256", "0")
    with pytest.raises(ValueError, match=r"stlpips_pytorch 0\.0\.2.*pip install"):
        Jury.from_pretrained(tmp_path)


def test_features_see_grey_pictures_and_other_channels_one_by_one() -> None:
    x = data("features", channels=2)
    two, one = jury("features", 2), jury("features", 1)
    one.load_state_dict(two.state_dict())
    seen, of_first, of_second = two(x), one(x[:, :1]), one(x[:, 1:])
    for a, b in zip(seen, of_first + of_second, strict=True):
        torch.testing.assert_close(a[-1], b[-1], rtol=1e-4, atol=1e-5)


def test_a_receptive_field_counts_strides() -> None:
    convolutions = [torch.nn.Conv2d(1, 1, (4, 1), (2, 1)), torch.nn.Conv2d(1, 1, (3, 1), dilation=(2, 1))]
    assert (receptive_field(convolutions, 0), receptive_field(convolutions, 1)) == (4 + 4 * 2, 1)


def test_periods_fold_the_signal() -> None:
    x = torch.arange(7.0).view(1, 1, 7)
    assert folded(x, 3).tolist() == [[[[0, 1, 2], [3, 4, 5], [6, 0, 0]]]]


def test_a_spectrum_is_that_of_a_tone() -> None:
    window, rate = 512, 8
    t = torch.arange(4096) / window
    found = spectrum(torch.cos(2 * torch.pi * rate * t)[None, None], window)
    real, imaginary = found[0, :, 8:-8]
    energy = (real.square() + imaginary.square()).mean(0)
    assert int(energy.argmax()) == rate and energy[rate] > 100 * energy[rate + 4 :].sum()
    noise = torch.randn(1, 1, 65536, generator=torch.Generator().manual_seed(0))
    level = spectrum(noise, window)[:, :, 8:-8, 1:-1].square().sum(1).mean()
    assert level == pytest.approx(1, rel=0.05)  # the scale keeps the level of noise


def test_chosen_by_name_and_width() -> None:
    assert [m.kind for m in JuryConfig.of("audio", 1).members] == ["period", "stft"]
    assert [m.kind for m in JuryConfig.of("image", 3).members] == ["patch"]
    assert [m.kind for m in JuryConfig.of("image", 3, ("features", "patch")).members] == ["features", "patch"]
    chosen = JuryConfig.of("audio", 2, ("stft",), width=8)
    assert [(m.kind, m.width) for m in chosen.members] == [("stft", 8)]
    for what, names in (("patch", ("patch",)), ("nothing", ("nothing",))):
        with pytest.raises(ValueError, match=f"{what}.*audio; known: period, stft"):
            JuryConfig.of("audio", 1, names)
    with pytest.raises(ValueError, match=r"patch is not for .* audio; known: period, stft"):
        JuryConfig("audio", 1, (PatchConfig(),))
    for bad in ({"modality": "smell"}, {"channels": 0}, {"members": ()}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            JuryConfig(**({"modality": "audio", "channels": 1, "members": (STFTConfig(),)} | bad))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PatchConfig(width=0),
        lambda: PatchConfig(layers=7),
        lambda: FeaturesConfig(blocks=()),
        lambda: FeaturesConfig(blocks=(2, 1)),
        lambda: FeaturesConfig(blocks=(6,)),
        lambda: FeaturesConfig(network="torchvision:vgg16"),
        lambda: STFTConfig(windows=()),
        lambda: STFTConfig(windows=(30,)),
        lambda: PeriodConfig(periods=(1,)),
        lambda: PeriodConfig(periods=()),
    ],
)
def test_impossible_configs_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()  # type: ignore[operator]
