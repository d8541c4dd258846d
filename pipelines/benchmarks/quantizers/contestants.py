"""Who takes part in `benchmark.py quantizers`: every bottleneck with codes and the peers, at equal bits.

Left out: training and measuring them (`training/setup.py`), and the peers' wrappers (`peers.py`).
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.benchmarks.quantizers.peers import (
    INSTALL,
    DiffusersVQConfig,
    PeerConfig,
    PeerFSQConfig,
    VectorQuantizeConfig,
)
from tokenizer.bottlenecks import BottleneckConfig, kinds
from tokenizer.bottlenecks.vq import VQConfig

# What all others are compared with; the default bottleneck.
REFERENCE = "vq"

# (config class, bits per position, channels) → configs by name, None for one that these bits do not allow.
Configs = Callable[[Any, int, int], Mapping[str, BottleneckConfig | None]]


@dataclass(frozen=True)
class Contestant:
    """A bottleneck by name; `peer` says that it is of another library."""

    name: str
    config: BottleneckConfig

    @property
    def peer(self) -> bool:
        return isinstance(self.config, PeerConfig)


def contestants(bits: int, dim: int, chosen: Collection[str] = ()) -> tuple[list[Contestant], dict[str, str]]:
    """Those that are `chosen` (none: all), at `bits` per position on `dim` channels, and who is left out and
    why. `ValueError` for a chosen one that is unknown or left out."""
    found: dict[str, BottleneckConfig | None] = {}
    for kind, config_class in kinds().items():
        configs = OURS.get(kind, lambda cls, bits, dim, kind=kind: {kind: cls()})
        found |= configs(config_class, bits, dim)
    found |= peers(bits, dim)
    if unknown := [name for name in chosen if name not in found]:
        raise ValueError(f"--contestants: unknown {unknown[0]!r}; known: {', '.join(found)}")
    present, left_out = [], {}
    for name, config in found.items():
        if chosen and name not in chosen:
            continue
        if config is None:
            fit = next(more for more in itertools.count(bits) if shares(more))
            left_out[name] = f"{bits} bits cannot be shared by 2 or more equal codebooks; give --bits {fit}"
        elif isinstance(config, PeerConfig) and not config.installed:
            left_out[name] = f"{config.package} is not installed; {INSTALL}"
        elif config.build().num_codebooks:  # a VAE without codes is no contestant
            present.append(Contestant(name, config))
        elif chosen:
            left_out[name] = "it has no codes to compare"
    if chosen and left_out:
        raise ValueError(f"--contestants: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    return present, left_out


def _vq(cls: Any, bits: int, dim: int) -> dict[str, BottleneckConfig | None]:
    base = cls(codebook_size=2**bits, dim=dim, codebook_dim=dim)
    return {
        REFERENCE: base,
        "vq-gradient": replace(base, update="gradient"),
        "vq-simvq": replace(base, update="simvq"),
        "vq-cosine": replace(base, distance="cosine"),
        "vq-rotation": replace(base, update="gradient", gradient="rotation"),
    }


def _grouped(cls: Any, bits: int, dim: int) -> dict[str, BottleneckConfig | None]:
    if (groups := shares(bits)) is None:
        return {"grouped": None}
    part = math.ceil(dim / groups)
    base = VQConfig(codebook_size=2 ** (bits // groups), dim=part, codebook_dim=part)
    return {"grouped": cls(groups=groups, base=base)}


def _rvq(cls: Any, bits: int, dim: int) -> dict[str, BottleneckConfig | None]:
    if (stages := shares(bits)) is None:
        return {"rvq": None}
    stage = VQConfig(codebook_size=2 ** (bits // stages), dim=dim, codebook_dim=dim)
    # No quantizer dropout: only the full bitrate is measured.
    return {"rvq": cls(num_codebooks=stages, stage=stage, dropout=0.0)}


# Of registered kinds; a kind that is not here takes part with its default config, at the bits that has.
OURS: dict[str, Configs] = {
    "vq": _vq,
    "grouped": _grouped,
    "rvq": _rvq,
    "fsq": lambda cls, bits, dim: {"fsq": cls(levels=levels(bits), dim=dim)},
    "lfq": lambda cls, bits, dim: {"lfq": cls(bits=bits, dim=dim)},
    "bsq": lambda cls, bits, dim: {"bsq": cls(bits=bits, dim=dim)},
    "gaussian_quant": lambda cls, bits, dim: {
        "gaussian_quant": cls(codebook_size=2**bits, group_dim=dim, dim=dim)
    },
}


def peers(bits: int, dim: int) -> dict[str, PeerConfig]:
    """The other libraries' quantizers."""
    return {
        "vqp-default": VectorQuantizeConfig(dim=dim, codebook_size=2**bits),
        "vqp-advised": VectorQuantizeConfig(dim=dim, codebook_size=2**bits, settings="advised"),
        "vqp-fsq": PeerFSQConfig(dim=dim, levels=levels(bits)),
        "diffusers-vq": DiffusersVQConfig(dim=dim, codebook_size=2**bits),
    }


def shares(bits: int) -> int | None:
    """The least number of codebooks, 2 or more, that share `bits` equally with 2 bits or more each."""
    return next((k for k in range(2, bits // 2 + 1) if bits % k == 0), None)


def levels(bits: int) -> tuple[int, ...]:
    """Levels of 5 to 8 whose product is nearest to 2^bits, largest first; the fewest of several choices. 5 or
    more is what the paper advises (Mentzer et al. 2023, arXiv 2309.15505, table 1)."""
    choices = (
        choice
        for count in range(1, math.ceil(bits / math.log2(5)) + 1)
        for choice in itertools.combinations_with_replacement((8, 7, 6, 5), count)
    )
    return min(choices, key=lambda choice: abs(math.prod(choice) - 2**bits))
