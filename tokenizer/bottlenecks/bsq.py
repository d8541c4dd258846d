"""Binary spherical quantisation: the signs of a unit vector, its entries corners of a cube in the sphere.

Left out: the entropy objective and the options, which `parts/bits.py` has for all quantizers of bits.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.parts.bits import BitOptions, Bits
from tokenizer.bottlenecks.parts.estimators import SHORTEST
from tokenizer.variants import training_only


@dataclass(frozen=True)
class BSQConfig(BitOptions, BottleneckConfig, kind="bsq"):
    """The signs of a unit vector as a code; what rounding can lose is bounded."""

    entropy_weight: float = training_only(0.005)
    """Weight of the entropy objective E[H(q(z))] − γ · H(E[q(z)]), in nats. Less than for lfq: no component
    can leave the sphere, so the reconstruction pulls less."""

    def build(self) -> "BSQ":
        return BSQ(self)


class BSQ(Bits):
    """u = z / ‖z‖, z_q = sign(u) / √bits (Zhao et al. 2024, arXiv 2406.07548, section 3.1)."""

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config, scale=config.bits**-0.5)
        self.config = config

    def quantized(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        return super().quantized(F.normalize(z_e, eps=SHORTEST))
