"""Tokenizers of other libraries as ours: the contract of a family, and the registry that finds one by the
config.json of its library.

Left out: the families themselves. Each is one file beside this one, which wraps what its library builds; a
new file is found without touching others. Nothing here imports those libraries before a model asks for it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig
from tokenizer.config import TokenizerConfig
from tokenizer.hub.files import WEIGHTS
from tokenizer.losses import default_weights
from tokenizer.modalities import Modality, ModalityConfig
from tokenizer.variants import changed_fields, import_modules, shortened

# Where their config.json names the kind of model: transformers and diffusers.
NAMES = ("model_type", "_class_name")


@dataclass(frozen=True)
class Family:
    """A kind of tokenizer of another library, as one config.json of it (`raw`) describes it.

    A subclass is declared with `name=`, what stands under `NAMES` in such a file. Its networks are modules of
    the library's own model, `whole`: those named in `encoder_parts`, `bottleneck_parts` and `decoder_parts`
    are all that it has.
    """

    raw: Mapping[str, Any]

    families: ClassVar[dict[str, type["Family"]]] = {}
    name: ClassVar[str]
    # The library, and its classes of configs and of models.
    library: ClassVar[str] = "transformers"
    config_class: ClassVar[str]
    model_class: ClassVar[str]
    # The name of its files of weights.
    weights: ClassVar[str] = WEIGHTS
    # Of this adapter: to be raised when it gives other codes than before.
    adapter: ClassVar[int] = 2
    # Values of their config that decide what codes mean, beside weights and their shapes.
    decides: ClassVar[tuple[str, ...]]
    # Ends of names of tensors in the bottleneck that do not decide what a code means.
    statistics: ClassVar[tuple[str, ...]] = ()
    # Why no graph (ONNX) of any batch and size can stand for its networks; "": one can.
    untraced: ClassVar[str] = ""
    encoder_parts: ClassVar[tuple[str, ...]] = ("encoder",)
    bottleneck_parts: ClassVar[tuple[str, ...]] = ("quantizer",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("decoder",)
    # What the data are, as the modality of ours is called, and the losses a decoder is trained with.
    kind: ClassVar[str]
    losses: ClassVar[Mapping[str, float]]

    def __init_subclass__(cls, name: str = "") -> None:
        if name:
            cls.name = name
            cls.families[name] = cls

    @cached_property
    def theirs(self) -> Any:
        """The library's config. `ValueError` for values that it refuses."""
        raise TypeError(f"{type(self).__name__} does not define theirs")

    def check(self) -> None:
        """`ValueError` for a config of this kind that cannot be taken, with the reason."""

    def whole(self) -> Any:
        """The library's model, as its constructor makes it."""
        raise TypeError(f"{type(self).__name__} does not define whole")

    def load(self, folder: Path, outline: nn.Module) -> Any:
        """The library's model with the weights in a folder; `outline`: all that it holds, on the device meta.
        `ValueError` that names a tensor which is missing, left over, of a wrong shape or not finite."""
        raise TypeError(f"{type(self).__name__} does not define load")

    def save(self, whole: Any, path: Path) -> None:
        """Write the weights of a model to a file of the name `weights`, as the library does; others may come
        to lie beside it."""
        raise TypeError(f"{type(self).__name__} does not define save")

    def saved_config(self, dtype: torch.dtype) -> dict[str, Any]:
        """What config.json is to say, for weights of this type."""
        return dict(self.raw)

    def preprocessor(self) -> dict[str, Any]:
        """What preprocessor_config.json is to say, so that the library's own reader takes it."""
        raise TypeError(f"{type(self).__name__} does not define preprocessor")

    def modality(self) -> Modality:
        """What the data are."""
        raise TypeError(f"{type(self).__name__} does not define modality")

    def encoder(self, whole: Any) -> nn.Module:
        """x (B, channels, *size), sizes multiples of the stride → z_e (B, in_dim, *grid)."""
        raise TypeError(f"{type(self).__name__} does not define encoder")

    def bottleneck(self, whole: Any) -> Bottleneck:
        """Around the library's own quantizer."""
        raise TypeError(f"{type(self).__name__} does not define bottleneck")

    def decoder(self, whole: Any) -> nn.Module:
        """z_q (B, out_dim, *grid) → x_hat (B, channels, *grid · stride)."""
        raise TypeError(f"{type(self).__name__} does not define decoder")

    def parts(self, whole: Any, names: tuple[str, ...]) -> nn.ModuleDict:
        """The modules of these names. Our networks keep them as `parts`, by which they are put together
        again for saving."""
        return nn.ModuleDict({name: getattr(whole, name) for name in names})

    def join(self, whole: Any, ours: Iterable[Any]) -> Any:
        """The library's model made of our networks, as `parts` took it apart."""
        for network in ours:
            for name, part in getattr(network, "parts", {}).items():
                setattr(whole, name, part)
        return whole

    def config(self) -> TokenizerConfig:
        """The config of a tokenizer of this family."""
        losses = {**default_weights(), **self.losses}
        return TokenizerConfig(ForeignModality(self), self.bottleneck_config(), losses)

    def bottleneck_config(self) -> BottleneckConfig:
        """That of the library's own quantizer, or of a bottleneck of ours that does the same."""
        return ForeignBottleneck(self)

    def fingerprint(self, encoder: nn.Module, bottleneck: Bottleneck, config: BottleneckConfig) -> str:
        """16 hex digits of the adapter, of what the config decides, and of all tensors that decide codes, in
        the order of their layers; and of the config of a bottleneck of ours in place of theirs."""
        decided = {name: getattr(self.theirs, name) for name in self.decides}
        described: list[Any] = [self.name, self.adapter, decided]
        if config != self.bottleneck_config():
            described.append(changed_fields(config))
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=list).encode())
        state = dict(encoder.state_dict())
        state |= {
            f"bottleneck.{k}": v for k, v in bottleneck.state_dict().items() if k not in bottleneck.not_coding
        }
        digest.update(hash_of_layers(state))
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ForeignModality(ModalityConfig):
    """What the data of a family are; not among the modalities that a config of ours can name."""

    family: Family = field(repr=False)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """That of ours with the same data."""
        return self.family.kind

    def build(self) -> Modality:
        return self.family.modality()


@dataclass(frozen=True)
class ForeignBottleneck(BottleneckConfig):
    """The quantizer of a family; not among the bottlenecks that a config of ours can name."""

    family: Family = field(repr=False)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The family's name."""
        return self.family.name


# What layers of torch call their tensors, in any version of a library: weights that are a direction and a
# length have had two pairs of names.
LAYER_NAMES = {"weight": "weight", "bias": "bias", "weight_g": "length", "weight_v": "direction"}
LAYER_NAMES |= {
    "parametrizations.weight.original0": "length",
    "parametrizations.weight.original1": "direction",
}

RECURRENT = re.compile(r"(weight|bias)_(ih|hh)_l\d+")


def hash_of_layers(state: Mapping[str, Tensor]) -> bytes:
    """A hash of tensors by name that tells which of a layer they are, and at which place in the order of
    layers this stands, but not what the library calls it: that may change with its version. Tensors of one
    layer with names of the library's own count in any order."""
    layers: dict[str, list[bytes]] = {}
    for name, value in state.items():
        layer, _, last = name.replace("parametrizations.weight.", "parametrizations/weight/").rpartition(".")
        kind = LAYER_NAMES.get(last.replace("/", "."), last if RECURRENT.fullmatch(last) else "")
        held = value.detach().to("cpu").float().contiguous()
        said = f"{kind}{tuple(held.shape)}".encode()
        layers.setdefault(layer, []).append(hashlib.sha256(said + held.numpy().tobytes()).digest())
    digest = hashlib.sha256()
    for hashes in layers.values():
        digest.update(hashlib.sha256(b"".join(sorted(hashes))).digest())
    return digest.digest()


def families() -> dict[str, type[Family]]:
    """All registered families by name."""
    import_modules(__name__)
    return dict(Family.families)


def family_of(config: TokenizerConfig) -> Family | None:
    """The family of a tokenizer of another library; None for one of ours."""
    return config.modality.family if isinstance(config.modality, ForeignModality) else None


def own_files(config: TokenizerConfig) -> Family | None:
    """The family whose library's files hold all of a tokenizer: None for one of ours, and for codes of ours
    made of a VAE of another library, for which its files have no place."""
    family = family_of(config)
    return family if family is not None and config.bottleneck == family.bottleneck_config() else None


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of another library: it names a kind of model, and none of ours."""
    return any(name in raw and not str(raw[name]).startswith("tokenloom-") for name in NAMES)


def read_family(raw: Mapping[str, Any], where: Path) -> Family:
    """The family of a foreign config.json. `ValueError` for one of which there is no family, for a model that
    brings code of its own, and for what the family or its library refuses."""
    found = next(str(raw[name]) for name in NAMES if name in raw)
    if "auto_map" in raw:
        raise ValueError(
            f"{where}: the model {shortened(found)} wants code of its own to be run (auto_map), which is "
            "never done here; take a model that transformers or diffusers has itself"
        )
    known = families()
    if found not in known:
        raise ValueError(
            f"{where}: model_type is {shortened(found)}, but Tokenizer loads 'tokenloom-tokenizer' and, of "
            f"other libraries, {', '.join(sorted(known))}; is this the folder of another model?"
        )
    family = known[found](raw)
    try:
        family.check()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return family
