"""The perceptual distance of two pictures in the activations of a frozen network of the user's choice.

Left out: LPIPS's learnt weights per channel, and any download that was not asked for.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizer.anti_aliased import STLPIPS, STLPIPS_LAYERS, stlpips_network
from tokenizer.installation import install_extra

# ImageNet's statistics, which torchvision's weights expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The layers of torchvision's networks that Zhang et al. compare: the last ReLU of each block.
TORCHVISION_LAYERS = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}


class Perceptual(nn.Module):
    """LPIPS without its learnt weights (Zhang et al. 2018, arXiv 1801.03924): activations of `layers` are
    scaled to unit length along channels; their squared difference is averaged over positions and layers.

    `features` is copied, frozen, and always in eval mode. It is no sub-module, so it adds nothing to
    `parameters()` or `state_dict()`, yet it follows `.to(...)`; it runs in its own precision. `layers` are
    names of its sub-modules, or indices of a Sequential. `mean` and `std` are per channel of the network's
    input, for pictures in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        layers: Sequence[str | int],
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        network = copy.deepcopy(features).eval().requires_grad_(False)
        modules = dict(network.named_modules())
        names = [str(layer) for layer in layers]
        unknown = [name for name in names if name not in modules]
        if not names or unknown:
            known = ", ".join(name for name in modules if name)
            raise ValueError(
                f"layers: expected names of sub-modules, got {unknown[:1] or 'none'}; known: {known}"
            )
        for module in modules.values():
            if hasattr(module, "inplace"):
                module.inplace = False  # it would overwrite the layer before it
        self.layers = tuple(names)
        self._frozen = (network,)  # in a tuple, where nn.Module does not see it
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._frozen[0]._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """x_hat, x: (B, C, H, W) in [-1, 1], C that of the network, or 1 and repeated → scalar.

        Gradients reach `x_hat` only. `ValueError` for unequal shapes, another C, or a layer whose output is
        not (B, C, H, W).
        """
        if x_hat.shape != x.shape or x.ndim != 4 or x.numel() == 0:
            shapes = f"{tuple(x_hat.shape)} and {tuple(x.shape)}"
            raise ValueError(f"perceptual: x_hat and x must be equal in shape, (B, C, H, W), got {shapes}")
        with torch.autocast(x.device.type, enabled=False):
            found = self._activations(x_hat)
            with torch.no_grad():
                wanted = self._activations(x)
            terms = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
            return torch.stack(terms).mean()

    def _activations(self, x: Tensor) -> list[Tensor]:
        """Activations of `layers`, each (B, C_l, H_l, W_l), of unit length along C_l."""
        channels = self.mean.shape[0]
        if x.shape[1] not in (1, channels):
            raise ValueError(f"perceptual: pictures must have 1 or {channels} channels, got {x.shape[1]}")
        x = (x.to(self.mean) + 1) / 2
        x = (x.expand(-1, channels, -1, -1) - self.mean) / self.std
        network, kept = self._frozen[0], dict[str, Tensor]()

        def keep(name: str) -> Any:
            return lambda module, inputs, output: kept.__setitem__(name, output)

        hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        try:
            network(x)
        finally:
            for hook in hooks:
                hook.remove()
        for name in self.layers:
            if name not in kept or kept[name].ndim != 4:
                raise ValueError(
                    f"perceptual: layer {name!r} gives no (B, C, H, W); choose a convolutional one"
                )
        return [_unit(kept[name]) for name in self.layers]


def _unit(f: Tensor) -> Tensor:
    """f (B, C, H, W) at unit length along C; the constant bounds the gradient where all channels are 0."""
    f = f.to(torch.promote_types(f.dtype, torch.float32))
    return f * torch.rsqrt(f.square().sum(1, keepdim=True) + 1e-6)


def load_perceptual(spec: str, download: bool = False) -> Perceptual:
    """A `Perceptual` from `spec`: "stlpips:vgg16", "torchvision:NETWORK" or "torchvision:NETWORK:FILE".

    Weights of stlpips come with its package, so nothing is downloaded. torchvision's NETWORK is vgg16 or
    alexnet, FILE its weights as .safetensors or .pth; without FILE, weights come from torch's hub cache, and
    only `download=True` may fetch them into it. Loading is strict and runs no code. `ValueError` for an
    unknown spec, a package that is not installed, weights missing or not fitting.
    """
    if spec.startswith("stlpips:"):
        return Perceptual(stlpips_network(spec), STLPIPS_LAYERS)
    network = torchvision_network(spec, tuple(TORCHVISION_LAYERS), download, part="features")
    return Perceptual(network, TORCHVISION_LAYERS[spec.split(":")[1]])


def torchvision_network(
    spec: str, known: Sequence[str], download: bool = False, part: str | None = None
) -> nn.Module:
    """torchvision's network of `spec` ("torchvision:NETWORK" or "torchvision:NETWORK:FILE") with its
    weights, or its sub-module `part` alone. Errors and downloads as in `load_perceptual`."""
    library, _, rest = spec.partition(":")
    name, _, file = rest.partition(":")
    if library != "torchvision" or name not in known:
        names = ", ".join(f"torchvision:{n}" for n in known)
        raise ValueError(
            f"unknown network {spec!r}; known: {names}, each optionally with :FILE; as a loss also {STLPIPS}"
        )
    try:
        from torchvision import models
    # The last two: a torchvision built for another torch.
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{spec}: torchvision cannot be imported ({error}); {install_extra('perceptual')}"
        ) from error
    url = models.get_model_weights(name).DEFAULT.url
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    path = Path(file) if file else cached
    if download and not file and not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        # The name ends in the first digits of the file's SHA-256, which the download is checked against.
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=cached.stem.rpartition("-")[2])
    if not path.is_file():
        raise ValueError(
            f"{spec}: no weights at {path}; name a file (torchvision:{name}:FILE), or allow the download "
            "(--perceptual-download, --kid-download; download=True in Python)"
        )
    network: nn.Module
    with torch.device("meta"):  # nothing is allocated for what is not used
        # As torchvision does itself for its weights: they expect inputs scaled once more.
        extra = {"transform_input": True, "init_weights": False} if name == "inception_v3" else {}
        whole = models.get_model(name, weights=None, **extra)
        network = whole if part is None else whole.get_submodule(part)
    try:
        state = _read_weights(path)
        prefix = f"{part}." if any(key.startswith(f"{part}.") for key in state) else ""
        state = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        network.load_state_dict(state, strict=True, assign=True)
    except Exception as error:  # whatever is wrong with a file of the user's
        fix = f"name another file (torchvision:{name}:FILE)" if file else "delete it and download it again"
        raise ValueError(f"{spec}: the weights in {path} cannot be used; {fix} ({error})") from error
    return network.requires_grad_(False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
