"""Quantizers of other libraries as bottlenecks, for `benchmark.py quantizers`; needs the extra `bench`.

Left out: saving such a tokenizer: these configs are in no registry, so no file can ask for them.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from einops import rearrange
from torch import Tensor

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Bottlenecked
from tokenizer.distributed import Step
from tokenizer.installation import install_extra

INSTALL = install_extra("bench")
PACKAGES = {"vector-quantize-pytorch": "vector_quantize_pytorch", "diffusers": "diffusers"}


@dataclass(frozen=True)
class PeerConfig(BottleneckConfig):
    """A quantizer of another library. Without a `kind` it stays out of the registry of bottlenecks."""

    package: str = ""
    """The distribution that it comes from, a key of `PACKAGES`."""
    dim: int = 8
    """Channels that the encoder gives and the decoder takes."""

    @property
    def installed(self) -> bool:
        """Whether its package is there. Nothing is imported."""
        return importlib.util.find_spec(PACKAGES[self.package]) is not None


@dataclass(frozen=True)
class VectorQuantizeConfig(PeerConfig):
    """VectorQuantize of vector-quantize-pytorch, its codebook learnt by moving averages."""

    package: str = "vector-quantize-pytorch"
    codebook_size: int = 512
    settings: Literal["default", "advised"] = "default"
    """default: its own. advised: also what its README turns on against dead codes, a start by k-means and a
    replacement of entries used less than 2 times; the low codebook_dim that it advises too ("as low as 8") is
    what the encoder gives."""

    def build(self) -> "PeerVQ":
        return PeerVQ(self)


@dataclass(frozen=True)
class PeerFSQConfig(PeerConfig):
    """FSQ of vector-quantize-pytorch."""

    package: str = "vector-quantize-pytorch"
    levels: tuple[int, ...] = (8, 8, 8)

    def build(self) -> "PeerFSQ":
        return PeerFSQ(self)


@dataclass(frozen=True)
class DiffusersVQConfig(PeerConfig):
    """VectorQuantizer of diffusers, its codebook learnt by gradient. legacy=False puts β on the term that the
    paper has it on."""

    package: str = "diffusers"
    codebook_size: int = 512
    beta: float = 0.25

    def build(self) -> "PeerDiffusers":
        return PeerDiffusers(self)


class Peer(Bottleneck):
    """A peer's `module` on pictures' z (B, dim, h, w), with its losses as it returns them."""

    module: Any  # of a package that is not typed

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.in_dim = self.out_dim = dim
        self.num_codebooks, self.codebook_size = 1, codebook_size

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """z (B, dim, h, w) → z_q (B, dim, h, w), codes (B, h, w) of any integer type, losses."""
        raise TypeError(f"{type(self).__name__} does not define quantize")

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        z_q, codes, losses = self.quantize(z)
        return Bottlenecked(z_q, codes[:, None].long(), losses, {})

    def encode(self, z: Tensor) -> Tensor:
        return self.quantize(z)[1][:, None].long()


class PeerVQ(Peer):
    """`VectorQuantizeConfig`."""

    def __init__(self, config: VectorQuantizeConfig) -> None:
        super().__init__(config.dim, config.codebook_size)
        advised: dict[str, Any] = {"kmeans_init": True, "threshold_ema_dead_code": 2}
        self.module = _package(config).VectorQuantize(
            dim=config.dim,
            codebook_size=config.codebook_size,
            accept_image_fmap=True,
            **(advised if config.settings == "advised" else {}),
        )

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z_q, codes, loss = self.module(z)
        return z_q, codes, {"peer": loss.sum()}  # older versions return it as (1,)

    def decode(self, codes: Tensor) -> Tensor:
        z_q: Tensor = self.module.get_output_from_indices(codes[:, 0])
        return z_q


class PeerFSQ(Peer):
    """`PeerFSQConfig`."""

    def __init__(self, config: PeerFSQConfig) -> None:
        module = _package(config).FSQ(levels=list(config.levels), dim=config.dim)
        super().__init__(config.dim, module.codebook_size)
        self.module = module

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z_q, codes = self.module(z)
        return z_q, codes, {}

    def decode(self, codes: Tensor) -> Tensor:
        z_q: Tensor = self.module.indices_to_codes(codes[:, 0])
        return z_q


class PeerDiffusers(Peer):
    """`DiffusersVQConfig`."""

    def __init__(self, config: DiffusersVQConfig) -> None:
        super().__init__(config.dim, config.codebook_size)
        _package(config)
        from diffusers.models.autoencoders.vae import VectorQuantizer

        self.module = VectorQuantizer(config.codebook_size, config.dim, beta=config.beta, legacy=False)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z_q, loss, (_, _, codes) = self.module(z)
        h, w = z.shape[2:]
        return z_q, rearrange(codes, "(b h w) -> b h w", h=h, w=w), {"peer": loss}

    def decode(self, codes: Tensor) -> Tensor:
        b, _, h, w = codes.shape
        z_q: Tensor = self.module.get_codebook_entry(codes.flatten(), (b, h, w, self.out_dim))
        return z_q


def _package(config: PeerConfig) -> Any:
    """The module of a peer's package. `ValueError` with the fix if it cannot be imported."""
    try:
        return importlib.import_module(PACKAGES[config.package])
    except ImportError as error:
        raise ValueError(f"this peer needs {config.package} ({error}); {INSTALL}") from error
