"""Lookup-free quantisation: a code is the signs of as many channels as it has bits.

Left out: the entropy objective and the options, which `parts/bits.py` has for all quantizers of bits.
"""

from dataclasses import dataclass

from tokenizer.bottlenecks import BottleneckConfig
from tokenizer.bottlenecks.parts.bits import BitOptions, Bits


@dataclass(frozen=True)
class LFQConfig(BitOptions, BottleneckConfig, kind="lfq"):
    """The signs of `bits` channels as a code, kept in use by an entropy objective."""

    def build(self) -> "LFQ":
        return LFQ(self)


class LFQ(Bits):
    """z_q = sign(z) in {-1, 1}^bits (Yu et al. 2023, arXiv 2310.05737, section 3.1)."""

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config, scale=1.0)
        self.config = config
        self.identity_gradient = config.dim == config.bits
