"""The perceptual distance in tiny real networks, and the errors of loading torchvision's."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer import anti_aliased
from tokenizer.anti_aliased import Blur
from tokenizer.installation import install_extra
from tokenizer.perceptual import Perceptual, load_perceptual


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 5, 3))


def test_perceptual_is_the_formula() -> None:
    network, x_hat, x = tiny_network(), pictures(2, 3, 9, 9, seed=1), pictures(2, 3, 9, 9)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = 0.0
    with torch.no_grad():
        first = [network[0](((p + 1) / 2 - mean) / std) for p in (x_hat, x)]
        # Layer 0 is what the convolution gives, not what the in-place ReLU makes of it.
        for a, b in (first, [network[3](f.relu()) for f in first]):
            a, b = (f / f.norm(dim=1, keepdim=True) for f in (a, b))
            expected += ((a - b) ** 2).sum(1).mean().item() / 2
    assert Perceptual(network, [0, "3"])(x_hat, x).item() == pytest.approx(expected, rel=1e-3)


def test_perceptual_is_frozen_hidden_and_in_eval() -> None:
    network = tiny_network()
    parent = nn.ModuleDict({"perceptual": Perceptual(network, [3])}).train()
    assert parent.state_dict() == {} and list(parent.parameters()) == []
    assert network.training and next(network.parameters()).requires_grad  # the user's own is left alone
    x_hat, x = pictures(1, 3, 9, 9, seed=1).requires_grad_(), pictures(1, 3, 9, 9)
    value = parent["perceptual"](x_hat, x)
    assert value == parent["perceptual"](x_hat, x)  # no dropout after .train()
    value.backward()
    assert x_hat.grad is not None and x_hat.grad.abs().sum() > 0
    assert parent["perceptual"](x, x).item() == 0
    assert parent.double()["perceptual"](x_hat, x).dtype == torch.float64  # the network follows .to()


def test_perceptual_takes_grey_pictures_and_refuses_others() -> None:
    perceptual, grey = Perceptual(tiny_network(), [1]), pictures(2, 1, 9, 9)
    other = pictures(2, 1, 9, 9, seed=1)
    repeated = perceptual(other.repeat(1, 3, 1, 1), grey.repeat(1, 3, 1, 1))
    assert perceptual(other, grey).item() == pytest.approx(repeated.item())
    with pytest.raises(ValueError, match=r"perceptual: .*1 or 3 channels, got 2"):
        perceptual(torch.zeros(1, 2, 9, 9), torch.zeros(1, 2, 9, 9))
    with pytest.raises(ValueError, match=r"perceptual: .*\(2, 1, 9, 9\) and \(1, 1, 9, 9\)"):
        perceptual(grey, grey[:1])
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"perceptual: layer '1' .*convolutional"):
        Perceptual(flat, [1])(grey, other)


def test_perceptual_names_unknown_layers() -> None:
    with pytest.raises(ValueError, match=r"layers: .*got \['9'\]; known: 0, 1, 2, 3"):
        Perceptual(tiny_network(), [0, 9])
    with pytest.raises(ValueError, match=r"layers: .*got none; known: 0, 1, 2, 3"):
        Perceptual(tiny_network(), [])


class TinyVGG(nn.Module):
    """As deep as VGG16's features, so that its layer indices exist, but tiny."""

    def __init__(self) -> None:
        super().__init__()
        blocks: Iterator[nn.Module] = (
            nn.Conv2d(3 if i == 0 else 2, 2, 1) if i % 2 == 0 else nn.ReLU(inplace=True) for i in range(30)
        )
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(2, 2)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for torchvision that makes `TinyVGG`, and an empty hub cache, whose path it returns."""
    models = types.ModuleType("torchvision.models")
    weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url="file:///none/vgg16-397923af.pth"))
    models.get_model_weights = lambda name: weights  # type: ignore[attr-defined]
    models.get_model = lambda name, weights: TinyVGG()  # type: ignore[attr-defined]
    package = types.ModuleType("torchvision")
    package.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_load_perceptual_reads_files_and_the_cache(torchvision: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = TinyVGG().state_dict()
    torchvision.mkdir(parents=True)
    torch.save(state, torchvision / "vgg16-397923af.pth")
    features = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    save_file(features, tmp_path / "features.safetensors")
    reference = TinyVGG()
    reference.load_state_dict(state)
    x_hat, x = pictures(1, 3, 4, 4, seed=1), pictures(1, 3, 4, 4)
    expected = Perceptual(reference.features, (3, 8, 15, 22, 29))(x_hat, x)
    for spec in ("torchvision:vgg16", f"torchvision:vgg16:{tmp_path / 'features.safetensors'}"):
        assert torch.equal(load_perceptual(spec)(x_hat, x), expected)


def test_load_perceptual_says_what_is_wrong(torchvision: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"hub/checkpoints/vgg16-397923af.pth; .*--perceptual-download.*download=True"
    ):
        load_perceptual("torchvision:vgg16")
    with pytest.raises(ValueError, match=r"mine\.pth; .*torchvision:vgg16:FILE"):
        load_perceptual(f"torchvision:vgg16:{tmp_path / 'mine.pth'}", download=True)
    (tmp_path / "mine.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"mine\.pth cannot be used; .*torchvision:vgg16:FILE"):
        load_perceptual(f"torchvision:vgg16:{tmp_path / 'mine.pth'}")
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"(?s)other\.safetensors .*vgg16:FILE.*Missing key.*0\.bias"):
        load_perceptual(f"torchvision:vgg16:{tmp_path / 'other.safetensors'}")
    torchvision.mkdir(parents=True)
    (torchvision / "vgg16-397923af.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth cannot be used; delete it.*download"):
        load_perceptual("torchvision:vgg16")
    with pytest.raises(ValueError, match="'torchvision:vgg99'; known: torchvision:vgg16"):
        load_perceptual("torchvision:vgg99")


def test_load_perceptual_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=re.escape(install_extra("perceptual"))):
        load_perceptual("torchvision:vgg16")


def test_the_network_that_comes_with_a_package_sees_what_people_see() -> None:
    """Of pictures equally far off by the squared error, those that look alike are nearer."""
    x = F.interpolate(pictures(4, 3, 8, 8), 48, mode="bicubic")
    perceptual = load_perceptual("stlpips:vgg16")
    shifted = x.roll(1, 3)
    error = (shifted - x).square().mean().sqrt()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    noisy, brighter = x + error * noise, x + error
    far = perceptual(pictures(4, 3, 48, 48, seed=9), x)
    assert perceptual(x, x) == 0
    assert perceptual(brighter, x) < perceptual(noisy, x) < far
    assert perceptual(shifted, x) < perceptual(noisy, x)
    grey = x.mean(1, keepdim=True)
    assert perceptual(grey + 0.1, grey) > 0


def test_its_pools_are_a_maximum_and_a_blur() -> None:
    x = pictures(1, 2, 6, 6)
    found = nn.Sequential(nn.MaxPool2d(2, stride=1), Blur(2))(x)
    most = x.unfold(2, 2, 1).unfold(3, 2, 1).amax((4, 5))
    line = torch.tensor([0.25, 0.5, 0.25])
    centre = (most[:, :, 1:4, 1:4] * line[:, None] * line).sum((2, 3))
    assert found.shape == (1, 2, 3, 3)
    torch.testing.assert_close(found[:, :, 1, 1], centre)
    assert Blur(1)(torch.ones(1, 1, 1, 1)).item() == 1


def test_another_file_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(path: Path | None) -> None:
        spec = None if path is None else types.SimpleNamespace(submodule_search_locations=[str(path)])
        monkeypatch.setattr(anti_aliased, "find_spec", lambda _: spec)

    found(None)
    with pytest.raises(ValueError, match=re.escape(install_extra("perceptual"))):
        load_perceptual("stlpips:vgg16")
    found(tmp_path)
    for write in (False, True):
        if write:
            (tmp_path / anti_aliased.FILE).parent.mkdir(parents=True)
            (tmp_path / anti_aliased.FILE).write_bytes(b"another")
        with pytest.raises(ValueError, match=r"stlpips_pytorch 0\.0\.2.*pip install"):
            load_perceptual("stlpips:vgg16")
    with pytest.raises(ValueError, match="stlpips:vgg16"):
        load_perceptual("stlpips:alex")
