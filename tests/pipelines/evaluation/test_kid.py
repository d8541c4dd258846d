"""KID in features whose weights come with a package, and that no loss is a measure."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.kinds import to_float
from pipelines.evaluation.kid import LITE, SIZES, load_features
from tests.helpers.running import ROOT
from tests.test_imports import imported_modules, inside
from tokenizer.adversarial import ADVERSARIAL_LOSSES
from tokenizer.anti_aliased import STLPIPS
from tokenizer.losses import LOSSES
from tokenizer.metrics import kid
from tokenizer.modalities.image import ImageConfig
from tokenizer.perceptual import TORCHVISION_LAYERS


def test_worse_pictures_are_farther() -> None:
    splits = load_splits(DataConfig(path="embedded:emoji", limit=120), ImageConfig().build())
    x = to_float(torch.stack([splits.train.x(i) for i in range(120)]))
    network = load_features(LITE, download=False)
    real, rest = x[::2], x[1::2]

    def distance(y: Tensor) -> float:
        return float(kid(network(y), network(real), 10, 30, torch.Generator().manual_seed(0))[0])

    blurred = F.avg_pool2d(F.pad(rest, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.rand(rest.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert distance(rest) < distance(blurred) < distance(noise)
    assert network(x[:2, :1]).shape == (2, 1280)


def test_no_measure_is_a_loss() -> None:
    """What a decoder is trained by must not be what it is judged by: neither networks nor measures."""
    trained = {STLPIPS.split(":")[1], *TORCHVISION_LAYERS}
    assert not trained & {LITE, *SIZES}
    assert not {"kid", "psnr", "ssim", "si_sdr", "stoi", "pesq", "dnsmos"} & {*LOSSES, *ADVERSARIAL_LOSSES}
    # DNSMOS's network is a differentiable one: only the measure may know it, and only evaluation that.
    sources = [p for name in ("tokenizer", "pipelines") for p in (ROOT / name).rglob("*.py")]
    knowing = {
        measure: {str(p.relative_to(ROOT)) for p in sources if imports(p, measure)}
        for measure in ("tokenizer.dnsmos", "tokenizer.sound_metrics")
    }
    assert knowing["tokenizer.dnsmos"] == {"tokenizer/sound_metrics.py"}
    judges = {"evaluation/clips.py", "evaluation/sounds.py", "evaluation/speech.py", "reports/sounds.py"}
    judges |= {"evaluation/samples/sounds.py", "browser/models.py", "browser/rebuilt.py"}
    assert knowing["tokenizer.sound_metrics"] == {f"pipelines/{name}" for name in judges}


def imports(path: Path, module: str) -> bool:
    text = path.read_text(encoding="utf-8")
    named = module.rpartition(".")[2] in text  # else there is no need to parse it
    return named and any(inside(found, [module]) for found in imported_modules(text))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"--kid efficientnet-lite0.*\[kid\]"):
        load_features(LITE, download=False)
    with pytest.raises(ValueError, match=r"--kid nothing: expected efficientnet-lite0.*inception_v3"):
        load_features("nothing", download=False)
