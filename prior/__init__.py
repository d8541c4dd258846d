"""Autoregressive models of codes: `Prior` learns p(codes | class), gives exact likelihoods and samples codes.

Left out: pictures and sound; to a prior, codes are integers on a grid.
"""

from prior.config import PriorConfig
from prior.model import Prior

__all__ = ["Prior", "PriorConfig"]
